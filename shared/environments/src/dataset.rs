//! Raw rows of a Hugging Face style data set on disk: JSON lines (plain or gzip) and Parquet, in source order.
//!
//! Which files are a split is never guessed: it is one file, or one whole set of shards (`train-00000-of-00002.parquet`
//! and so on; `train/0000.parquet` in the hub's own conversion). Anything beside it that could be meant as well is refused by name. What editors and macOS leave behind
//! (hidden files, names that end in `~`) is no data.
//!
//! The order of rows is consensus (grail-environments 2.3), so nothing here sorts, drops or repairs a row: a bad one is
//! an error that names the file and the row. Files are read whole, once, when an environment is opened.

mod hub;
mod json_lines;
mod parquet_rows;
mod shards;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest line of a JSON lines file and largest text of a Parquet cell, in bytes.
pub const MAX_ROW_BYTES: usize = 1 << 20;
/// Most rows of one split.
pub const MAX_ROWS: usize = 1_000_000;
/// Most text of one split, in bytes.
pub const MAX_SPLIT_BYTES: usize = 1 << 30;
/// Most entries looked at in a folder.
const MAX_FOLDER_ENTRIES: usize = 10_000;
/// Folders below the given one in which data files are looked for: a configuration's and the usual one.
const SUB_FOLDERS: [&str; 3] = ["", "main", "data"];

/// A split as the source names it, before the protocol redistributes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceSplit {
    /// `train`
    Train,
    /// `test`
    Test,
    /// `validation`
    Validation,
}

/// The data files of a data set, by split.
#[derive(Debug, Clone)]
pub struct Dataset {
    path: PathBuf,
    splits: BTreeMap<SourceSplit, Vec<PathBuf>>,
    /// A single file whose name names no split serves as every split.
    any: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    JsonLines,
    JsonLinesGzip,
    Parquet,
}

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The path is not there or not readable.
    #[error(
        "The data set {path} cannot be read: {source}. Name a .jsonl, .jsonl.gz or .parquet file, or a folder with such files."
    )]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A cache folder of the Hugging Face hub that does not say which revision counts.
    #[error(
        "The data set {path} is a cache folder of the Hugging Face hub, and {what}. Name the folder of a revision below its \
         snapshots/, or download the data set again."
    )]
    Cache {
        /// The cache folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of no known form.
    #[error("The data set {path} is neither a .jsonl, .jsonl.gz nor .parquet file nor a folder. Convert it or name another.")]
    UnknownForm {
        /// The file.
        path: PathBuf,
    },
    /// The wanted split has no file.
    #[error(
        "The data set {path} has no split `{split}` (found: {found}). A folder's files name their split, e.g. \
         train-00000-of-00001.parquet or test.jsonl, or lie in a folder of its name, in the folder itself, in main/ or in data/."
    )]
    NoSplit {
        /// The data set.
        path: PathBuf,
        /// The split that is needed.
        split: SourceSplit,
        /// The splits that are there.
        found: String,
    },
    /// One split in two forms: reading both would double its rows.
    #[error("The split `{split}` of {path} is there as Parquet and as JSON lines. Remove one of the two.")]
    MixedForms {
        /// The folder.
        path: PathBuf,
        /// The split.
        split: SourceSplit,
    },
    /// Several files that could be the split, and are not one whole set of shards.
    #[error(
        "The split `{split}` of {path} is not one file or one whole set of shards: {what} ({files}). Leave only what belongs \
         to it there, or name a folder or file that has nothing else."
    )]
    Ambiguous {
        /// The data set.
        path: PathBuf,
        /// The split.
        split: SourceSplit,
        /// What does not fit.
        what: String,
        /// The files, as they are named.
        files: String,
    },
    /// A row that cannot be used.
    #[error("Row {row} of {path}: {what}. Repair or fetch the file again; rows are never skipped, their order is protocol.")]
    Row {
        /// The file.
        path: PathBuf,
        /// The row or line, counted from 1.
        row: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A file that as a whole cannot be used.
    #[error("The data file {path} cannot be used: {what}.")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A split without rows.
    #[error("The split `{split}` of {path} has no rows. Fetch the data set again.")]
    Empty {
        /// The data set.
        path: PathBuf,
        /// The split.
        split: SourceSplit,
    },
}

impl SourceSplit {
    /// Every one.
    const ALL: [Self; 3] = [Self::Train, Self::Test, Self::Validation];

    /// The name, as it stands in file names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
            Self::Validation => "validation",
        }
    }

    /// The split that a file's name says: its first word that is the name of one.
    fn of_file(name: &str) -> Option<Self> {
        name.split(|character: char| !character.is_ascii_alphanumeric()).find_map(|word| {
            match word.to_ascii_lowercase().as_str() {
                "train" | "training" => Some(Self::Train),
                "test" | "testing" => Some(Self::Test),
                "validation" | "valid" | "val" | "dev" => Some(Self::Validation),
                _ => None,
            }
        })
    }
}

