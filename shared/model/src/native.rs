//! Everything `unsafe` of this crate: loading libtorch's CUDA half, the C++ shim beside it, and the bytes under a tensor.
#![allow(unsafe_code)]

mod stream;

use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Device, TchError, Tensor};
use torch_sys::C_tensor;

pub(crate) use self::stream::{Event, to_pinned};

/// Longest text that the shim writes, with its final zero.
const TEXT_BYTES: usize = 4096;

/// libtorch's numerics switches; the layout is that of `GrailNumerics` in `native/shim.cpp`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Switches {
    pub tf32_matmul: u8,
    pub tf32_cudnn: u8,
    /// 0 highest, 1 high, 2 medium.
    pub matmul_precision: u8,
    /// 0 full precision without split-K, 1 full precision with split-K, 2 reduced precision with split-K.
    pub bf16_reduction: u8,
    /// As `bf16_reduction`.
    pub fp16_reduction: u8,
    pub deterministic_cudnn: u8,
    pub benchmark_cudnn: u8,
    pub deterministic_algorithms: u8,
    pub sdp_flash: u8,
    pub sdp_memory_efficient: u8,
    pub sdp_cudnn: u8,
    pub sdp_math: u8,
    pub sdp_math_reduction: u8,
}

unsafe extern "C" {
    safe fn grail_shim_keep_freed_memory();
    safe fn grail_shim_return_freed_memory();
    fn grail_shim_full_precision(error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_deterministic(error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_without_cudnn_attention(error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_math_attention_only(error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_numerics(out: *mut Switches, error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_configuration(out: *mut c_char, length: usize, error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_cpu_capability(out: *mut c_char, length: usize, error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_cuda_ready(error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_cuda_free(device: c_int, free_bytes: *mut u64, error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_cuda_take_peak(device: c_int, peak_bytes: *mut u64, error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_cuda_empty_cache(error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_copy_non_blocking(to: *mut C_tensor, from: *const C_tensor, error: *mut c_char, size: usize) -> c_int;
}

/// Calls the shim with a buffer for its error text, and turns that into the crate's usual error.
fn ask(call: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<(), TchError> {
    let mut error = [0u8; TEXT_BYTES];
    if call(error.as_mut_ptr().cast(), error.len()) == 0 { Ok(()) } else { Err(TchError::Torch(text(&error))) }
}

fn text(buffer: &[u8]) -> String {
    CStr::from_bytes_until_nul(buffer).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Levels 1 and 2 of the precision tuning.
pub(crate) fn full_precision() -> Result<(), TchError> {
    // SAFETY: the buffer is valid for the given length during the call; the shim lets no exception out.
    ask(|error, size| unsafe { grail_shim_full_precision(error, size) })
}

/// Level 2 of the precision tuning.
pub(crate) fn deterministic() -> Result<(), TchError> {
    // SAFETY: as in `full_precision`.
    ask(|error, size| unsafe { grail_shim_deterministic(error, size) })
}

/// Takes cuDNN's kernel out of the choice of attention kernels.
pub(crate) fn without_cudnn_attention() -> Result<(), TchError> {
    // SAFETY: as in `full_precision`.
    ask(|error, size| unsafe { grail_shim_without_cudnn_attention(error, size) })
}

/// Leaves of the fused attention kernels only the plain arithmetic.
pub(crate) fn math_attention_only() -> Result<(), TchError> {
    // SAFETY: as in `full_precision`.
    ask(|error, size| unsafe { grail_shim_math_attention_only(error, size) })
}

/// Reads all switches back.
pub(crate) fn switches() -> Result<Switches, TchError> {
    let mut switches = Switches::default();
    // SAFETY: both sides agree on the layout, which has no padding (bytes only); buffers outlive the call.
    ask(|error, size| unsafe { grail_shim_numerics(&raw mut switches, error, size) })?;
    Ok(switches)
}

/// libtorch's own description of its build, of the library that was really loaded.
pub(crate) fn configuration() -> Result<String, TchError> {
    let mut out = vec![0u8; 16 * TEXT_BYTES];
    // SAFETY: both buffers are valid for the lengths given with them.
    ask(|error, size| unsafe { grail_shim_configuration(out.as_mut_ptr().cast(), out.len(), error, size) })?;
    Ok(text(&out))
}

/// The instruction set of the CPU kernels, such as `AVX512`.
pub(crate) fn cpu_capability() -> Result<String, TchError> {
    let mut out = vec![0u8; TEXT_BYTES];
    // SAFETY: both buffers are valid for the lengths given with them.
    ask(|error, size| unsafe { grail_shim_cpu_capability(out.as_mut_ptr().cast(), out.len(), error, size) })?;
    Ok(text(&out))
}

/// Bytes that the driver has free on a CUDA device.
pub(crate) fn cuda_free(device: usize) -> Result<u64, TchError> {
    let mut bytes = 0;
    // SAFETY: the pointer is valid during the call; without a CUDA half the shim reports an error.
    ask(|error, size| unsafe { grail_shim_cuda_free(index(device), &raw mut bytes, error, size) })?;
    Ok(bytes)
}

/// The most bytes that tensors took on a CUDA device since the last call.
pub(crate) fn cuda_take_peak(device: usize) -> Result<u64, TchError> {
    let mut bytes = 0;
    // SAFETY: as in `cuda_free`.
    ask(|error, size| unsafe { grail_shim_cuda_take_peak(index(device), &raw mut bytes, error, size) })?;
    Ok(bytes)
}

/// Gives unused blocks of libtorch's cache back to the CUDA driver.
pub(crate) fn cuda_empty_cache() -> Result<(), TchError> {
    // SAFETY: as in `full_precision`.
    ask(|error, size| unsafe { grail_shim_cuda_empty_cache(error, size) })
}

fn index(device: usize) -> c_int {
    c_int::try_from(device).unwrap_or(c_int::MAX)
}

/// Enqueues a copy; the caller leaves both sides alone until an [`Event`] that was recorded later has come. Either may be dropped before:
/// libtorch's allocators give their memory to nobody until then.
pub(crate) fn copy_non_blocking(to: &mut Tensor, from: &Tensor) -> Result<(), TchError> {
    // SAFETY: torch-sys' C_tensor is at::Tensor (its own C++ side casts alike); both handles are alive during the call.
    ask(|error, size| unsafe { grail_shim_copy_non_blocking(to.as_mut_ptr(), from.as_ptr(), error, size) })
}

/// Lets this process keep the memory it frees, for the next batch: every tensor of a pass is as large as the last pass's, and
/// on the CPU a tenth of the time would go into getting the same pages again and again.
pub(crate) fn keep_freed_memory() {
    grail_shim_keep_freed_memory();
}

/// Gives back what is free now: after weights were read, their staging is of no use to a batch.
pub(crate) fn return_freed_memory() {
    grail_shim_return_freed_memory();
}

/// Makes libtorch's CUDA half available.
///
/// The programs link libtorch's CPU half only. The CUDA half registers itself when it is loaded, so it must be loaded
/// before the first other call into libtorch, with its symbols visible to all, and never be closed.
///
/// # Errors
/// The loader's words: it is not installed, or a part of it is missing.
pub(crate) fn load_cuda_half() -> Result<(), String> {
    // SAFETY: the library is libtorch's own; its initialisers register back ends and have no precondition but that no other
    // libtorch call runs at the same time, and `startup` is the first one of a process.
    let loaded = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    // The error's own text says that something failed; what it was is below it.
    loaded.map(std::mem::forget).map_err(|error| error.source().map_or_else(|| error.to_string(), ToString::to_string))
}

/// Brings CUDA up as the first tensor would, and says in libtorch's words why it cannot be had.
pub(crate) fn cuda_ready() -> Result<(), TchError> {
    // SAFETY: as in `full_precision`.
    ask(|error, size| unsafe { grail_shim_cuda_ready(error, size) })
}

/// Version of the CUDA driver (`13000` is 13.0) and name of the first visible device, from the driver's library, which
/// libtorch has loaded when it found a device. `None` where that library does not answer.
pub(crate) fn cuda_driver() -> Option<(c_int, String)> {
    type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    let mut version = 0;
    let mut name = [0u8; 256];
    // SAFETY: the driver's library is loaded and initialised (libtorch counted devices with it) and never unloaded while
    // libtorch holds it; both functions have these C signatures in every CUDA version; pointers outlive the calls.
    let answered = unsafe {
        let library = Library::open(Some("libcuda.so.1"), RTLD_NOW).ok()?;
        let get_version = library.get::<Version>(b"cuDriverGetVersion\0").ok()?;
        let get_name = library.get::<Name>(b"cuDeviceGetName\0").ok()?;
        get_version(&raw mut version) == 0 && get_name(name.as_mut_ptr().cast(), 255, 0) == 0
    };
    answered.then(|| (version, text(&name)))
}

/// Whether [`bytes_mut`] can show the memory of a tensor.
pub(crate) fn is_plain(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.is_contiguous()
}

/// The memory of a tensor for which [`is_plain`] holds, row-major.
pub(crate) fn bytes_mut(tensor: &mut Tensor) -> &mut [u8] {
    assert!(is_plain(tensor), "only contiguous tensors in host memory can be seen as bytes");
    let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if bytes == 0 {
        return &mut [];
    }
    // SAFETY: the tensor is contiguous in host memory (asserted), so that many bytes follow its data pointer, and every byte
    // is initialised memory of plain numbers. The storage lives at least as long as the handle that is borrowed. Handles that
    // share the storage exist (the network's), but they lie in the same `Model` and are not used while it is borrowed mutably.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), bytes) }
}
