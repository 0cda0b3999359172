//! Complete groups on disk, durable before they count, and what it takes to go on with them after a crash.
//!
//! ```text
//!  spool/<window>/group-<index>.record   sixteen signed rows, encoded as one row group of the window's file
//!                 next-index.record      bound of the problem indices that may have been used
//!                 window.record          what the rows are judged by, so that they can be uploaded when nothing else comes up
//!                 sending.record         the file that is about to be sent: from here on the bucket may hold it
//!                 uploaded.record        the file that the bucket holds
//! ```
//!
//! Every file is written beside, flushed, renamed, and its folder flushed. A window's folder stays until the next window is
//! opened: a supervisor that is started again within the window goes on with all of it.

mod disk;
mod indices;
mod record;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use disk::{Disk, Entry, FileSystem};
pub use indices::Indices;
pub use record::{GroupHeader, GroupRecord, MAX_RECORD, RecordError, seal, unseal};

const ENDING: &str = ".record";
const GROUP: &str = "group-";
const INDEX: &str = "next-index.record";
const SHEET: &str = "window.record";
const SENDING: &str = "sending.record";
const UPLOADED: &str = "uploaded.record";

/// Why a group could not be kept or found again.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The disk refused.
    #[error("the spool {path:?} cannot be {doing}: {source}; check the disk's free space and permissions")]
    Disk {
        /// File or folder.
        path: PathBuf,
        /// `written`, `read` or `removed`.
        doing: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The spool may not grow further.
    #[error("the spool would hold {wanted} bytes and may hold {budget}; raise spool.budget_mib or free the disk")]
    Budget {
        /// Bytes with the group.
        wanted: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// A file that cannot be used.
    #[error("the spooled file {path:?} cannot be used: {why}")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: RecordError,
    },
}

/// What the rows of a window are judged by where chain and checkpoint cannot be asked any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSheet {
    /// Hash of the window's first block, with `0x`.
    pub block_hash: String,
    /// Window of the checkpoint.
    pub checkpoint_window: u64,
    /// Vocabulary of its model.
    pub vocab_size: u32,
    /// Longest sequence of its model.
    pub max_positions: u32,
    /// Unix seconds after which an upload is ignored.
    pub deadline: f64,
}

impl WindowSheet {
    /// Whether rows are judged alike by both: the deadline may be known better later.
    pub fn judges_like(&self, other: &Self) -> bool {
        *self == Self { deadline: self.deadline, ..other.clone() }
    }
}

/// A file of this window that is in the bucket, or on its way there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uploaded {
    /// Groups it holds.
    pub groups: usize,
    /// Its bytes.
    pub bytes: u64,
    /// Its SHA-256, hex.
    pub sha256: String,
}

/// A past window whose groups are not known to be uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expired {
    /// First block.
    pub window: u64,
    /// Its groups.
    pub groups: usize,
    /// Whether the file was being sent when the run ended.
    pub sending: bool,
}

/// What an earlier run of this window left.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Left {
    /// Problem indices below this may have been used; `None` when that cannot be told any more.
    pub next_index: Option<i64>,
    /// Indices of the groups that have a file, ascending.
    pub groups: Vec<i64>,
    /// What they are judged by.
    pub sheet: Option<WindowSheet>,
    /// What is in the bucket already.
    pub uploaded: Option<Uploaded>,
    /// What was being sent last; only the bucket knows whether it is there.
    pub sending: Option<Uploaded>,
    /// Earlier windows that nobody said to be uploaded.
    pub lost: Vec<Expired>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NextIndex {
    next_index: i64,
}

/// The groups of one window.
#[derive(Debug)]
pub struct Spool {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    wallet: String,
    window: u64,
    budget: u64,
    used: AtomicU64,
}

