//! The way of bytes from a checkpoint's files to resident tensors and back.
//!
//! ```text
//!  same type, host memory    file ──read──▶ tensor ──▶ hash            several readers, each hashes what it read when its turn comes
//!  anything else             file ──read──▶ staging ──copy──▶ tensor   two buffers: one is read into while the other is copied
//!                            hash ◀── staging ◀──copy── tensor         and one is hashed while the other is copied into
//! ```

use tch::{Device, Kind, TchError, Tensor};
use twox_hash::xxhash3_128::Hasher as Xxh3;

use crate::checkpoint::{Checkpoint, hex128};
use crate::native::{self, Event};
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

/// Two buffers in host memory, pinned where the tensors are on a CUDA device; made when they are needed. Their copies run beside
/// the host there, and each buffer is touched again only when its copy is done.
pub(crate) struct Staging {
    buffers: [Option<Buffer>; 2],
    turn: usize,
    device: Device,
    /// What was copied last and nobody has looked at yet: in which buffer it lies, and how many bytes.
    unseen: Option<(usize, usize)>,
}

struct Buffer {
    bytes: Tensor,
    /// Behind the last copy from or to it.
    copied: Option<Event>,
}

impl Buffer {
    fn make(device: Device) -> Result<Self, TchError> {
        let plain = Tensor::f_zeros([STAGING as i64], (Kind::Uint8, Device::Cpu))?;
        Ok(Self { bytes: if device.is_cuda() { plain.f_pin_memory(device)? } else { plain }, copied: None })
    }

    /// The memory, once no copy uses it any more.
    fn free(&mut self) -> Result<&mut [u8], TchError> {
        if let Some(event) = self.copied.take() {
            event.wait()?;
        }
        Ok(native::bytes_mut(&mut self.bytes))
    }

    /// The first bytes as numbers.
    fn typed(&self, bytes: usize, kind: Kind) -> Result<Tensor, TchError> {
        self.bytes.f_narrow(0, 0, bytes as i64)?.f_view_dtype(kind)
    }

    /// A copy that has this buffer at one end.
    fn copy(&mut self, to: &mut Tensor, from: &Tensor, device: Device) -> Result<(), TchError> {
        native::copy_non_blocking(to, from)?;
        if let Device::Cuda(index) = device {
            self.copied = Some(Event::record(index)?);
        }
        Ok(())
    }
}

impl Staging {
    pub fn new(device: Device) -> Self {
        Self { buffers: [None, None], turn: 0, device, unseen: None }
    }

    fn buffer(&mut self, index: usize) -> Result<&mut Buffer, TchError> {
        match &mut self.buffers[index] {
            Some(buffer) => Ok(buffer),
            none => Ok(none.insert(Buffer::make(self.device)?)),
        }
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
        let (width, device) = (stored.elt_size_in_bytes(), self.device);
        for (start, elements) in pieces(tensor.numel(), stored) {
            self.turn = 1 - self.turn;
            let buffer = self.buffer(self.turn)?;
            let bytes = &mut buffer.free()?[..elements * width];
            checkpoint.read(name, start * width, bytes, threads())?;
            look(bytes);
            let typed = buffer.typed(elements * width, stored)?;
            buffer.copy(&mut flat.f_narrow(0, start as i64, elements as i64)?, &typed, device)?;
        }
        Ok(())
    }

    /// Waits until every copy has arrived.
    pub fn settle(&mut self) -> Result<(), TchError> {
        self.buffers.iter_mut().flatten().try_for_each(|buffer| buffer.free().map(|_| ()))
    }

    /// Shows the values of a resident tensor as bytes of type `stored`, piece by piece. On CUDA each is shown while the next one is
    /// copied, also the next tensor's, and the very last by [`Staging::show_rest`].
    pub fn show(&mut self, tensor: &Tensor, stored: Kind, look: &mut dyn FnMut(&[u8])) -> Result<(), CopyError> {
        let flat = tensor.f_view(-1)?;
        let device = self.device;
        for (start, elements) in pieces(tensor.numel(), stored) {
            let mut piece = flat.f_narrow(0, start as i64, elements as i64)?;
            if native::is_plain(&piece) && piece.kind() == stored {
                self.show_rest(look)?;
                look(native::bytes_mut(&mut piece));
                continue;
            }
            let bytes = elements * stored.elt_size_in_bytes();
            let before = self.unseen.take();
            self.turn = before.map_or(self.turn, |(index, _)| 1 - index);
            let buffer = self.buffer(self.turn)?;
            buffer.free()?;
            let mut typed = buffer.typed(bytes, stored)?;
            buffer.copy(&mut typed, &piece, device)?;
            self.look_at(before, look)?;
            self.unseen = Some((self.turn, bytes));
            if !device.is_cuda() {
                // The processor that copied it has it in its cache.
                self.show_rest(look)?;
            }
        }
        Ok(())
    }

    /// Shows what [`Staging::show`] has not shown yet.
    pub fn show_rest(&mut self, look: &mut dyn FnMut(&[u8])) -> Result<(), CopyError> {
        let rest = self.unseen.take();
        self.look_at(rest, look)
    }

    fn look_at(&mut self, copied: Option<(usize, usize)>, look: &mut dyn FnMut(&[u8])) -> Result<(), CopyError> {
        if let Some((index, bytes)) = copied {
            look(&self.buffer(index)?.free()?[..bytes]);
        }
        Ok(())
    }
}

/// Starts and lengths, in elements, of the pieces that a tensor passes the staging buffers in.
fn pieces(elements: usize, kind: Kind) -> impl Iterator<Item = (usize, usize)> {
    let step = STAGING / kind.elt_size_in_bytes();
    (0..elements).step_by(step).map(move |start| (start, step.min(elements - start)))
}
