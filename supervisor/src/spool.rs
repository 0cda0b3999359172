//! Complete groups on disk, durable before they count: a file per group, in the window file's own format.
//!
//! ```text
//!  spool/<window>/group-<index>.parquet      sixteen rows; written beside, flushed, renamed, folder flushed
//! ```

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use grail_process::clock;
use grail_protocol::row::WindowRow;
use grail_store::window_file::{WindowFileError, WindowMetadata, WindowWriter, read_window};

/// Why a group could not be kept or found again.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The disk refused.
    #[error("the spool {path:?} cannot be {doing}: {source}; check the disk's free space and permissions")]
    Disk {
        /// File or folder.
        path: PathBuf,
        /// `written` or `read`.
        doing: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The rows could not be encoded.
    #[error("a group cannot be encoded for the spool: {0}")]
    Encode(#[from] WindowFileError),
}

/// The groups of one window.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    wallet: String,
    window: u64,
}

impl Spool {
    /// Opens the window's folder, and removes those of other windows: their deadlines are over.
    ///
    /// # Errors
    /// When the folder cannot be made or its parent not read.
    pub fn open(root: &Path, wallet: &str, window: u64) -> Result<Self, SpoolError> {
        let folder = root.join(window.to_string());
        fs::create_dir_all(&folder).map_err(disk(&folder, "written"))?;
        for other in fs::read_dir(root).map_err(disk(root, "read"))?.flatten().map(|entry| entry.path()) {
            // What cannot be removed costs disk, and must not cost the window.
            if other != folder
                && let Err(error) = fs::remove_dir_all(&other)
            {
                tracing::warn!(%error, path = %other.display(), "A past window's spool cannot be removed.");
            }
        }
        Ok(Self { folder, wallet: wallet.to_owned(), window })
    }

    /// Makes one group durable.
    ///
    /// # Errors
    /// When it cannot be encoded or the disk refuses; then the group does not count.
    pub fn put(&self, index: i64, rows: &[WindowRow]) -> Result<(), SpoolError> {
        let path = self.folder.join(format!("group-{index:06}.parquet"));
        let failed = |source| SpoolError::Disk { path: path.clone(), doing: "written", source };
        let metadata = WindowMetadata {
            wallet: self.wallet.clone(),
            window_start: self.window.cast_signed(),
            timestamp: clock::unix_seconds(),
        };
        let mut writer = WindowWriter::new(Vec::new(), &metadata)?;
        writer.append_group(rows)?;
        let bytes = writer.finish()?;
        let mut beside = tempfile::NamedTempFile::new_in(&self.folder).map_err(failed)?;
        beside.write_all(&bytes).map_err(failed)?;
        beside.as_file().sync_all().map_err(failed)?;
        crate::failpoint::pass_blocking("spooling");
        beside.persist(&path).map_err(|error| failed(error.error))?;
        fs::File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        crate::failpoint::durable(self.window, index);
        Ok(())
    }

    /// The groups of this window in order of their indices. A file that cannot be read back, or holds rows of another wallet
    /// or window, is left out and told.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn groups(&self) -> Result<Vec<Vec<WindowRow>>, SpoolError> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&self.folder)
            .map_err(disk(&self.folder, "read"))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "parquet"))
            .collect();
        paths.sort();
        let read = |path: PathBuf| match self.group(&path) {
            Ok(rows) => Some(rows),
            Err(why) => {
                tracing::error!(path = %path.display(), why, "A spooled group cannot be used and is left out.");
                None
            }
        };
        Ok(paths.into_iter().filter_map(read).collect())
    }

    fn group(&self, path: &Path) -> Result<Vec<WindowRow>, String> {
        let bytes = fs::read(path).map_err(|error| error.to_string())?;
        let file = read_window(bytes).map_err(|error| error.to_string())?;
        if file.metadata.wallet != self.wallet || file.metadata.window_start != self.window.cast_signed() {
            return Err(format!("it belongs to {} and window {}", file.metadata.wallet, file.metadata.window_start));
        }
        Ok(file.rows)
    }

    /// Forgets the window, once its file is uploaded or its deadline over.
    pub fn clear(self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(%error, folder = %self.folder.display(), "The spool folder cannot be removed.");
        }
    }
}

fn disk<'a>(path: &'a Path, doing: &'static str) -> impl Fn(std::io::Error) -> SpoolError + 'a {
    move |source| SpoolError::Disk { path: path.into(), doing, source }
}