impl Spool {
    /// Opens the window's folder, removes those of earlier windows but of `sending`, whose files are still on their way, and says
    /// what is there. `budget` bounds the groups' bytes.
    ///
    /// # Errors
    /// When the folder cannot be made or read. What cannot be removed costs disk and is told, but costs no window.
    pub fn open(
        disk: Arc<dyn Disk>,
        root: &Path,
        wallet: &str,
        window: u64,
        sending: &[u64],
        budget: u64,
    ) -> Result<(Self, Left), SpoolError> {
        let folder = root.join(window.to_string());
        for (folder, parent) in [(root, root.parent()), (&folder, Some(root))] {
            disk.make_folder(folder).map_err(failed(folder, "written"))?;
            let parent = parent.unwrap_or(Path::new("/"));
            disk.sync_folder(parent).map_err(failed(parent, "written"))?;
        }
        let spool = Self { disk, folder, wallet: wallet.to_owned(), window, budget, used: AtomicU64::new(0) };
        let mut left = spool.look()?;
        left.lost = spool.retire_others(root, sending)?;
        Ok((spool, left))
    }

    fn look(&self) -> Result<Left, SpoolError> {
        let entries = self.disk.list(&self.folder).map_err(failed(&self.folder, "read"))?;
        let mut left = Left::default();
        for entry in entries {
            if entry.name.ends_with(disk::BESIDE) {
                let _ = self.disk.remove_file(&self.folder.join(&entry.name));
            } else if let Some(index) = index_of(&entry.name) {
                self.used.fetch_add(entry.bytes, Ordering::Relaxed);
                left.groups.push(index);
            }
        }
        left.groups.sort_unstable();
        let after_groups = left.groups.last().map_or(0, |last| last.saturating_add(1));
        // The bound is the one note that something depends on alone: absent is 0, unusable is unknown.
        left.next_index = match self.note::<NextIndex>(INDEX) {
            Ok(note) => Some(note.map_or(0, |note| note.next_index).max(after_groups)),
            Err(why) => {
                tracing::error!(%why, "Which problem indices were used cannot be told.");
                None
            }
        };
        left.sheet = self.note(SHEET).unwrap_or_default();
        left.uploaded = self.note(UPLOADED).unwrap_or_default();
        left.sending = self.note(SENDING).unwrap_or_default();
        Ok(left)
    }

    /// Removes the folders of other windows; their deadlines are over. Those that were not uploaded are named.
    fn retire_others(&self, root: &Path, sending: &[u64]) -> Result<Vec<Expired>, SpoolError> {
        let mut lost = Vec::new();
        for entry in self.disk.list(root).map_err(failed(root, "read"))? {
            let Some(window) =
                entry.name.parse::<u64>().ok().filter(|window| *window != self.window && !sending.contains(window))
            else {
                continue;
            };
            let folder = root.join(&entry.name);
            let files = self.disk.list(&folder).unwrap_or_default();
            let groups = files.iter().filter(|file| index_of(&file.name).is_some()).count();
            let has = |name: &str| files.iter().any(|file| file.name == name);
            if groups > 0 && !has(UPLOADED) {
                lost.push(Expired { window, groups, sending: has(SENDING) });
            }
            if let Err(error) = self.remove(&folder, &files) {
                tracing::warn!(%error, path = %folder.display(), "A past window's spool cannot be removed.");
            }
        }
        lost.sort_unstable();
        Ok(lost)
    }

    /// The notes of the upload go last, so that a crash in between does not make a loss of it.
    fn remove(&self, folder: &Path, files: &[Entry]) -> std::io::Result<()> {
        let (notes, others): (Vec<_>, Vec<_>) = files.iter().partition(|file| [SENDING, UPLOADED].contains(&file.name.as_str()));
        for files in [others, notes] {
            for file in files {
                self.disk.remove_file(&folder.join(&file.name))?;
            }
            self.disk.sync_folder(folder)?;
        }
        self.disk.remove_folder(folder)
    }

    /// Makes one group durable.
    ///
    /// # Errors
    /// When the budget is used up or the disk refuses; then the group is not on disk, or not for certain.
    pub fn put(&self, group: &GroupRecord) -> Result<(), SpoolError> {
        let path = self.path_of(group.header.index);
        let bytes = group.encode().map_err(|why| SpoolError::Record { path: path.clone(), why })?;
        let size = bytes.len() as u64;
        let wanted = self.used.fetch_add(size, Ordering::Relaxed) + size;
        let written = if wanted > self.budget {
            Err(SpoolError::Budget { wanted, budget: self.budget })
        } else {
            disk::replace(self.disk.as_ref(), &self.folder, &file_name(group.header.index), &bytes)
                .map_err(failed(&path, "written"))
        };
        match written {
            Ok(()) => crate::failpoint::durable(self.window, group.header.index),
            Err(_) => drop(self.used.fetch_sub(size, Ordering::Relaxed)),
        }
        written
    }