impl std::fmt::Display for SourceSplit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Form {
    fn of_file(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let forms = [(".jsonl", Self::JsonLines), (".jsonl.gz", Self::JsonLinesGzip), (".parquet", Self::Parquet)];
        forms.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, form)| form)
    }
}

impl Dataset {
    /// Finds the data files of a single file or of a folder, without reading rows.
    ///
    /// A single file serves as the split that its name says (`test.jsonl`), or as whatever split is asked for if its name
    /// says none. In a folder, files are told apart by the split in their names, in the folder itself, in `main/` and in
    /// `data/`; shards are taken by their numbers. Of a cache folder of the Hugging Face hub the revision of `refs/main` counts,
    /// and of the hub's own conversion (`main/train/0000.parquet`) the folder says the split.
    ///
    /// # Errors
    /// A path that is not there, a file of no known form, a split that is there in two forms, and one that is neither a
    /// single file nor one whole set of shards.
    pub fn open(path: &Path) -> Result<Self, DatasetError> {
        let unreadable = |source| DatasetError::Unreadable { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(unreadable)?.is_dir() { Self::of_folder(path) } else { Self::of_file(path) }
    }

    fn of_folder(path: &Path) -> Result<Self, DatasetError> {
        let path = hub::data_folder(path)?;
        let mut found: BTreeMap<SourceSplit, Vec<PathBuf>> = BTreeMap::new();
        for folder in SUB_FOLDERS.map(|sub_folder| path.join(sub_folder)) {
            for split in SourceSplit::ALL {
                data_files(&folder.join(split.as_str()), Some(split), &mut found)?;
            }
            data_files(&folder, hub::split_of_folder(&folder), &mut found)?;
        }
        let mut dataset = Self { path, splits: BTreeMap::new(), any: None };
        found.into_iter().try_for_each(|(split, files)| dataset.add_split(split, files))?;
        Ok(dataset)
    }

    fn of_file(path: &Path) -> Result<Self, DatasetError> {
        let mut dataset = Self { path: path.to_owned(), splits: BTreeMap::new(), any: None };
        let name = file_name(path);
        Form::of_file(&name).ok_or_else(|| DatasetError::UnknownForm { path: path.to_owned() })?;
        let folder = path.parent().filter(|_| hub::number(path).is_some());
        match (folder.and_then(hub::split_of_folder), folder, SourceSplit::of_file(&name)) {
            // It is the split only if it is alone.
            (Some(split), Some(folder), _) => {
                let mut found = BTreeMap::new();
                data_files(folder, Some(split), &mut found)?;
                let files = found.remove(&split).unwrap_or_default();
                if files.len() > 1 {
                    let what = format!("{name} alone was named, and others lie beside it");
                    return Err(dataset.ambiguous(split, what, &files));
                }
                dataset.add_split(split, files)?;
            }
            (_, _, Some(split)) => dataset.add_split(split, vec![path.to_owned()])?,
            (_, _, None) => dataset.any = Some(path.to_owned()),
        }
        Ok(dataset)
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The splits that are there by name.
    pub fn splits(&self) -> impl Iterator<Item = SourceSplit> {
        self.splits.keys().copied()
    }

    /// The files of a split, in the order in which they are read.
    pub fn files(&self, split: SourceSplit) -> &[PathBuf] {
        self.splits.get(&split).map(Vec::as_slice).or(self.any.as_ref().map(std::slice::from_ref)).unwrap_or_default()
    }

    /// The text columns `columns` of every row of `split`, in source order.
    ///
    /// # Errors
    /// A missing split or column; a row that is not a JSON object, names a column twice, lacks a text, holds a NUL or is
    /// larger than [`MAX_ROW_BYTES`]; a split without rows or larger than [`MAX_ROWS`] or [`MAX_SPLIT_BYTES`].
    pub fn rows<const N: usize>(&self, split: SourceSplit, columns: [&str; N]) -> Result<Vec<[String; N]>, DatasetError> {
        let files = self.files(split);
        if files.is_empty() {
            return Err(self.no_split(split));
        }
        let mut rows = Rows::new(columns);
        for path in files {
            refuse_pointer(path)?;
            match Form::of_file(&file_name(path)) {
                Some(Form::JsonLines) => json_lines::read(path, &mut rows)?,
                Some(Form::JsonLinesGzip) => json_lines::read_gzip(path, &mut rows)?,
                Some(Form::Parquet) => parquet_rows::read(path, &mut rows)?,
                None => return Err(DatasetError::UnknownForm { path: path.clone() }),
            }
        }
        if rows.rows.is_empty() {
            return Err(DatasetError::Empty { path: self.path.clone(), split });
        }
        Ok(rows.rows)
    }

    fn no_split(&self, split: SourceSplit) -> DatasetError {
        let found: Vec<_> = self.splits().map(SourceSplit::as_str).collect();
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        DatasetError::NoSplit { path: self.path.clone(), split, found }
    }

    /// Takes the files that name a split: one, or one whole set of shards.
    fn add_split(&mut self, split: SourceSplit, files: Vec<PathBuf>) -> Result<(), DatasetError> {
        let parquet = files.iter().filter(|path| Form::of_file(&file_name(path)) == Some(Form::Parquet)).count();
        if parquet != 0 && parquet != files.len() {
            return Err(DatasetError::MixedForms { path: self.path.clone(), split });
        }
        let whole = shards::whole(files.clone()).map_err(|what| self.ambiguous(split, what, &files))?;
        self.splits.insert(split, whole);
        Ok(())
    }

    fn ambiguous(&self, split: SourceSplit, what: String, files: &[PathBuf]) -> DatasetError {
        let files = files.iter().map(|path| file_name(path)).collect::<Vec<_>>().join(", ");
        DatasetError::Ambiguous { path: self.path.clone(), split, what, files }
    }
}

/// Rows as they are collected, with their limits.
struct Rows<'a, const N: usize> {
    columns: [&'a str; N],
    rows: Vec<[String; N]>,
    bytes: usize,
}

impl<'a, const N: usize> Rows<'a, N> {
    fn new(columns: [&'a str; N]) -> Self {
        Self { columns, rows: Vec::new(), bytes: 0 }
    }

    /// Adds a row, or says why it cannot be.
    fn push(&mut self, row: [String; N]) -> Result<(), String> {
        for (column, text) in self.columns.iter().zip(&row) {
            if text.contains('\0') {
                return Err(format!("the column `{column}` holds a NUL character"));
            }
            if text.len() > MAX_ROW_BYTES {
                return Err(format!("the column `{column}` holds {} bytes, more than {MAX_ROW_BYTES}", text.len()));
            }
            self.bytes += text.len();
        }
        if self.rows.len() >= MAX_ROWS || self.bytes > MAX_SPLIT_BYTES {
            return Err(format!("the split exceeds {MAX_ROWS} rows or {MAX_SPLIT_BYTES} bytes of text"));
        }
        self.rows.push(row);
        Ok(())
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A clone without Git LFS has a few lines of text where the data should be.
fn refuse_pointer(path: &Path) -> Result<(), DatasetError> {
    const POINTER: &[u8] = b"version https://git-lfs";
    let unreadable = |source| DatasetError::Unreadable { path: path.to_owned(), source };
    let mut begin = Vec::new();
    File::open(path).and_then(|file| file.take(POINTER.len() as u64).read_to_end(&mut begin)).map_err(unreadable)?;
    if begin == POINTER {
        let what = "it is a Git LFS pointer, not the data; run `git lfs pull` in its folder, or download the file itself".into();
        return Err(DatasetError::File { path: path.to_owned(), what });
    }
    Ok(())
}

/// The data files of a folder by the split that they name, or, where `named` is what the folder names, by that; none where there
/// is no such folder.
fn data_files(
    folder: &Path,
    named: Option<SourceSplit>,
    found: &mut BTreeMap<SourceSplit, Vec<PathBuf>>,
) -> Result<(), DatasetError> {
    if !folder.is_dir() {
        return Ok(());
    }
    let unreadable = |source| DatasetError::Unreadable { path: folder.to_owned(), source };
    for (count, entry) in std::fs::read_dir(folder).map_err(unreadable)?.enumerate() {
        if count == MAX_FOLDER_ENTRIES {
            let what = format!("it has more than {MAX_FOLDER_ENTRIES} entries; name a folder with the data set alone");
            return Err(DatasetError::File { path: folder.to_owned(), what });
        }
        let path = entry.map_err(unreadable)?.path();
        let name = file_name(&path);
        if is_left_behind(&name) || !path.is_file() {
            continue;
        }
        if let (Some(split), Some(_)) = (SourceSplit::of_file(&name).or(named), Form::of_file(&name)) {
            found.entry(split).or_default().push(path);
        }
    }
    found.values_mut().for_each(|files| files.sort());
    Ok(())
}

/// Whether a file is an editor's or macOS's rather than data: `._train.jsonl`, `.#train.jsonl`, `train.jsonl~`.
fn is_left_behind(name: &str) -> bool {
    name.starts_with(['.', '#', '~']) || name.ends_with(['~', '#'])
}

#[cfg(test)]
mod tests;
