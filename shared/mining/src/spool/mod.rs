//! Complete groups on disk, durable before they count, and what it takes to go on with them after a crash.
//!
//! ```text
//!  spool/<window>/group-<index>.record   sixteen signed rows, encoded as one row group of the window's file
//!                 next-index.record      bound of the problem indices that may have been used
//!                 window.record          what the rows are judged by, so that they can be uploaded when nothing else comes up
//!                 sending.record         the file that is about to be sent: from here on the bucket may hold it
//!                 uploaded.record        the file that the bucket holds
//!                 growing.record         the multipart upload by which the file leaves while the window runs
//!                 condemned.record       groups that are not believed, and files that must be taken out of the bucket
//! ```
//!
//! Every file is written beside, flushed, renamed, and its folder flushed. A window's folder stays until the next window is
//! opened: a supervisor that is started again within the window goes on with all of it. What was sent stays while it may have to
//! be withdrawn.

mod condemned;
mod disk;
mod indices;
mod record;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use condemned::{Condemned, CondemnedFile, Verdict};
pub use disk::{Disk, Entry, FileSystem};
pub use indices::Indices;
pub use record::{GroupHeader, GroupRecord, MAX_RECORD, RecordError, seal, unseal};

const ENDING: &str = ".record";
const GROUP: &str = "group-";
const INDEX: &str = "next-index.record";
const SHEET: &str = "window.record";
const SENDING: &str = "sending.record";
const UPLOADED: &str = "uploaded.record";
const GROWING: &str = "growing.record";
const CONDEMNED: &str = "condemned.record";
/// What is needed of a window whose file may have to be withdrawn.
const OF_THE_FILE: [&str; 3] = [SENDING, UPLOADED, CONDEMNED];

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
pub struct WindowRecord {
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

impl WindowRecord {
    /// Whether rows are judged alike by both: the deadline may be known better later.
    pub fn judges_like(&self, other: &Self) -> bool {
        *self == Self { deadline: self.deadline, ..other.clone() }
    }
}

/// A window's file that is in the bucket, or on its way there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uploaded {
    /// Its object key.
    pub key: String,
    /// Groups it holds.
    pub groups: usize,
    /// Its bytes.
    pub bytes: u64,
    /// Its SHA-256, hex.
    pub sha256: String,
    /// What its rows are judged by.
    pub sheet: WindowRecord,
}

/// What runs of one window have sent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sent {
    /// What was in the bucket by the record of who has read it back.
    pub uploaded: Option<Uploaded>,
    /// What was being sent last; only the bucket knows whether it is there.
    pub sending: Option<Uploaded>,
    /// What must not be judged of it, and of the window's groups.
    pub condemned: Condemned,
}

impl Sent {
    /// Every file of which the bucket may hold one, but those that must not be judged.
    pub fn files(&self) -> impl Iterator<Item = &Uploaded> {
        self.noted().filter(|file| !self.condemned.holds(file))
    }

    fn noted(&self) -> impl Iterator<Item = &Uploaded> {
        self.uploaded.iter().chain(self.sending.iter().filter(|sending| Some(*sending) != self.uploaded.as_ref()))
    }

    /// The file that the bucket holds, where that is on record.
    pub fn known(&self) -> Option<&Uploaded> {
        self.uploaded.as_ref().filter(|uploaded| self.sending.as_ref().is_none_or(|sending| sending == *uploaded))
    }
}

/// Past windows of which something is still needed.
#[derive(Debug, Clone, Default)]
pub struct UnderWay {
    /// Their file is on its way.
    pub sending: Vec<u64>,
    /// Their file may have to be withdrawn.
    pub watched: Vec<u64>,
    /// Unix seconds: a window whose deadline is still to come is not past, whatever a node calls the present one.
    pub now: f64,
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
    pub sheet: Option<WindowRecord>,
    /// What is in the bucket already, or may be.
    pub sent: Sent,
    /// Earlier windows that nobody said to be uploaded.
    pub lost: Vec<Expired>,
    /// Multipart uploads that an earlier run, or an earlier window, began and did not end.
    pub growing: Vec<Growing>,
}

/// A multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Growing {
    /// Window of the file.
    pub window: u64,
    /// What the bucket calls it.
    pub upload: String,
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
    /// As on disk.
    condemned: Mutex<Condemned>,
}

