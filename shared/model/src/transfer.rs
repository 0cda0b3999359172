//! The way of bytes from a checkpoint's files to resident tensors and back.
//!
//! ```text
//!  same type, host memory    file ──read──▶ tensor ──▶ hash            several readers, the hash follows behind them
//!  anything else             file ──read──▶ staging ──copy──▶ tensor   two buffers: one is read into while the other is copied
//!                            hash ◀── staging ◀──copy── tensor
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, mpsc};

use tch::{Device, Kind, TchError, Tensor};
use xxhash_rust::xxh3::Xxh3Default;

use crate::checkpoint::{Checkpoint, WeightsError, hex128};
use crate::native;
use crate::weight_file::{CHUNK, threads};

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

impl<'a> Piece<'a> {
    fn read(self, checkpoint: &Checkpoint) -> Result<&'a [u8], WeightsError> {
        checkpoint.read(self.name, self.offset, self.bytes, 1)?;
        Ok(self.bytes)
    }
}

/// Fills every place with the tensor of its name and returns the XXH3-128 (hex) of the places in the given order.
///
/// The hash cannot be split over threads, but it can follow the readers: what was just read is still in the cache. This
/// thread hashes whatever is next in order, and reads with the others while that is not there yet.
pub(crate) fn read_and_hash(
    checkpoint: &Checkpoint,
    places: Vec<(&String, &mut [u8])>,
    threads: usize,
) -> Result<String, WeightsError> {
    let pieces: Vec<Piece> = places
        .into_iter()
        .flat_map(|(name, place)| {
            let pieces = place.chunks_mut(CHUNK).enumerate();
            pieces.map(move |(index, bytes)| Piece { name, offset: index * CHUNK, bytes })
        })
        .collect();
    let count = pieces.len();
    let queue = Mutex::new(pieces.into_iter().enumerate());
    let take = &|| queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        // Both ends belong to this closure: when it returns early, the readers find nobody to send to and end.
        let (done, read) = mpsc::channel();
        for _ in 1..threads.min(count) {
            let done = done.clone();
            let reader = move || {
                while let Some((index, piece)) = take() {
                    if done.send((index, piece.read(checkpoint))).is_err() {
                        return;
                    }
                }
            };
            // Where the system has no thread to give, this one does the work alone.
            let _ = std::thread::Builder::new().name("weights".into()).spawn_scoped(scope, reader);
        }
        drop(done);
        let mut hasher = Xxh3Default::new();
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        while next < count {
            if let Some(bytes) = waiting.remove(&next) {
                hasher.update(bytes);
                next += 1;
                continue;
            }
            let found = match read.try_recv() {
                Ok(found) => found,
                Err(_) => match take() {
                    Some((index, piece)) => (index, piece.read(checkpoint)),
                    // Everything is taken; a reader has what is missing. If it panicked, the scope does so too.
                    None => match read.recv() {
                        Ok(found) => found,
                        Err(_) => break,
                    },
                },
            };
            waiting.insert(found.0, found.1?);
        }
        Ok(hex128(hasher.digest128()))
    })
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
