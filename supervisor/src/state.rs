//! The state folder: one supervisor at a time, and where everything lies in it.

use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use grail_link::MAX_SOCKET_PATH;

use crate::exit::Failure;
use crate::settings::{ConfigError, ConfigErrors};

/// The state folder, locked for as long as this value lives.
#[derive(Debug)]
pub struct StateFolder {
    root: PathBuf,
    /// Released by the kernel when the process ends in any way.
    _lock: std::fs::File,
}

impl StateFolder {
    /// Creates the folder where it is missing and takes its lock.
    ///
    /// # Errors
    /// When another supervisor holds the lock, or the folder cannot be used.
    pub fn lock(root: &Path) -> Result<Self, Failure> {
        check_socket_path(root)?;
        let unusable = |error: std::io::Error| Failure::Unavailable(format!("the state folder {root:?} cannot be used: {error}"));
        std::fs::create_dir_all(root).map_err(unusable)?;
        let root = root.canonicalize().map_err(unusable)?;
        let path = root.join("lock");
        let mut file =
            std::fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(unusable)?;
        if file.try_lock().is_err() {
            let mut holder = String::new();
            let _ = file.take(20).read_to_string(&mut holder);
            return Err(Failure::Locked(format!(
                "the state folder {root:?} belongs to a running supervisor (pid {}); stop it, or give this one a state.folder of its own",
                holder.trim()
            )));
        }
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id())).map_err(unusable)?;
        Ok(Self { root, _lock: file })
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
        self.root.join("run")
    }

    /// Complete groups of the window that is being mined.
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// What happened.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// Copies of the last window files.
    pub fn windows(&self) -> PathBuf {
        self.root.join("windows")
    }
}

/// Refuses, before anything is made, a folder whose socket paths the operating system could not bind.
fn check_socket_path(root: &Path) -> Result<(), Failure> {
    let absolute = std::path::absolute(root).map_err(|error| Failure::internal("resolve the state folder", error))?;
    let longest = absolute.join("run").join("generation.sock");
    let length = longest.as_os_str().len();
    if length <= MAX_SOCKET_PATH {
        return Ok(());
    }
    Err(Failure::Configuration(ConfigErrors(vec![ConfigError {
        key: "state.folder".into(),
        value: Some(format!("{absolute:?}")),
        origin: None,
        reason: format!(
            "is too long: the socket {longest:?} has {length} bytes and the operating system allows {MAX_SOCKET_PATH}; choose a shorter folder"
        ),
    }])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_supervisor_is_refused_with_the_pid_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFolder::lock(folder.path()).unwrap();
        assert!(StateFolder::is_locked(folder.path()));
        let error = StateFolder::lock(folder.path()).unwrap_err();
        assert_eq!(error.code(), 75);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        assert!(!StateFolder::is_locked(folder.path()));
        StateFolder::lock(folder.path()).unwrap();
    }

    #[test]
    fn long_folders_are_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(100));
        assert_eq!(StateFolder::lock(&long).unwrap_err().code(), 64);
        assert!(!long.exists());
    }
}
