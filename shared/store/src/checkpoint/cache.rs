//! Checkpoints on disk (grail-checkpoints 4 and 9).
//!
//! ```text
//!  checkpoint-<W>.<pid>.<8 hex>.partial   being made; of a process that ended, the next one goes on with it
//!  checkpoint-<W>                         complete and verified
//!  delta-<W>.<pid>.<8 hex>.partial        the links of a chain while they are fetched
//!  delta-<W>                              what changed on the way to checkpoint W, for workers that hold the one before
//! ```
//!
//! Names change by renaming only, after everything below them is on the disk, so a process may end at any moment.

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

/// Whether a file of this name holds weights.
pub(super) fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Removes every complete checkpoint and delta but those of `keep`, and the partial directories of processes that no longer live.
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
    plain_number(rest).is_some_and(|window| !keep.contains(&window))
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

/// A directory that is being made. What is neither installed nor discarded stays for the next attempt, as after a kill.
pub(super) struct Partial {
    path: PathBuf,
    target: PathBuf,
}

impl Partial {
    /// An empty directory.
    pub(super) fn create(cache_root: &Path, kind: Kind, window: u64) -> Result<Self, CheckpointError> {
        let partial = Self::named(cache_root, kind, window);
        std::fs::create_dir_all(&partial.path).map_err(local(&partial.path))?;
        Ok(partial)
    }

    /// What an earlier attempt for the same checkpoint has left, or an empty directory. Taking it over is a renaming, so of
    /// two processes one gets it. Nothing in it is verified.
    pub(super) fn resume(cache_root: &Path, kind: Kind, window: u64) -> Result<Self, CheckpointError> {
        let prefix = format!("{}-{window}.", kind.name());
        let partial = Self::named(cache_root, kind, window);
        for entry in std::fs::read_dir(cache_root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let rest = name.strip_suffix(".partial").filter(|rest| rest.starts_with(&prefix));
            if rest.is_some_and(|rest| is_abandoned(&entry.path(), rest)) && std::fs::rename(entry.path(), &partial.path).is_ok()
            {
                return Ok(partial);
            }
        }
        std::fs::create_dir_all(&partial.path).map_err(local(&partial.path))?;
        Ok(partial)
    }

    fn named(cache_root: &Path, kind: Kind, window: u64) -> Self {
        let unique = RandomState::new().hash_one(window) as u32;
        let target = cache_root.join(format!("{}-{window}", kind.name()));
        let path = cache_root.join(format!("{}-{window}.{}.{unique:08x}.partial", kind.name(), std::process::id()));
        // Registered before it exists, so that `clean` can never see it unregistered.
        FILLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(path.clone());
        Self { path, target }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    pub(super) fn discard(self) {
        // Best effort: what stays is removed by the next cleaning.
        let _ = std::fs::remove_dir_all(&self.path);
    }

    /// Keeps what is there if another attempt may succeed, else removes it. Returns the error.
    pub(super) fn give_up(self, error: CheckpointError) -> CheckpointError {
        if !error.may_pass() {
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

    /// Makes the directory what it was made for: synced with all its files, renamed over what is there, and the rename synced.
    /// Nothing in it was synced before.
    pub(super) fn install(self) -> Result<PathBuf, CheckpointError> {
        for entry in std::fs::read_dir(&self.path).map_err(local(&self.path))? {
            sync(&entry.map_err(local(&self.path))?.path())?;
        }
        sync(&self.path)?;
        let target = self.put()?;
        if let Some(root) = target.parent() {
            sync(root)?;
        }
        Ok(target)
    }

    /// Renames the directory over what is there. After a power failure it may be gone, or empty.
    pub(super) fn put(self) -> Result<PathBuf, CheckpointError> {
        if self.target.exists() {
            // Out of the way by renaming: a removal takes a while, and half a checkpoint must not have the name of a whole one.
            let aside = self.path.with_extension("replaced.partial");
            std::fs::rename(&self.target, &aside).map_err(local(&self.target))?;
            std::fs::rename(&self.path, &self.target).map_err(local(&self.target))?;
            std::fs::remove_dir_all(&aside).map_err(local(&aside))?;
        } else {
            std::fs::rename(&self.path, &self.target).map_err(local(&self.target))?;
        }
        Ok(self.target.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        FILLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&self.path);
    }
}

/// Makes a file durable, or the names in a directory.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(local(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_keeps_what_is_asked_for_and_what_is_being_made_or_gone_on_with() {
        let root = tempfile::tempdir().unwrap();
        let mine = format!("checkpoint-90.{}.00000000.partial", std::process::id());
        for name in [
            "checkpoint-30",
            "checkpoint-60",
            "checkpoint-x",
            "checkpoint-90.4194305.0a.partial",
            "delta-30",
            "delta-60",
            "delta-60.4194305.0a.partial",
            &mine,
            "other",
        ] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let filling = Partial::create(root.path(), Kind::Checkpoint, 120).unwrap();
        clean(root.path(), &[60]).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        let names = ["checkpoint-60", "checkpoint-x", "delta-60", "other"];
        let mut want: Vec<_> = names.iter().map(|name| root.path().join(name)).collect();
        want.push(filling.path().to_owned());
        want.sort();
        assert_eq!(left, want);
        filling.discard();
        let left = Partial::create(root.path(), Kind::Checkpoint, 150).unwrap();
        std::fs::write(left.path().join("half"), "").unwrap();
        drop(left);
        let found = Partial::resume(root.path(), Kind::Checkpoint, 150).unwrap();
        assert!(found.path().join("half").exists(), "what was kept is gone on with");
        let other = Partial::resume(root.path(), Kind::Checkpoint, 150).unwrap();
        assert!(!other.path().join("half").exists(), "by one only");
        assert!(clean(&root.path().join("absent"), &[]).unwrap().is_empty());
    }
}
