//! The state folder: one supervisor at a time, and where everything lies in it.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_link::MAX_SOCKET_PATH;
use grail_process::records::{self, Records};
use grail_process::{Identity, Liveness, SideThread};

use crate::board::Board;
use crate::children::ChildEvent;
use crate::exit::Failure;

/// Sockets of the children, and the longest name of one.
const SOCKETS: &str = "run";
const LONGEST_SOCKET: &str = "generation-63.sock";
/// Who has the folder.
const HOLDER: &str = "holder.json";
/// Longest wait for killed survivors to be gone.
const SURVIVOR_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for a disk that shall take note that nobody has the folder any more.
const RELEASE_LIMIT: Duration = Duration::from_millis(250);

/// The state folder, locked for as long as this value lives.
#[derive(Debug)]
pub struct StateFolder {
    root: PathBuf,
    /// Released by the kernel when the process ends in any way.
    lock: std::fs::File,
    before: Before,
}

/// How the last run with this folder ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// There was none, or it ended in order.
    Orderly,
    /// It was killed, or the machine lost power, in this boot or container …
    Killed,
    /// … or in an earlier one.
    OtherBoot,
}

impl StateFolder {
    /// Creates the folder where it is missing and takes its lock.
    ///
    /// The kernel's lock says whether somebody has the folder now; `holder.json` says who, by pid, start time and boot. The second
    /// also holds where the first cannot: when somebody removed the lock file under a running supervisor.
    ///
    /// # Errors
    /// When another supervisor has the folder, or the folder cannot be used.
    pub fn lock(root: &Path) -> Result<Self, Failure> {
        if let Some(why) = too_long_for_sockets(root) {
            return Err(Failure::Configuration(format!("state.folder = {root:?} {why}; choose a shorter folder")));
        }
        let unusable = |error: std::io::Error| {
            Failure::Unavailable(format!(
                "the state folder {root:?} cannot be used: {error}; put state.folder on a disk that this user can write to"
            ))
        };
        std::fs::create_dir_all(root).map_err(unusable)?;
        let root = root.canonicalize().map_err(unusable)?;
        let path = root.join("lock");
        if let Err(error) = close_to_others(&root, path.exists()) {
            tracing::warn!(%error, folder = %root.display(), "The state folder cannot be closed to other users.");
        }
        let file =
            std::fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(unusable)?;
        let locked = file.try_lock();
        let holder = read_holder(&root);
        let standing = holder.as_ref().map(Identity::standing).transpose().map_err(unusable)?;
        if locked.is_err() || standing == Some(Liveness::Alive) {
            let pid = holder.map_or("unknown".into(), |holder| holder.pid.to_string());
            return Err(Failure::Locked(format!(
                "the state folder {root:?} belongs to a running supervisor (pid {pid}); stop it, or give this one a state.folder of its own"
            )));
        }
        let before = match standing {
            None => Before::Orderly,
            Some(Liveness::Alive | Liveness::Gone) => Before::Killed,
            Some(Liveness::OtherBoot | Liveness::OtherNamespace) => Before::OtherBoot,
        };
        if let Err(error) = write_holder(&root) {
            // The kernel's lock holds all the same, and a full disk shall not keep a miner from starting.
            tracing::warn!(%error, "Who holds the state folder cannot be written down.");
        }
        Ok(Self { root, lock: file, before })
    }

    /// How the last run with this folder ended.
    pub fn before(&self) -> Before {
        self.before
    }

