//! The thread that writes the journal. It alone touches the files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::line::{Entry, FILE_BYTES, MAX_LINE, decode, encode};
use super::read::files;
use super::{Message, Record};
use crate::secrets;

/// Records of a kind that is not lasting are on disk after this time.
const SYNC_AFTER: Duration = Duration::from_secs(1);
/// A disk that refused is tried again with the first record after this many.
const TRY_AGAIN_AFTER: u64 = 64;

/// Writes what comes until the last sender is gone.
pub(super) fn run(folder: &Path, messages: &Receiver<Message>) {
    let mut writer = Writer { folder: folder.to_owned(), file: None, next: 0, refused: 0 };
    let mut unsynced = false;
    loop {
        let message = if unsynced { messages.recv_timeout(SYNC_AFTER) } else { messages.recv().map_err(RecvTimeoutError::from) };
        match message {
            Ok(Message::Record(record)) => {
                let lasting = record.lasting;
                unsynced = writer.append(record);
                if unsynced && lasting {
                    writer.sync();
                    unsynced = false;
                }
            }
            Ok(Message::Flush(done)) => {
                writer.sync();
                unsynced = false;
                drop(done);
            }
            Err(RecvTimeoutError::Timeout) => {
                writer.sync();
                unsynced = false;
            }
            Err(RecvTimeoutError::Disconnected) => return writer.sync(),
        }
    }
}

struct Writer {
    folder: PathBuf,
    file: Option<(File, u64)>,
    next: u64,
    /// Records that the disk refused in a row.
    refused: u64,
}

impl Writer {
    /// Whether the record was written.
    fn append(&mut self, record: Record) -> bool {
        if !self.refused.is_multiple_of(TRY_AGAIN_AFTER) {
            self.refused += 1;
            return false;
        }
        match self.try_append(record) {
            Ok(()) => {
                self.refused = 0;
                true
            }
            Err(error) => {
                tracing::error!(%error, folder = %self.folder.display(), "The journal cannot be written; events are only in the log.");
                self.refused += 1;
                // What was written of the line is closed off by the next opening.
                self.file = None;
                false
            }
        }
    }

    fn try_append(&mut self, record: Record) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|(_, length)| *length >= FILE_BYTES) {
            self.file = None;
            rotate(&self.folder)?;
        }
        if self.file.is_none() {
            let (file, length, last) = open(&self.folder)?;
            self.next = self.next.max(last.map_or(0, |last| last + 1));
            self.file = Some((file, length));
        }
        let Some((file, length)) = &mut self.file else { return Ok(()) };
        let entry =
            Entry { seq: self.next, time: record.time, kind: record.kind.into(), data: secrets::clean_value(record.data) };
        let mut line = encode(&entry);
        line.push('\n');
        file.write_all(line.as_bytes())?;
        *length += line.len() as u64;
        self.next += 1;
        Ok(())
    }

    fn sync(&mut self) {
        if let Some((file, _)) = &self.file
            && let Err(error) = file.sync_data()
        {
            tracing::error!(%error, "The journal cannot be flushed to the disk.");
        }
    }
}

/// Opens the file for appending, on a line of its own, and finds the last whole record's number.
fn open(folder: &Path) -> io::Result<(File, u64, Option<u64>)> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join("journal.jsonl");
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
    let mut length = file.metadata()?.len();
    let tail = tail(&mut file, length)?;
    if tail.last().is_some_and(|byte| *byte != b'\n') {
        file.write_all(b"\n")?;
        length += 1;
    }
    let mut last = last_number(&tail);
    if last.is_none() {
        // Nothing whole in this file: the number goes on from the one put aside before.
        let mut files = files(folder).into_iter().rev().skip(1);
        if let Some(mut before) = files.find_map(|path| File::open(path).ok()) {
            let length = before.metadata()?.len();
            last = last_number(&self::tail(&mut before, length)?);
        }
    }
    // The name of a new file is lost with the power unless its folder is flushed.
    File::open(folder)?.sync_all()?;
    Ok((file, length, last))
}

fn tail(file: &mut File, length: u64) -> io::Result<Vec<u8>> {
    let kept = 2 * MAX_LINE as u64;
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(length.saturating_sub(kept)))?;
    file.take(kept).read_to_end(&mut tail)?;
    Ok(tail)
}

fn last_number(tail: &[u8]) -> Option<u64> {
    tail.rsplit(|byte| *byte == b'\n').find_map(|line| decode(line).ok()).map(|entry| entry.seq)
}

fn rotate(folder: &Path) -> io::Result<()> {
    let files = files(folder);
    for pair in files.windows(2) {
        if pair[1].exists() {
            std::fs::rename(&pair[1], &pair[0])?;
        }
    }
    Ok(())
}
