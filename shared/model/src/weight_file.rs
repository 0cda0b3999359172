//! One safetensors file, read by position. A mapping would be as fast, but a file that shrinks under one kills the process
//! with SIGBUS, and with it every job it has; a read past the end is an error like any other.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use safetensors::SafeTensorError;
use safetensors::tensor::Metadata;

use crate::checkpoint::WeightsError;

/// Bytes that one thread reads at a time: the copy stays in the processor's cache for whoever looks at it next.
pub(crate) const CHUNK: usize = 1 << 19;

/// More threads do not read faster from one memory.
const MAX_THREADS: usize = 16;

/// A header larger than this is refused by the format's own library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of the header's length, at the start of the file.
const LENGTH_BYTES: u64 = 8;

#[derive(Debug)]
pub(crate) struct WeightFile {
    path: PathBuf,
    file: File,
    found: Facts,
}

/// What tells that somebody wrote to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    bytes: u64,
    modified: (i64, i64),
}

impl WeightFile {
    /// Opens a file and parses its header, which must account for every byte. Returns where the data begins, too.
    pub fn open(path: &Path) -> Result<(Self, Metadata, u64), WeightsError> {
        let failed = |source| WeightsError::Read { path: path.to_path_buf(), source };
        let wrong = |source| WeightsError::Format { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(failed)?;
        let found = facts(&file).map_err(failed)?;
        let this = Self { path: path.to_path_buf(), file, found };
        if found.bytes < LENGTH_BYTES {
            return Err(wrong(SafeTensorError::HeaderTooSmall));
        }
        let mut length = [0; LENGTH_BYTES as usize];
        this.read(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES {
            return Err(wrong(SafeTensorError::HeaderTooLarge));
        }
        let data = LENGTH_BYTES + length;
        if data > found.bytes {
            return Err(wrong(SafeTensorError::InvalidHeaderLength));
        }
        let mut header = vec![0; length as usize];
        this.read(LENGTH_BYTES, &mut header)?;
        // The crate checks that every tensor has the size that shape and type ask for, without gaps or overlaps.
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| wrong(SafeTensorError::InvalidHeaderDeserialization(error)))?;
        if data.checked_add(metadata.data_len() as u64) != Some(found.bytes) {
            return Err(wrong(SafeTensorError::MetadataIncompleteBuffer));
        }
        Ok((this, metadata, data))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `bytes` from `offset` on.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), WeightsError> {
        self.file.read_exact_at(bytes, offset).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => WeightsError::Changed { path: self.path.clone() },
            _ => WeightsError::Read { path: self.path.clone(), source },
        })
    }

    /// [`WeightFile::read`] on several threads, for large pieces.
    pub fn read_in_parallel(&self, offset: u64, bytes: &mut [u8], threads: usize) -> Result<(), WeightsError> {
        let parts: Vec<_> = bytes.chunks_mut(CHUNK).enumerate().map(|part| Mutex::new(Some(part))).collect();
        in_parallel(threads, parts.len(), |index, _| {
            let part = parts[index].lock().unwrap_or_else(PoisonError::into_inner).take();
            part.map_or(Ok(()), |(place, part)| self.read(offset + (place * CHUNK) as u64, part))
        })
    }

    /// Refuses a file that somebody has written to since it was opened. One that was only unlinked can be read on.
    pub fn unchanged(&self) -> Result<(), WeightsError> {
        let now = facts(&self.file).map_err(|source| WeightsError::Read { path: self.path.clone(), source })?;
        if now == self.found { Ok(()) } else { Err(WeightsError::Changed { path: self.path.clone() }) }
    }
}

fn facts(file: &File) -> std::io::Result<Facts> {
    let facts = file.metadata()?;
    Ok(Facts { bytes: facts.len(), modified: (facts.mtime(), facts.mtime_nsec()) })
}

/// Calls `work` with every index below `count`, in ascending order of start, on this thread and up to `threads - 1` more,
/// each with a buffer of its own. Of several errors the one with the lowest index is returned; after one nothing new begins.
pub(crate) fn in_parallel<E: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize, &mut Vec<u8>) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let run = || {
        let mut buffer = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            if let Err(error) = work(index, &mut buffer) {
                // Every lower index has begun and will be finished by whoever has it.
                next.store(count, Ordering::Relaxed);
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(lowest, _)| index < *lowest) {
                    *failed = Some((index, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(MAX_THREADS).min(count) {
            // Where the system has no thread to give, this one does the work alone.
            let _ = std::thread::Builder::new().name("weights".into()).spawn_scoped(scope, run);
        }
        run();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, error)| Err(error))
}

/// Threads to read weights with: as many as libtorch computes with.
pub(crate) fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1).clamp(1, MAX_THREADS)
}
