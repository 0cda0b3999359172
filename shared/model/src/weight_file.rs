//! One safetensors file, read by position. A mapping would be as fast, but a file that shrinks under one kills the process
//! with SIGBUS, and with it every job it has; a read past the end is an error like any other.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use safetensors::SafeTensorError;
use safetensors::tensor::Metadata;

use crate::weights_error::WeightsError;

/// Bytes that one thread reads or changes at a time: they stay in the processor's cache for whoever looks at them next. A multiple
/// of every type's width.
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
            let part = lock(&parts[index]).take();
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
                let mut failed = lock(&failed);
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

/// Makes `pieces` on this thread and up to `threads - 1` more, and shows each to `look` in their order, on the thread that made it:
/// it is in that processor's cache. Returns the pieces, or the first error of `make`.
pub(crate) fn in_order<P: Send, E: Send>(
    threads: usize,
    pieces: Vec<P>,
    make: impl Fn(usize, &mut P) -> Result<(), E> + Sync,
    look: &mut (dyn FnMut(&P) + Send),
) -> Result<Vec<P>, E> {
    let pieces: Vec<Mutex<P>> = pieces.into_iter().map(Mutex::new).collect();
    let (next, look) = (AtomicUsize::new(0), Mutex::new(look));
    in_parallel(threads, pieces.len(), |index, _| {
        let piece = &mut *lock(&pieces[index]);
        // Whatever becomes of this piece, a panic too, nobody waits for it for ever.
        let turn = Turn { next: &next, index };
        make(index, piece)?;
        if turn.comes() {
            lock(&look)(piece);
            turn.pass_on();
        }
        Ok(())
    })?;
    Ok(pieces.into_iter().map(|piece| piece.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
}

/// What `next` is after a piece was not made: no piece's turn.
const NOBODY: usize = usize::MAX;
/// Looks at `next` before the processor is given to others, and for how long.
const SPINS: usize = 1 << 12;
const NAP: Duration = Duration::from_micros(50);

/// The turn of one piece. Pieces begin in order, so whoever has an earlier one is at work on it.
struct Turn<'a> {
    next: &'a AtomicUsize,
    index: usize,
}

impl Turn<'_> {
    /// Waits until every piece before has had its turn; false if there is none any more. A turn is shorter than it takes to fall
    /// asleep and to be woken.
    fn comes(&self) -> bool {
        for looks in 0.. {
            match self.next.load(Ordering::Acquire) {
                NOBODY => return false,
                next if next == self.index => return true,
                _ if looks < SPINS => std::hint::spin_loop(),
                // The one before waits for a disk.
                _ => std::thread::sleep(NAP),
            }
        }
        false
    }

    fn pass_on(self) {
        // Unless a later piece was not made meanwhile: then nobody's it stays.
        let _ = self.next.compare_exchange(self.index, self.index + 1, Ordering::AcqRel, Ordering::Relaxed);
        std::mem::forget(self);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.next.store(NOBODY, Ordering::Release);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 0 until somebody says otherwise.
static READERS: AtomicUsize = AtomicUsize::new(0);

/// Has this process read files of weights with so many threads: a process that computes on a GPU has cores to read with, however few
/// threads it computes with. `None` is as many as libtorch computes with.
pub fn read_with(threads: Option<u16>) {
    READERS.store(threads.map_or(0, usize::from), Ordering::Relaxed);
}

/// Threads to read weights with.
pub(crate) fn threads() -> usize {
    match READERS.load(Ordering::Relaxed) {
        0 => usize::try_from(tch::get_num_threads()).unwrap_or(1).clamp(1, MAX_THREADS),
        readers => readers.min(MAX_THREADS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_shown_in_order_whichever_is_made_first() {
        for threads in [1, 2, 5] {
            let mut shown = Vec::new();
            let make = |index: usize, piece: &mut usize| {
                std::thread::sleep(std::time::Duration::from_micros(index as u64 * 37 % 200));
                *piece = index;
                Ok::<_, usize>(())
            };
            let pieces = in_order(threads, vec![usize::MAX; 200], make, &mut |piece| shown.push(*piece)).unwrap();
            assert!(shown.iter().copied().eq(0..200) && pieces == shown, "{threads}: {shown:?}");
        }
    }

    #[test]
    fn nobody_waits_for_a_piece_that_was_not_made() {
        for broken in [0, 1, 57, 199] {
            let mut shown = Vec::new();
            let make = |index: usize, piece: &mut usize| {
                std::thread::sleep(std::time::Duration::from_micros(if index == broken { 300 } else { 5 }));
                *piece = index;
                if index == broken { Err(index) } else { Ok(()) }
            };
            let error = in_order(3, vec![0; 200], make, &mut |piece| shown.push(*piece)).unwrap_err();
            assert_eq!(error, broken);
            assert!(shown.len() <= broken && shown.iter().copied().eq(0..shown.len()), "nothing behind it is shown: {shown:?}");
            let panicked = std::panic::AssertUnwindSafe(|| {
                let make = |index: usize, _: &mut usize| if index == broken { panic!("on purpose") } else { Ok::<_, usize>(()) };
                in_order(3, vec![0; 200], make, &mut |_| ())
            });
            assert!(std::panic::catch_unwind(panicked).is_err());
        }
    }
}
