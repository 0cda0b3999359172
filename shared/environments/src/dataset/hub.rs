//! Where the files of a data set lie that was fetched from the Hugging Face hub.
//!
//! ```text
//!  datasets--openai--gsm8k/          the hub's cache
//!    refs/main                       the revision that counts
//!    snapshots/<revision>/main/train-00000-of-00001.parquet
//!  main/train/0000.parquet           the hub's own conversion (branch refs/convert/parquet)
//! ```

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{DatasetError, MAX_FOLDER_ENTRIES, SourceSplit, file_name, is_left_behind};

/// A revision is a hash of forty digits.
const MAX_REVISION_BYTES: u64 = 256;
/// Revisions that a message names.
const MOST_NAMED: usize = 6;

/// The folder that holds the data: of a cache folder of the hub the revision that counts, of any other folder it itself.
pub(super) fn data_folder(path: &Path) -> Result<PathBuf, DatasetError> {
    let snapshots = path.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(path.to_owned());
    }
    let wrong = |what: String| DatasetError::Cache { path: path.to_owned(), what };
    let named = path.join("refs/main");
    if named.exists() {
        let unreadable = |source| DatasetError::Unreadable { path: named.clone(), source };
        let mut revision = String::new();
        let file = File::open(&named).map_err(unreadable)?;
        file.take(MAX_REVISION_BYTES).read_to_string(&mut revision).map_err(unreadable)?;
        let revision = revision.trim();
        if revision.is_empty() || !revision.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(wrong(format!("its refs/main names {revision:?}, which is no revision")));
        }
        let folder = snapshots.join(revision);
        let missing = || wrong(format!("its refs/main names the revision {revision}, which is not in snapshots/"));
        return if folder.is_dir() { Ok(folder) } else { Err(missing()) };
    }
    let mut revisions = revisions(&snapshots)?;
    match revisions.len() {
        0 => Err(wrong("it has no revision in snapshots/".into())),
        1 => Ok(revisions.remove(0)),
        count => {
            let names: Vec<String> = revisions.iter().take(MOST_NAMED).map(|folder| file_name(folder)).collect();
            Err(wrong(format!("it has {count} revisions ({}) and no refs/main that says which one counts", names.join(", "))))
        }
    }
}

fn revisions(snapshots: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let unreadable = |source| DatasetError::Unreadable { path: snapshots.to_owned(), source };
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(snapshots).map_err(unreadable)?.take(MAX_FOLDER_ENTRIES) {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() && !is_left_behind(&file_name(&path)) {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

/// The split whose files alone lie in a folder of this name.
pub(super) fn split_of_folder(folder: &Path) -> Option<SourceSplit> {
    let name = file_name(folder);
    SourceSplit::ALL.into_iter().find(|split| split.as_str() == name)
}

/// The number of a file that is named by nothing else: `0000.parquet`.
pub(super) fn number(path: &Path) -> Option<usize> {
    let name = file_name(path);
    let (number, _) = name.split_once('.')?;
    // A name of any length would pass over the bound of a number.
    (number.bytes().all(|byte| byte.is_ascii_digit()) && number.len() <= 9).then(|| number.parse().ok()).flatten()
}
