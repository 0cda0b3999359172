//! The few file operations that the spool is made of, so that tests can lose power between any two of them.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

/// A file in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its size in bytes; of a folder, anything.
    pub bytes: u64,
}

/// What a disk can do. Nothing is durable unless the operation says so.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Makes a folder; one that exists is fine. Its name is durable once its parent is synced.
    ///
    /// # Errors
    /// The operating system's.
    fn make_folder(&self, path: &Path) -> io::Result<()>;
    /// Creates a file, or replaces its content. Afterwards the content is durable, the name only once the folder is synced.
    ///
    /// # Errors
    /// The operating system's; then the file may hold anything.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Gives a file another name in the same folder, in one step, replacing what has that name.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// The operating system's.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Reads a file of at most `limit` bytes.
    ///
    /// # Errors
    /// The operating system's, or that the file is larger.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// What is in a folder, in any order. Names that are not UTF-8 are left out: the spool makes none.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;
    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
}

/// Replaces a file in one step, durably: after `Ok` the new content survives a crash, after an error or a crash in between
/// the file holds the old content or the new, never a part.
///
/// # Errors
/// The operating system's.
pub fn replace(disk: &dyn Disk, folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let beside = folder.join(format!("{name}{BESIDE}"));
    let written = disk.write(&beside, bytes);
    grail_supervision::failpoint::pass_blocking("spooling");
    let replaced = written.and_then(|()| disk.rename(&beside, &folder.join(name)));
    if let Err(error) = replaced {
        // A half-written file on a full disk takes the space that the next attempt needs.
        let _ = disk.remove_file(&beside);
        return Err(error);
    }
    disk.sync_folder(folder)
}

/// Ending of a file that is being written beside the one it will replace.
pub const BESIDE: &str = ".new";

/// The machine's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSystem;

impl Disk for FileSystem {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = fs::File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {limit} bytes")));
        }
        Ok(bytes)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(Entry { name, bytes: entry.metadata().map_or(0, |metadata| metadata.len()) });
            }
        }
        Ok(entries)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }
}