impl Spool {
    /// Opens the window's folder, removes those of earlier windows but what is needed of those `under_way`, and says what is there.
    /// `budget` bounds the groups' bytes.
    ///
    /// # Errors
    /// When the folder cannot be made or read. What cannot be removed costs disk and is told, but costs no window.
    pub fn open(
        disk: Arc<dyn Disk>,
        root: &Path,
        wallet: &str,
        window: u64,
        under_way: &UnderWay,
        budget: u64,
    ) -> Result<(Self, Left), SpoolError> {
        let folder = folder_of(root, window);
        for (folder, parent) in [(root, root.parent()), (&folder, Some(root))] {
            disk.make_folder(folder).map_err(failed(folder, "written"))?;
            let parent = parent.unwrap_or(Path::new("/"));
            disk.sync_folder(parent).map_err(failed(parent, "written"))?;
        }
        let condemned = Mutex::default();
        let spool = Self { disk, folder, wallet: wallet.to_owned(), window, budget, used: AtomicU64::new(0), condemned };
        let mut left = spool.look()?;
        spool.condemned().clone_from(&left.sent.condemned);
        left.lost = spool.retire_others(root, under_way, &mut left.growing)?;
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
        left.sent = sent_from(self.disk.as_ref(), &self.folder);
        left.growing.extend(self.note(GROWING).unwrap_or_default());
        Ok(left)
    }

    /// Removes the folders of other windows; their deadlines are over. Those that were not uploaded are named, and what they left
    /// half in the bucket is added to `growing`. Of a window whose file is watched, what was sent stays.
    fn retire_others(&self, root: &Path, under_way: &UnderWay, growing: &mut Vec<Growing>) -> Result<Vec<Expired>, SpoolError> {
        let mut lost = Vec::new();
        for entry in self.disk.list(root).map_err(failed(root, "read"))? {
            let Some(window) = window_of(&entry).filter(|window| *window != self.window && !under_way.sending.contains(window))
            else {
                continue;
            };
            let folder = root.join(&entry.name);
            if !self.is_past(window, &folder, under_way.now) {
                tracing::warn!(window, opened = self.window, "A window's spool stays: its deadline is still to come.");
                continue;
            }
            let files = self.disk.list(&folder).unwrap_or_default();
            let groups = files.iter().filter(|file| index_of(&file.name).is_some()).count();
            let has = |name: &str| files.iter().any(|file| file.name == name);
            if groups > 0 && !has(UPLOADED) {
                lost.push(Expired { window, groups, sending: has(SENDING) });
            }
            growing.extend(note(self.disk.as_ref(), &folder, GROWING).unwrap_or_default());
            if let Err(error) = self.remove(&folder, &files, under_way.watched.contains(&window)) {
                tracing::warn!(%error, path = %folder.display(), "A past window's spool cannot be removed.");
            }
        }
        lost.sort_unstable();
        Ok(lost)
    }

    /// Whether nothing can be uploaded of a window any more. Where its deadline is not on disk, by the windows' order.
    fn is_past(&self, window: u64, folder: &Path, now: f64) -> bool {
        match note::<WindowRecord>(self.disk.as_ref(), folder, SHEET) {
            Ok(Some(sheet)) => sheet.deadline < now,
            _ => window < self.window,
        }
    }

