//! Whose a directory of the cache is: his who holds its lock, which the kernel drops with its holder. A pid would not tell: each
//! container counts its own, from 1 on, and several may share one cache.
//!
//! ```text
//!  exclusive   it is being made, or removed
//!  shared      it is complete, and somebody uses it
//!  no lock     nobody's: whoever wants it may go on with it, or remove it
//! ```
//!
//! A lock is the directory's own, so it goes with it through a renaming.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use grail_process::clock;

/// Age from which a directory is taken for abandoned where locks do not work, by the newest change of what is in it.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Looks at a directory that somebody removes or has just made, and the pause between two.
const LOOKS: (u32, Duration) = (50, Duration::from_millis(100));

/// What an attempt to own a directory comes to.
#[derive(Debug)]
pub(super) enum Claim {
    /// Nobody else's, for as long as this lives.
    Ours(File),
    /// Somebody makes it, or uses it.
    Others,
    /// Locks do not work here, for this reason.
    Unlockable(io::Error),
}

/// Tries to own a directory.
pub(super) fn claim(dir: &Path) -> io::Result<Claim> {
    let file = File::open(dir)?;
    match file.try_lock() {
        Ok(()) if is_at(&file, dir) => Ok(Claim::Ours(file)),
        // Renamed or removed between the opening and the lock.
        Ok(()) => Err(io::ErrorKind::NotFound.into()),
        Err(TryLockError::WouldBlock) => Ok(Claim::Others),
        Err(TryLockError::Error(error)) => Ok(Claim::Unlockable(error)),
    }
}

/// Whether nobody has use for a directory: it may be removed while the claim lives.
pub(super) fn abandoned(dir: &Path) -> Option<Claim> {
    match claim(dir).ok()? {
        Claim::Others => None,
        claim @ Claim::Ours(_) => Some(claim),
        claim @ Claim::Unlockable(_) => is_old(dir).then_some(claim),
    }
}

fn is_old(dir: &Path) -> bool {
    let inside = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    inside.chain([dir.to_owned()]).all(|path| {
        let modified = path.metadata().and_then(|metadata| metadata.modified());
        modified.is_ok_and(|time| clock::system().duration_since(time).is_ok_and(|age| age > ABANDONED))
    })
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (held, there) = (file.metadata().map(identity), path.metadata().map(identity));
    held.is_ok_and(|held| there.is_ok_and(|there| held == there))
}

/// Directories that are in use: no process removes them while this lives, where locks work.
#[derive(Clone, Debug, Default)]
pub struct Hold(Vec<Arc<File>>);

/// It is no part of what a checkpoint is.
impl PartialEq for Hold {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Hold {
    /// Of a complete directory. Whoever removes it just now, or has just made it, is waited for.
    pub(super) fn on(dir: &Path) -> Self {
        for _ in 0..LOOKS.0 {
            let Ok(file) = File::open(dir) else { break };
            match file.try_lock_shared() {
                Ok(()) => return Self(vec![Arc::new(file)]),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOKS.1),
                Err(TryLockError::Error(_)) => break,
            }
        }
        // Without: no worse than a directory that is removed between two looks, which every reader bears.
        Self::default()
    }

    /// Of a directory that was made under the exclusive lock `maker`, and renamed to `dir` since.
    pub(super) fn after(maker: Option<File>, dir: &Path) -> io::Result<Self> {
        let Some(file) = maker else { return Ok(Self::default()) };
        file.lock_shared()?;
        // In between somebody may have taken it for nobody's.
        if is_at(&file, dir) { Ok(Self(vec![Arc::new(file)])) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Both.
    #[must_use]
    pub(super) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_its_makers_then_its_users_and_then_nobodys() {
        let root = tempfile::tempdir().unwrap();
        let (partial, whole) = (root.path().join("partial"), root.path().join("whole"));
        std::fs::create_dir(&partial).unwrap();
        let Ok(Claim::Ours(maker)) = claim(&partial) else { panic!("nobody has it") };
        assert!(matches!(claim(&partial), Ok(Claim::Others)), "within one process too");
        assert!(abandoned(&partial).is_none());
        std::fs::rename(&partial, &whole).unwrap();
        assert!(matches!(claim(&whole), Ok(Claim::Others)), "the lock goes with it");
        let hold = Hold::after(Some(maker), &whole).unwrap().and(Hold::on(&whole));
        assert!(abandoned(&whole).is_none());
        drop(hold);
        assert!(matches!(abandoned(&whole), Some(Claim::Ours(_))));
        assert!(claim(&partial).is_err(), "there is none");
        let stale = File::open(&whole).unwrap();
        stale.try_lock().unwrap();
        std::fs::remove_dir(&whole).unwrap();
        assert!(Hold::after(Some(stale), &whole).is_err());
    }
}