    /// Whether a supervisor holds the lock of `root`.
    pub fn is_locked(root: &Path) -> bool {
        let Ok(file) = std::fs::File::open(root.join("lock")) else { return false };
        file.try_lock_shared().is_err()
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Sockets of the children.
    pub fn sockets(&self) -> PathBuf {
        self.root.join(SOCKETS)
    }

    /// A folder of the workload's own.
    pub fn of_workload(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Children that run, one record each.
    pub fn children(&self) -> PathBuf {
        self.root.join("children")
    }

    /// Ends what an earlier run left: recorded children that still live, and their descendants. Told as events.
    ///
    /// # Errors
    /// When the records or `/proc` cannot be read.
    pub fn end_survivors(&self, board: &Board) -> Result<Records, Failure> {
        let failed = |error: std::io::Error| Failure::internal("look for children of an earlier run", error);
        let records = Records::open(&self.children()).map_err(failed)?;
        let (known, refused) = records.read().map_err(failed)?;
        for path in refused {
            tracing::warn!(path = %path.display(), "A record of a child cannot be read and was removed.");
        }
        let survivors = records::survivors(&known).map_err(failed)?;
        let left = records::end(&survivors, SURVIVOR_LIMIT).map_err(failed)?;
        for survivor in &survivors {
            let (child, program, pid) = (survivor.child.clone(), survivor.program.clone(), survivor.identity.pid);
            board.event(ChildEvent::Survivor { child, pid, program, ended: !left.contains(survivor) });
        }
        // Whoever is still there is looked for again next time.
        if left.is_empty() {
            records.clear().map_err(failed)?;
        }
        Ok(records)
    }

    /// What happened.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }
}

impl Drop for StateFolder {
    fn drop(&mut self) {
        let holder = self.root.join(HOLDER);
        // Left behind only by a run that could not end in order, or whose disk hung at its end.
        if let Ok(disk) = SideThread::start("state", 1) {
            let _ = disk.wait(RELEASE_LIMIT, move || std::fs::remove_file(holder));
        }
        // By itself it goes with the last thread of this process, and a disk that hangs may hold one.
        let _ = self.lock.unlock();
    }
}

/// An earlier version made the folder open to everybody. One that serves others too is left as it is: it has no lock of ours yet,
/// another owner, or the bit of folders that everybody may write to.
fn close_to_others(root: &Path, is_ours: bool) -> std::io::Result<()> {
    let facts = std::fs::metadata(root)?;
    let (mode, owner) = (facts.permissions().mode(), facts.uid());
    if !is_ours || mode & 0o1077 == 0 || mode & 0o1000 != 0 || owner != nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    std::fs::set_permissions(root, Permissions::from_mode(0o700))
}

fn read_holder(root: &Path) -> Option<Identity> {
    let mut text = Vec::new();
    std::fs::File::open(root.join(HOLDER)).ok()?.take(4096).read_to_end(&mut text).ok()?;
    // A torn file is as good as none: the lock decides.
    serde_json::from_slice(&text).ok()
}

fn write_holder(root: &Path) -> std::io::Result<()> {
    let beside = root.join("holder.new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(&serde_json::to_vec(&Identity::this()?)?)?;
    file.sync_all()?;
    std::fs::rename(beside, root.join(HOLDER))
}

/// Why the operating system could not bind the sockets of children in such a folder, if it could not. Nothing is made.
pub fn too_long_for_sockets(root: &Path) -> Option<String> {
    let longest = without_links(root).join(SOCKETS).join(LONGEST_SOCKET);
    let length = longest.as_os_str().len();
    (length > MAX_SOCKET_PATH).then(|| {
        format!("is too long: the socket {longest:?} would have {length} bytes and the operating system allows {MAX_SOCKET_PATH}")
    })
}

/// The folder as it will be called: links lead to where they lead, and what is not there yet is appended.
fn without_links(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = |place: &Path| Some(place.canonicalize().ok()?.join(absolute.strip_prefix(place).ok()?));
    absolute.ancestors().find_map(real).unwrap_or_else(|| absolute.clone())
}

#[cfg(test)]
mod tests {
    use grail_process::clock;

    use super::*;

    /// A child that another test starts has the lock too, for as long as it is not its own program yet.
    fn lock(folder: &Path) -> StateFolder {
        let end = clock::monotonic() + Duration::from_secs(60);
        loop {
            match StateFolder::lock(folder) {
                Ok(state) => return state,
                Err(error) => assert!(clock::monotonic() < end, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_second_supervisor_is_refused_with_the_pid_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFolder::lock(folder.path()).unwrap();
        assert!(StateFolder::is_locked(folder.path()));
        let error = StateFolder::lock(folder.path()).unwrap_err();
        assert_eq!(error.code(), 75);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        drop(lock(folder.path()));
        let end = clock::monotonic() + Duration::from_secs(60);
        while StateFolder::is_locked(folder.path()) {
            assert!(clock::monotonic() < end, "it stays locked");
        }
    }

    #[test]
    fn a_removed_lock_file_lets_nobody_in_and_a_dead_holder_keeps_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFolder::lock(folder.path()).unwrap();
        assert_eq!(first.before(), Before::Orderly);
        std::fs::remove_file(folder.path().join("lock")).unwrap();
        assert_eq!(StateFolder::lock(folder.path()).unwrap_err().code(), 75);
        drop(first);
        let this = Identity::this().unwrap();
        let earlier = Identity { started: this.started - 1, ..this.clone() };
        let other_boot = Identity { boot: "0000".into(), ..this.clone() };
        for (holder, before) in [(earlier, Before::Killed), (other_boot, Before::OtherBoot)] {
            std::fs::write(folder.path().join(HOLDER), serde_json::to_vec(&holder).unwrap()).unwrap();
            assert_eq!(lock(folder.path()).before(), before);
        }
        std::fs::write(folder.path().join(HOLDER), "{\"pid\":1,").unwrap();
        assert_eq!(lock(folder.path()).before(), Before::Orderly, "a torn file is as good as none");
    }

    #[test]
    fn a_folder_that_an_earlier_version_left_open_is_closed_and_a_shared_one_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |mode| std::fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        let found = || std::fs::metadata(folder.path()).unwrap().permissions().mode() & 0o7777;
        mode(0o755);
        drop(lock(folder.path()));
        assert_eq!(found(), 0o755, "somebody else made it, and it was no state folder before");
        drop(lock(folder.path()));
        assert_eq!(found(), 0o700);
        mode(0o1777);
        drop(lock(folder.path()));
        assert_eq!(found(), 0o1777);
    }

    #[test]
    fn long_folders_are_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(100));
        assert_eq!(StateFolder::lock(&long).unwrap_err().code(), 64);
        assert!(!long.exists());
        // A short name for it is none for the kernel, which is given the real one.
        std::fs::create_dir(&long).unwrap();
        let link = folder.path().join("short");
        std::os::unix::fs::symlink(&long, &link).unwrap();
        assert!(too_long_for_sockets(&link.join("state")).is_some_and(|why| why.contains("xxx") && why.contains("107")));
        assert_eq!(too_long_for_sockets(folder.path()), None);
    }
}