    /// Reads one group back.
    ///
    /// # Errors
    /// When it is not there, torn, or of another wallet, window or index.
    pub fn group(&self, index: i64) -> Result<GroupRecord, SpoolError> {
        let path = self.path_of(index);
        let unusable = |why| SpoolError::Record { path: path.clone(), why };
        let bytes = self.disk.read(&path, MAX_RECORD).map_err(failed(&path, "read"))?;
        let record = GroupRecord::decode(&Bytes::from(bytes)).map_err(unusable)?;
        let GroupHeader { wallet, window, index: found, .. } = &record.header;
        if (wallet, *window, *found) == (&self.wallet, self.window, index) {
            Ok(record)
        } else {
            Err(unusable(RecordError::Foreign(format!("it is group {found} of window {window} of {wallet}"))))
        }
    }

    /// Takes one group out for good: what must not be uploaded must not come back after a crash.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn discard(&self, index: i64) -> Result<(), SpoolError> {
        let path = self.path_of(index);
        let removed = self.disk.remove_file(&path).and_then(|()| self.disk.sync_folder(&self.folder));
        removed.map_err(failed(&path, "removed"))
    }

    /// Makes the bound of the used problem indices durable.
    ///
    /// # Errors
    /// When the disk refuses; then no index up to it may be used.
    pub fn reserve(&self, next_index: i64) -> Result<(), SpoolError> {
        self.write_note(INDEX, &NextIndex { next_index })
    }

    /// Makes durable what the rows are judged by.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn keep_sheet(&self, sheet: &WindowSheet) -> Result<(), SpoolError> {
        self.write_note(SHEET, sheet)
    }

    /// Makes durable which file may be in the bucket from now on.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn mark_sending(&self, sending: &Uploaded) -> Result<(), SpoolError> {
        self.write_note(SENDING, sending)
    }

    /// Makes durable that a file is in the bucket.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn mark_uploaded(&self, uploaded: &Uploaded) -> Result<(), SpoolError> {
        self.write_note(UPLOADED, uploaded)
    }

    /// Forgets what was sent and uploaded of this window: it was taken out of the bucket.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget_sent(&self) -> Result<(), SpoolError> {
        for name in [SENDING, UPLOADED] {
            let path = self.folder.join(name);
            match self.disk.remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, "removed")(error)),
                _ => {}
            }
        }
        self.disk.sync_folder(&self.folder).map_err(failed(&self.folder, "removed"))
    }

    fn write_note(&self, name: &str, note: &impl Serialize) -> Result<(), SpoolError> {
        let path = self.folder.join(name);
        let bytes = seal(note, &[]).map_err(|why| SpoolError::Record { path: path.clone(), why })?;
        disk::replace(self.disk.as_ref(), &self.folder, name, &bytes).map_err(failed(&path, "written"))
    }

    fn note<Note: DeserializeOwned>(&self, name: &str) -> Result<Option<Note>, SpoolError> {
        let path = self.folder.join(name);
        match self.disk.read(&path, MAX_RECORD) {
            Ok(bytes) => unseal(&bytes).map(|(note, _)| Some(note)).map_err(|why| SpoolError::Record { path, why }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SpoolError::Disk { path, doing: "read", source }),
        }
    }

    fn path_of(&self, index: i64) -> PathBuf {
        self.folder.join(file_name(index))
    }
}

fn file_name(index: i64) -> String {
    format!("{GROUP}{index:07}{ENDING}")
}

fn index_of(name: &str) -> Option<i64> {
    let digits = name.strip_prefix(GROUP)?.strip_suffix(ENDING)?;
    digits.parse().ok().filter(|index| *index >= 0 && file_name(*index) == name)
}

fn failed<'a>(path: &'a Path, doing: &'static str) -> impl Fn(std::io::Error) -> SpoolError + 'a {
    move |source| SpoolError::Disk { path: path.into(), doing, source }
}