    /// The notes of the upload go last, so that a crash in between does not make a loss of it.
    fn remove(&self, folder: &Path, files: &[Entry], watched: bool) -> std::io::Result<()> {
        let (notes, others): (Vec<_>, Vec<_>) = files.iter().partition(|file| OF_THE_FILE.contains(&file.name.as_str()));
        for files in [others, if watched { Vec::new() } else { notes }] {
            for file in files {
                self.disk.remove_file(&folder.join(&file.name))?;
            }
            self.disk.sync_folder(folder)?;
        }
        if watched { Ok(()) } else { self.disk.remove_folder(folder) }
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
            Ok(()) => grail_supervision::failpoint::durable(self.window, group.header.index),
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
    pub fn keep_sheet(&self, sheet: &WindowRecord) -> Result<(), SpoolError> {
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

    /// Makes durable that a multipart upload was begun.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn mark_growing(&self, upload: &str) -> Result<(), SpoolError> {
        self.write_note(GROWING, &Growing { window: self.window, upload: upload.to_owned() })
    }

    /// Forgets the multipart upload: it came to its end.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget_growing(&self) -> Result<(), SpoolError> {
        let path = self.folder.join(GROWING);
        match self.disk.remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&path, "removed")(error)),
            _ => self.disk.sync_folder(&self.folder).map_err(failed(&self.folder, "removed")),
        }
    }

    /// Makes durable which groups and files must not be judged. It only grows.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn condemn(&self, verdict: Option<Verdict>, files: Vec<CondemnedFile>) -> Result<(), SpoolError> {
        let mut condemned = self.condemned();
        condemned.add(verdict, files);
        self.write_note(CONDEMNED, &*condemned)
    }

    fn condemned(&self) -> std::sync::MutexGuard<'_, Condemned> {
        self.condemned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_note(&self, name: &str, note: &impl Serialize) -> Result<(), SpoolError> {
        let path = self.folder.join(name);
        let bytes = seal(note, &[]).map_err(|why| SpoolError::Record { path: path.clone(), why })?;
        disk::replace(self.disk.as_ref(), &self.folder, name, &bytes).map_err(failed(&path, "written"))
    }

    fn note<Note: DeserializeOwned>(&self, name: &str) -> Result<Option<Note>, SpoolError> {
        note(self.disk.as_ref(), &self.folder, name)
    }

    fn path_of(&self, index: i64) -> PathBuf {
        self.folder.join(file_name(index))
    }
}

/// What was sent of every window that has a folder in the spool, oldest first.
///
/// # Errors
/// When the disk refuses.
pub fn sent(disk: &dyn Disk, root: &Path) -> Result<Vec<(u64, Sent)>, SpoolError> {
    let entries = match disk.list(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(root, "read"))?,
    };
    let mut windows: Vec<u64> = entries.iter().filter_map(window_of).collect();
    windows.sort_unstable();
    Ok(windows.into_iter().map(|window| (window, sent_from(disk, &folder_of(root, window)))).collect())
}

/// Forgets that a file of a window was sent: it is not in the bucket. With `groups_too` it was taken out because of what it is judged
/// by, and groups that are judged like it are worth nothing either; where the window is mined anew, there are others.
///
/// # Errors
/// When the disk refuses.
pub fn forget(disk: &dyn Disk, root: &Path, window: u64, file: &Uploaded, groups_too: bool) -> Result<(), SpoolError> {
    let folder = folder_of(root, window);
    let present: Option<WindowRecord> = note(disk, &folder, SHEET).unwrap_or_default();
    let anew = present.is_some_and(|present| !present.judges_like(&file.sheet));
    let files = disk.list(&folder).map_err(failed(&folder, "read"))?;
    let noted = |name: &str| note::<Uploaded>(disk, &folder, name).unwrap_or_default();
    // One that cannot be used names nothing.
    let names_it = |name: &str| noted(name).is_none_or(|noted| noted.sha256 == file.sha256);
    let gone = |name: &str| match index_of(name) {
        Some(_) => groups_too && !anew,
        None => [SENDING, UPLOADED].contains(&name) && names_it(name),
    };
    for file in files.iter().filter(|file| gone(&file.name)) {
        let path = folder.join(&file.name);
        disk.remove_file(&path).map_err(failed(&path, "removed"))?;
    }
    disk.sync_folder(&folder).map_err(failed(&folder, "removed"))
}

/// A note that cannot be used is none: it only says what need not be done again. But for what must not be judged.
fn sent_from(disk: &dyn Disk, folder: &Path) -> Sent {
    let read = |name| note(disk, folder, name).unwrap_or_default();
    let mut sent = Sent { uploaded: read(UPLOADED), sending: read(SENDING), condemned: Condemned::default() };
    sent.condemned = match note(disk, folder, CONDEMNED) {
        Ok(found) => found.unwrap_or_default(),
        Err(why) => Condemned::all(sent.noted(), &why.to_string()),
    };
    sent
}

fn note<Note: DeserializeOwned>(disk: &dyn Disk, folder: &Path, name: &str) -> Result<Option<Note>, SpoolError> {
    let path = folder.join(name);
    match disk.read(&path, MAX_RECORD) {
        Ok(bytes) => unseal(&bytes).map(|(note, _)| Some(note)).map_err(|why| SpoolError::Record { path, why }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SpoolError::Disk { path, doing: "read", source }),
    }
}

fn folder_of(root: &Path, window: u64) -> PathBuf {
    root.join(window.to_string())
}

fn window_of(entry: &Entry) -> Option<u64> {
    entry.name.parse().ok()
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
