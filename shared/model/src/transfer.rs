//! The way of bytes from a checkpoint's files to resident tensors and back.
//!
//! ```text
//!  same type, host memory    file ──read──▶ tensor ──▶ hash            several readers, each hashes what it read when its turn comes
//!  anything else             file ──read──▶ staging ──copy──▶ tensor   two buffers: one is read into while the other is copied
//!                            hash ◀── staging ◀──copy── tensor
//! ```

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, TchError, Tensor};
use xxhash_rust::xxh3::Xxh3Default;

use crate::checkpoint::{Checkpoint, WeightsError, hex128};
use crate::native;
use crate::weight_file::{CHUNK, in_parallel, threads};

/// Size of one of the two staging buffers in bytes; a multiple of every type's width.
const STAGING: usize = 16 << 20;

/// Why a copy broke off.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file could not be read, or changed.
    #[error(transparent)]
    File(#[from] WeightsError),
    /// libtorch failed.
    #[error("libtorch failed: {0}")]
    Torch(#[from] TchError),
}

struct Piece<'a> {
    name: &'a str,
    offset: usize,
    bytes: &'a mut [u8],
}

/// The hash so far, and whose piece it waits for.
struct Turn {
    next: usize,
    hasher: Xxh3Default,
    failed: bool,
}

/// Fills every place with the tensor of its name and returns the XXH3-128 (hex) of the places in the given order.
///
/// The hash cannot be split over threads, but it can go from thread to thread: each hashes what it has just read, while that
/// is in its own processor's cache and the others read on.
pub(crate) fn read_and_hash(
    checkpoint: &Checkpoint,
    places: Vec<(&String, &mut [u8])>,
    threads: usize,
) -> Result<String, WeightsError> {
    let pieces = places.into_iter().flat_map(|(name, place)| {
        let pieces = place.chunks_mut(CHUNK).enumerate();
        pieces.map(move |(index, bytes)| Mutex::new(Some(Piece { name, offset: index * CHUNK, bytes })))
    });
    let pieces: Vec<_> = pieces.collect();
    let turn = Mutex::new(Turn { next: 0, hasher: Xxh3Default::new(), failed: false });
    let changed = Condvar::new();
    in_parallel(threads, pieces.len(), |index, _| {
        let Some(piece) = lock(&pieces[index]).take() else { return Ok(()) };
        let read = checkpoint.read(piece.name, piece.offset, piece.bytes, 1);
        // Pieces begin in order, so whoever has an earlier one is at work on it.
        let mut turn = lock(&turn);
        while turn.next != index && !turn.failed {
            turn = changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        if !turn.failed && read.is_ok() {
            turn.hasher.update(piece.bytes);
        }
        turn.next = index + 1;
        turn.failed |= read.is_err();
        changed.notify_all();
        read
    })?;
    Ok(hex128(lock(&turn).hasher.digest128()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two buffers in host memory, pinned where the tensors are on a CUDA device.
pub(crate) struct Staging {
    buffers: [Tensor; 2],
    turn: usize,
    device: Device,
}

impl Staging {
    pub fn new(device: Device) -> Result<Self, TchError> {
        let buffer = || {
            let plain = Tensor::f_zeros([STAGING as i64], (Kind::Uint8, Device::Cpu))?;
            if device.is_cuda() { plain.f_pin_memory(device) } else { Ok(plain) }
        };
        Ok(Self { buffers: [buffer()?, buffer()?], turn: 0, device })
    }

    /// Fills a resident tensor from the stored one of type `stored`; every piece of the file is shown to `look` on its way.
    /// The last copies may still be under way: see [`Staging::settle`].
    pub fn fill(
        &mut self,
        checkpoint: &Checkpoint,
        name: &str,
        tensor: &Tensor,
        stored: Kind,
        look: &mut dyn FnMut(&[u8]),
    ) -> Result<(), CopyError> {
        let flat = tensor.f_view(-1)?;
        for (start, elements) in pieces(tensor.numel(), stored) {
            self.turn = 1 - self.turn;
            let buffer = &mut self.buffers[self.turn];
            let width = stored.elt_size_in_bytes();
            let bytes = &mut native::bytes_mut(buffer)[..elements * width];
            checkpoint.read(name, start * width, bytes, threads())?;
            look(bytes);
            let typed = buffer.f_narrow(0, 0, (elements * width) as i64)?.f_view_dtype(stored)?;
            // The copy out of the other buffer has to end before that one is read into again.
            self.settle()?;
            native::copy_non_blocking(&mut flat.f_narrow(0, start as i64, elements as i64)?, &typed)?;
        }
        Ok(())
    }

    /// Waits until every copy has arrived.
    pub fn settle(&self) -> Result<(), TchError> {
        match self.device {
            Device::Cuda(index) => native::cuda_synchronize(index),
            _ => Ok(()),
        }
    }

    /// Shows the values of a resident tensor as bytes of type `stored`, piece by piece.
    pub fn show(&mut self, tensor: &Tensor, stored: Kind, look: &mut dyn FnMut(&[u8])) -> Result<(), CopyError> {
        let flat = tensor.f_view(-1)?;
        for (start, elements) in pieces(tensor.numel(), stored) {
            let mut piece = flat.f_narrow(0, start as i64, elements as i64)?;
            if native::is_plain(&piece) && piece.kind() == stored {
                look(native::bytes_mut(&mut piece));
                continue;
            }
            let buffer = &mut self.buffers[0];
            let bytes = elements * stored.elt_size_in_bytes();
            buffer.f_narrow(0, 0, bytes as i64)?.f_view_dtype(stored)?.f_copy_(&piece)?;
            look(&native::bytes_mut(buffer)[..bytes]);
        }
        Ok(())
    }
}

/// Starts and lengths, in elements, of the pieces that a tensor passes the staging buffers in.
fn pieces(elements: usize, kind: Kind) -> impl Iterator<Item = (usize, usize)> {
    let step = STAGING / kind.elt_size_in_bytes();
    (0..elements).step_by(step).map(move |start| (start, step.min(elements - start)))
}
