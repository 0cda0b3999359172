//! Checkpoints on disk (grail-checkpoints 4 and 9).
//!
//! ```text
//!  checkpoint-<W>.partial           being made by the one process that holds its lock; whoever gets the lock next goes on with it
//!  checkpoint-<W>.<16 hex>.partial  the same in a folder of its own: where locks do not work, or their holder stands still
//!  checkpoint-<W>                   complete and verified
//!  delta-<W>.partial                a link of a chain while it is fetched
//!  delta-<W>                        what changed on the way to checkpoint W, for workers that hold the one before
//! ```
//!
//! Names change by renaming only, after everything below them is on the disk, so a process may end at any moment.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::local;
use super::keys::plain_number;
use super::ownership::{Claim, Hold, abandoned, claim};
use super::weights::file_sha256;
use super::{CheckpointError, Manifest, Metadata};

/// Metadata file of a cached checkpoint.
pub(super) const METADATA: &str = "metadata.json";
/// Attempts to get a directory that others rename or remove at the same moment.
const CLAIMS: usize = 64;
/// Directories of a kind that an attempt may go on with: a checkpoint's, and its base's.
const SPARED: usize = 2;
/// The same of links that were fetched: no chain has more (`chain`).
const MOST_LINKS: usize = 64;

/// What a directory of the cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Checkpoint,
    Delta,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Delta => "delta",
        }
    }
}

/// The directory of a complete checkpoint.
pub fn checkpoint_dir(cache_root: &Path, window: u64) -> PathBuf {
    cache_root.join(format!("checkpoint-{window}"))
}

/// Reads a cached checkpoint's metadata and checks every file of its manifest. `Ok(None)`: not there, or not to be trusted.
/// Hashes every byte; call it where blocking is allowed.
///
/// # Errors
/// [`CheckpointError::Local`] when a file that is there cannot be read.
pub fn verify_dir(dir: &Path) -> Result<Option<Metadata>, CheckpointError> {
    verify(dir, |_| true)
}

/// As [`verify_dir`], but weights are only looked for, not read: for a base whose rebuilt checkpoint is hashed anyway.
pub(super) fn verify_dir_without_weights(dir: &Path) -> Result<Option<Metadata>, CheckpointError> {
    verify(dir, |name| !is_weights(name))
}

fn verify(dir: &Path, hashed: impl Fn(&str) -> bool) -> Result<Option<Metadata>, CheckpointError> {
    let Ok(document) = std::fs::read(dir.join(METADATA)) else { return Ok(None) };
    let Ok(metadata) = Metadata::parse(METADATA, &document) else { return Ok(None) };
    let mut files = metadata.file_manifest.files().peekable();
    if files.peek().is_none() {
        return Ok(None);
    }
    for (name, want) in files {
        let path = dir.join(name);
        if !path.is_file() || (hashed(name) && file_sha256(&path)? != want) {
            return Ok(None);
        }
    }
    Ok(Some(metadata))
}

/// Compares what lies on the disk with the manifest, where `judged` says so. A file that differs is removed, so that the next attempt
/// makes it again.
pub(super) fn verify_on_disk(
    dir: &Path,
    window: u64,
    manifest: &Manifest,
    judged: impl Fn(&str) -> bool,
) -> Result<(), CheckpointError> {
    for (name, want) in manifest.files().filter(|(name, _)| judged(name)) {
        let path = dir.join(name);
        let got = file_sha256(&path)?;
        if got != want {
            std::fs::remove_file(&path).map_err(local(&path))?;
            return Err(CheckpointError::Altered { window, name: name.to_owned(), got, want: want.to_owned() });
        }
    }
    Ok(())
}

/// Whether a file of this name holds weights.
pub(super) fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Removes every complete checkpoint and delta but those of `keep`, and every partial directory, unless a process makes or uses it.
/// Returns what was removed.
///
/// # Errors
/// [`CheckpointError::Local`]; what was removed before stays removed.
pub fn clean(cache_root: &Path, keep: &[u64]) -> Result<Vec<PathBuf>, CheckpointError> {
    remove(disposable(cache_root, keep)?)
}

