//! Checkpoints on disk (grail-checkpoints 4 and 9): `checkpoint-<W>` when complete and verified,
//! `checkpoint-<W>.<pid>.<8 hex>.partial` while being made.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use grail_process::clock;

use super::error::local;
use super::keys::plain_number;
use super::weights::file_sha256;
use super::{CheckpointError, Metadata};

/// Metadata file of a cached checkpoint.
pub(super) const METADATA: &str = "metadata.json";
/// Age from which a partial directory that names no process is taken for abandoned.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Partial directories that this process is filling. Process ids repeat, in containers with every start, so the id alone
/// cannot tell this life's directories from those of a former one.
static FILLING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

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
    let Ok(document) = std::fs::read(dir.join(METADATA)) else { return Ok(None) };
    let Ok(metadata) = Metadata::parse(METADATA, &document) else { return Ok(None) };
    let mut files = metadata.file_manifest.files().peekable();
    if files.peek().is_none() {
        return Ok(None);
    }
    for (name, want) in files {
        let path = dir.join(name);
        if !path.is_file() || file_sha256(&path)? != want {
            return Ok(None);
        }
    }
    Ok(Some(metadata))
}

/// Removes every complete checkpoint but those of `keep`, and the partial directories of processes that no longer live.
/// Returns what was removed.
///
/// # Errors
/// [`CheckpointError::Local`]; what was removed before stays removed.
pub fn clean(cache_root: &Path, keep: &[u64]) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut removed = Vec::new();
    let entries = match std::fs::read_dir(cache_root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(local(cache_root)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(local(cache_root))?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_dir && is_disposable(&entry.path(), &name, keep) {
            std::fs::remove_dir_all(entry.path()).map_err(local(entry.path()))?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

fn is_disposable(path: &Path, name: &str, keep: &[u64]) -> bool {
    let Some(rest) = name.strip_prefix("checkpoint-").or_else(|| name.strip_prefix("delta-")) else { return false };
    if let Some(partial) = rest.strip_suffix(".partial") {
        return is_abandoned(path, partial);
    }
    name.starts_with("checkpoint-") && plain_number(rest).is_some_and(|window| !keep.contains(&window))
}

fn is_abandoned(path: &Path, partial: &str) -> bool {
    match partial.split('.').nth(1).and_then(plain_number) {
        Some(pid) if pid == u64::from(std::process::id()) => {
            !FILLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(path)
        }
        Some(pid) => !Path::new("/proc").join(pid.to_string()).exists(),
        None => {
            let modified = path.metadata().and_then(|metadata| metadata.modified());
            modified.is_ok_and(|time| clock::system().duration_since(time).is_ok_and(|age| age > ABANDONED))
        }
    }
}

/// A directory that is removed again unless it is installed.
pub(super) struct Partial {
    path: PathBuf,
    target: PathBuf,
}

impl Partial {
    pub(super) fn create(cache_root: &Path, window: u64) -> Result<Self, CheckpointError> {
        let unique = RandomState::new().hash_one(window) as u32;
        let name = format!("checkpoint-{window}.{}.{unique:08x}.partial", std::process::id());
        let partial = Self { path: cache_root.join(name), target: checkpoint_dir(cache_root, window) };
        // Registered before it exists, so that `clean` can never see it unregistered.
        FILLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(partial.path.clone());
        std::fs::create_dir_all(&partial.path).map_err(local(&partial.path))?;
        Ok(partial)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory the checkpoint: synced, renamed over what is there, and the rename synced.
    pub(super) fn install(self) -> Result<PathBuf, CheckpointError> {
        sync_dir(&self.path)?;
        if self.target.exists() {
            std::fs::remove_dir_all(&self.target).map_err(local(&self.target))?;
        }
        std::fs::rename(&self.path, &self.target).map_err(local(&self.target))?;
        if let Some(root) = self.target.parent() {
            sync_dir(root)?;
        }
        Ok(self.target.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `install` there is nothing under this name any more.
        let _ = std::fs::remove_dir_all(&self.path);
        FILLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&self.path);
    }
}

/// Makes names in `dir` durable.
fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(local(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_keeps_what_is_asked_for_and_what_is_being_made() {
        let root = tempfile::tempdir().unwrap();
        let mine = format!("checkpoint-90.{}.00000000.partial", std::process::id());
        for name in ["checkpoint-30", "checkpoint-60", "checkpoint-x", "checkpoint-90.4194305.0a.partial", &mine, "other"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let filling = Partial::create(root.path(), 120).unwrap();
        clean(root.path(), &[60]).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        let mut want = vec![root.path().join("checkpoint-60"), root.path().join("checkpoint-x"), root.path().join("other")];
        want.push(filling.path().to_owned());
        want.sort();
        assert_eq!(left, want);
        drop(filling);
        assert!(clean(&root.path().join("absent"), &[]).unwrap().is_empty());
    }
}
