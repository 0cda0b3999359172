//! Reading the journal back, oldest record first.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::line::{Entry, FILE_BYTES, decode};

/// Older files that are kept beside the one that is written.
pub(super) const KEPT_FILES: usize = 4;
/// A file is rotated well before it is twice as long as it should be.
const MAX_READ: u64 = 2 * FILE_BYTES;

/// What a journal holds.
#[derive(Debug, Default)]
pub struct Reading {
    /// The whole records.
    pub entries: Vec<Entry>,
    /// Lines that are none.
    pub damaged: usize,
}

/// The journal's files in `folder`, oldest first; they need not exist.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = (1..=KEPT_FILES).rev().map(|age| folder.join(format!("journal.{age}.jsonl"))).collect();
    files.push(folder.join("journal.jsonl"));
    files
}

/// Reads every record of the journal in `folder`. Torn lines are counted, not fatal.
///
/// # Errors
/// When a file is there and cannot be read, or none is there.
pub fn read(folder: &Path) -> io::Result<Reading> {
    let mut reading = Reading::default();
    let mut found = false;
    for path in files(folder) {
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => file.take(MAX_READ).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        found = true;
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match decode(line) {
                Ok(entry) => reading.entries.push(entry),
                Err(_) => reading.damaged += 1,
            }
        }
    }
    if found { Ok(reading) } else { Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no journal in {folder:?}"))) }
}
