//! The way of bytes from a checkpoint's files to resident tensors and back.
//!
//! ```text
//!  same type, host memory    file ──read──▶ tensor ──▶ hash            several readers, each hashes what it read when its turn comes
//!  anything else             file ──read──▶ staging ──copy──▶ tensor   two buffers: one is read into while the other is copied
//!                            hash ◀── staging ◀──copy── tensor
//! ```

use tch::{Device, Kind, TchError, Tensor};
use twox_hash::xxhash3_128::Hasher as Xxh3;

use crate::checkpoint::{Checkpoint, hex128};
use crate::native;
use crate::weight_file::{CHUNK, in_order, threads};
use crate::weights_error::WeightsError;

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

/// Fills every place with the tensor of its name and returns the XXH3-128 (hex) of the places in the given order.
///
/// The hash cannot be split over threads, but it can go from thread to thread, while the others read on.
pub(crate) fn read_and_hash(
    checkpoint: &Checkpoint,
    places: Vec<(&String, &mut [u8])>,
    threads: usize,
) -> Result<String, WeightsError> {
    let pieces = places.into_iter().flat_map(|(name, place)| {
        let pieces = place.chunks_mut(CHUNK).enumerate();
        pieces.map(move |(index, bytes)| Piece { name, offset: index * CHUNK, bytes })
    });
    let mut hasher = Xxh3::new();
    let read = |_, piece: &mut Piece<'_>| checkpoint.read(piece.name, piece.offset, piece.bytes, 1);
    in_order(threads, pieces.collect(), read, &mut |piece| hasher.write(piece.bytes))?;
    Ok(hex128(hasher.finish_128()))
}

/// Two buffers in host memory, pinned where the tensors are on a CUDA device; made when they are needed.
pub(crate) struct Staging {
    buffers: Option<[Tensor; 2]>,
    turn: usize,
    device: Device,
}

impl Staging {
    pub fn new(device: Device) -> Self {
        Self { buffers: None, turn: 0, device }
    }

    fn buffer(&mut self, index: usize) -> Result<&mut Tensor, TchError> {
        let device = self.device;
        let make = || {
            let plain = Tensor::f_zeros([STAGING as i64], (Kind::Uint8, Device::Cpu))?;
            if device.is_cuda() { plain.f_pin_memory(device) } else { Ok(plain) }
        };
        let buffers = match &mut self.buffers {
            Some(buffers) => buffers,
            none => none.insert([make()?, make()?]),
        };
        Ok(&mut buffers[index])
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
            let buffer = self.buffer(self.turn)?;
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
            let buffer = self.buffer(0)?;
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
