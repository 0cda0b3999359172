//! Everything `unsafe` of this crate: loading libtorch's CUDA half, mapping files, and viewing mapped bytes as a tensor.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use memmap2::Mmap;
use tch::{Device, Kind, TchError, Tensor};

/// Makes libtorch's CUDA half available if it is installed; `false` where it is not, which is no error.
///
/// The programs link libtorch's CPU half only. The CUDA half registers itself when it is loaded, so it must be loaded
/// before the first other call into libtorch, with its symbols visible to all, and never be closed.
pub(crate) fn load_cuda_half() -> bool {
    // SAFETY: the library is libtorch's own; its initialisers register back ends and have no precondition but that no other
    // libtorch call runs at the same time, and `startup` is the first one of a process.
    let loaded = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    loaded.map(std::mem::forget).is_ok()
}

/// Maps a whole file for reading.
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: a checkpoint's directory is written once, then only read (new checkpoints get new directories), so nobody
    // shortens or rewrites the file while it is mapped.
    unsafe { Mmap::map(file) }
}

/// Calls `read` with a tensor that borrows `bytes` (contiguous, on the CPU, not to be written), without a copy.
///
/// # Errors
/// When `bytes` has not the size that `shape` and `kind` ask for, is not aligned for `kind`, or libtorch refuses.
pub(crate) fn with_view<R>(bytes: &[u8], shape: &[i64], kind: Kind, read: impl FnOnce(&Tensor) -> R) -> Result<R, TchError> {
    let width = kind.elt_size_in_bytes();
    let elements = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(usize::try_from(side).ok()?));
    if elements.and_then(|elements| elements.checked_mul(width)) != Some(bytes.len()) {
        return Err(TchError::Shape(format!("{} bytes do not hold {kind:?} {shape:?}", bytes.len())));
    }
    if bytes.as_ptr().align_offset(width) != 0 {
        // A header of odd length puts the data anywhere: then a copy is unavoidable.
        return Ok(read(&Tensor::f_from_data_size(bytes, shape, kind)?));
    }
    // SAFETY: the bytes are readable, aligned and exactly as many as shape and kind ask for (both checked above; no strides
    // means contiguous); the tensor does not outlive this call, hence not the borrow, because `read` gets a reference and a
    // `Tensor` shares storage only through an explicit shallow clone, which no caller of this crate makes of it.
    let view = unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, &[], kind, Device::Cpu)? };
    Ok(read(&view))
}