/// As [`clean`], for attempts that come to nothing: spares what the next one may go on with, and no more of it however often that
/// happens and whatever is published meanwhile. Of each kind that is what was touched last.
///
/// # Errors
/// As [`clean`].
pub fn clean_but_the_last(cache_root: &Path, keep: &[u64]) -> Result<Vec<PathBuf>, CheckpointError> {
    let kinds = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name.starts_with("delta-"), name.ends_with(".partial"))
    };
    let mut all = disposable(cache_root, keep)?;
    all.sort_by_cached_key(|dir| std::cmp::Reverse(touched(dir)));
    let mut kept = HashMap::<_, usize>::new();
    all.retain(|dir| {
        let kind = kinds(dir);
        let count = kept.entry(kind).or_default();
        *count += 1;
        *count > if kind == (true, true) { MOST_LINKS } else { SPARED }
    });
    remove(all)
}

fn remove(dirs: Vec<PathBuf>) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut removed = Vec::new();
    for dir in dirs {
        // The claim lives until it is removed.
        if let Some(_claim) = abandoned(&dir) {
            std::fs::remove_dir_all(&dir).map_err(local(&dir))?;
            removed.push(dir);
        }
    }
    Ok(removed)
}

/// When something in a directory was changed last.
fn touched(dir: &Path) -> Option<SystemTime> {
    let inside = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    inside.chain([dir.to_owned()]).filter_map(|path| path.metadata().and_then(|metadata| metadata.modified()).ok()).max()
}

fn disposable(cache_root: &Path, keep: &[u64]) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(cache_root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(local(cache_root)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(local(cache_root))?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir && is_disposable(&entry.file_name().to_string_lossy(), keep) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_disposable(name: &str, keep: &[u64]) -> bool {
    let Some(rest) = name.strip_prefix("checkpoint-").or_else(|| name.strip_prefix("delta-")) else { return false };
    rest.ends_with(".partial") || plain_number(rest).is_some_and(|window| !keep.contains(&window))
}

/// What changes while anybody makes something in this cache: name, size and time of every file that is being made.
pub(super) fn under_way(cache_root: &Path) -> Vec<(PathBuf, u64, Option<SystemTime>)> {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let partial = entries(cache_root).filter(|path| path.extension().is_some_and(|extension| extension == "partial"));
    let mut files: Vec<_> = partial.flat_map(|dir| entries(&dir).collect::<Vec<_>>()).collect();
    files.sort();
    let told = |path: PathBuf| {
        let metadata = path.metadata().ok();
        let size = metadata.as_ref().map_or(0, std::fs::Metadata::len);
        (path, size, metadata.and_then(|metadata| metadata.modified().ok()))
    };
    files.into_iter().map(told).collect()
}

/// A directory that is being made. What is neither installed nor discarded stays for the next attempt, as after a kill.
pub(super) struct Partial {
    path: PathBuf,
    target: PathBuf,
    /// Where locks work.
    lock: Option<File>,
    /// Whether the next attempt finds it again.
    is_shared: bool,
}

/// What an attempt to make something comes to.
pub(super) enum Taken {
    /// With what an earlier attempt has left. Nothing in it is verified.
    Ours(Partial),
    /// Somebody else is making it.
    Others,
}

impl Partial {
    /// The directory in which everybody makes this, one after the other; where locks do not work, one of its own.
    pub(super) fn shared(cache_root: &Path, kind: Kind, window: u64) -> Result<Taken, CheckpointError> {
        let target = cache_root.join(format!("{}-{window}", kind.name()));
        let path = target.with_extension("partial");
        for _ in 0..CLAIMS {
            std::fs::create_dir_all(&path).map_err(local(&path))?;
            match claim(&path) {
                Ok(Claim::Ours(lock)) => {
                    return Ok(Taken::Ours(Self { path, target, lock: Some(lock), is_shared: true }));
                }
                Ok(Claim::Others) => return Ok(Taken::Others),
                Ok(Claim::Unlockable(error)) => {
                    tracing::warn!(
                        %error,
                        cache = %cache_root.display(),
                        "Locks do not work in the checkpoint cache; a folder of its own is used, and nothing is shared with other processes."
                    );
                    // Empty, unless somebody works there without a lock.
                    let _ = std::fs::remove_dir(&path);
                    return Self::create(cache_root, kind, window).map(Taken::Ours);
                }
                // It has become what it was made for, or was removed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(local(path)(error)),
            }
        }
        Ok(Taken::Others)
    }

    /// An empty directory of its own.
    pub(super) fn create(cache_root: &Path, kind: Kind, window: u64) -> Result<Self, CheckpointError> {
        let target = cache_root.join(format!("{}-{window}", kind.name()));
        std::fs::create_dir_all(cache_root).map_err(local(cache_root))?;
        let mut last = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        for _ in 0..CLAIMS {
            let path = target.with_extension(format!("{:016x}.partial", RandomState::new().hash_one(window)));
            match std::fs::create_dir(&path).and_then(|()| claim(&path)) {
                Ok(Claim::Ours(lock)) => return Ok(Self { path, target, lock: Some(lock), is_shared: false }),
                Ok(Claim::Unlockable(_)) => return Ok(Self { path, target, lock: None, is_shared: false }),
                // Somebody cleans at this very moment, or has the same name.
                Ok(Claim::Others) => {}
                Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::AlreadyExists) => {
                    last = error;
                }
                Err(error) => return Err(local(path)(error)),
            }
        }
        Err(local(target)(last))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    pub(super) fn discard(self) {
        // Best effort: what stays is removed by the next cleaning.
        let _ = std::fs::remove_dir_all(&self.path);
    }

    /// Keeps what is there if another attempt may succeed with it, else removes it. Returns the error.
    pub(super) fn give_up(self, error: CheckpointError) -> CheckpointError {
        // In a folder of its own nobody would look again, and each attempt would leave another.
        if !self.is_shared || !error.may_pass() {
            self.discard();
        }
        error
    }

    /// Removes every file but those named.
    pub(super) fn retain(&self, names: impl Fn(&str) -> bool) -> Result<(), CheckpointError> {
        for entry in std::fs::read_dir(&self.path).map_err(local(&self.path))? {
            let path = entry.map_err(local(&self.path))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !names(&name) {
                std::fs::remove_file(&path).map_err(local(&path))?;
            }
        }
        Ok(())
    }

    /// Makes the directory what it was made for: synced with all its files, which `verify` meanwhile reads from there, renamed over
    /// what is there, and the rename synced. Nothing in it was synced before.
    pub(super) fn install(
        self,
        verify: impl FnOnce(&Path) -> Result<(), CheckpointError>,
    ) -> Result<(PathBuf, Hold), CheckpointError> {
        let path = self.path.as_path();
        let ready = std::thread::scope(|scope| {
            let synced = scope.spawn(|| {
                for entry in std::fs::read_dir(path).map_err(local(path))? {
                    sync(&entry.map_err(local(path))?.path())?;
                }
                sync(path)
            });
            let verified = verify(path);
            verified.and(synced.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        if let Err(error) = ready {
            return Err(self.give_up(error));
        }
        let (target, hold) = self.put()?;
        if let Some(root) = target.parent() {
            sync(root)?;
        }
        Ok((target, hold))
    }

    /// Renames the directory over what is there, unless that is as good: another process may have made the same meanwhile. After a
    /// power failure it may be gone, or empty.
    pub(super) fn put(self) -> Result<(PathBuf, Hold), CheckpointError> {
        let Self { path, target, lock, .. } = self;
        for _ in 0..CLAIMS {
            match std::fs::rename(&path, &target) {
                Ok(()) => {
                    let hold = Hold::after(lock, &target).map_err(local(&target))?;
                    return Ok((target, hold));
                }
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(local(&target)(error)),
            }
            let hold = Hold::on(&target);
            if is_as_good(&target, &path)? {
                // Best effort: what stays is removed by the next cleaning.
                let _ = std::fs::remove_dir_all(&path);
                return Ok((target, hold));
            }
            drop(hold);
            // Out of the way by renaming: a removal takes a while, and half a checkpoint must not have the name of a whole one.
            let aside = path.with_extension(format!("{:016x}.partial", RandomState::new().hash_one(&path)));
            match std::fs::rename(&target, &aside) {
                Ok(()) => std::fs::remove_dir_all(&aside).map_err(local(&aside))?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(local(&target)(error)),
            }
        }
        Err(local(&target)(std::io::ErrorKind::AlreadyExists.into()))
    }
}

fn is_taken(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists)
}

/// Whether `there` is whole, and of the same files as `new`.
fn is_as_good(there: &Path, new: &Path) -> Result<bool, CheckpointError> {
    let manifest = |dir: &Path| {
        let document = std::fs::read(dir.join(METADATA)).ok()?;
        Metadata::parse(METADATA, &document).ok().map(|metadata| metadata.file_manifest)
    };
    match manifest(new) {
        Some(new) if manifest(there).as_ref() == Some(&new) => Ok(verify_dir(there)?.is_some()),
        _ => Ok(false),
    }
}

/// Makes a file durable, or the names in a directory.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(local(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(root: &Path, kind: Kind, window: u64) -> Option<Partial> {
        match Partial::shared(root, kind, window).unwrap() {
            Taken::Ours(partial) => Some(partial),
            Taken::Others => None,
        }
    }

    #[test]
    fn cleaning_keeps_what_is_asked_for_and_what_is_being_made_or_used() {
        let root = tempfile::tempdir().unwrap();
        // The third is of an earlier version, and named after a process that may well be alive: 1 is, in every container.
        let names = [
            "checkpoint-30",
            "checkpoint-60",
            "checkpoint-90.1.00000000.partial",
            "checkpoint-x",
            "delta-30",
            "delta-60",
            "delta-60.partial",
            "other",
        ];
        names.iter().for_each(|name| std::fs::create_dir(root.path().join(name)).unwrap());
        let used = Hold::on(&root.path().join("delta-30"));
        let filling =
            (ours(root.path(), Kind::Checkpoint, 120).unwrap(), Partial::create(root.path(), Kind::Delta, 120).unwrap());
        clean(root.path(), &[60]).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        let names = ["checkpoint-60", "checkpoint-x", "delta-30", "delta-60", "other"];
        let mut want: Vec<_> = names.iter().map(|name| root.path().join(name)).collect();
        want.extend([filling.0.path().to_owned(), filling.1.path().to_owned()]);
        want.sort();
        assert_eq!(left, want);
        drop((used, filling));
        clean(root.path(), &[60]).unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 4);
        assert!(clean(&root.path().join("absent"), &[]).unwrap().is_empty());
    }

    #[test]
    fn attempts_that_fail_leave_no_more_however_many_there_are() {
        let root = tempfile::tempdir().unwrap();
        let passes = || CheckpointError::Altered { window: 1, name: "half".into(), got: String::new(), want: String::new() };
        assert!(passes().may_pass());
        let names = || {
            let entries = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = entries.collect();
            names.sort();
            names
        };
        // In folders of their own, where locks do not work, the next attempt would not find them.
        for _ in 0..3 {
            let own = Partial::create(root.path(), Kind::Checkpoint, 30).unwrap();
            std::fs::write(own.path().join("half"), "").unwrap();
            own.give_up(passes());
        }
        assert_eq!(names(), [""; 0]);
        // A checkpoint after the other is published, and none can be used: some come to nothing, some are whole.
        let touch = |path: &Path, second: u64| {
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
            File::open(path).unwrap().set_modified(time).unwrap();
        };
        // Somebody uses it, so it stays.
        let old = checkpoint_dir(root.path(), 30);
        std::fs::create_dir(&old).unwrap();
        touch(&old, 30);
        let used = Hold::on(&old);
        for window in (60..=300).step_by(30) {
            let partial = ours(root.path(), Kind::Checkpoint, window).unwrap();
            touch(partial.path(), window);
            let path = partial.path().to_owned();
            partial.give_up(passes());
            assert!(path.exists(), "the next attempt goes on with it");
            let whole = checkpoint_dir(root.path(), window + 1);
            std::fs::create_dir(&whole).unwrap();
            touch(&whole, window);
            clean_but_the_last(root.path(), &[1]).unwrap();
        }
        let want = ["checkpoint-270.partial", "checkpoint-271", "checkpoint-30", "checkpoint-300.partial", "checkpoint-301"];
        assert_eq!(names(), want);
        drop(used);
    }

    #[test]
    fn what_was_left_is_gone_on_with_by_one_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let left = ours(root.path(), Kind::Checkpoint, 150).unwrap();
        std::fs::write(left.path().join("half"), "").unwrap();
        assert!(ours(root.path(), Kind::Checkpoint, 150).is_none(), "its maker lives");
        drop(left);
        let found = ours(root.path(), Kind::Checkpoint, 150).unwrap();
        assert!(found.path().join("half").exists());
        let (_, hold) = found.put().unwrap();
        let next = ours(root.path(), Kind::Checkpoint, 150).unwrap();
        assert!(!next.path().join("half").exists(), "what was made is not being made any more");
        // Another one in its place is used by somebody, and still is replaced: it is not what this one is.
        std::fs::write(next.path().join("other"), "").unwrap();
        let (target, _) = next.put().unwrap();
        assert!(target.join("other").exists() && !target.join("half").exists());
        drop(hold);
    }
}
