//! Copies that a CUDA device makes beside the computation, and the places in its stream at which they are done.

use std::ffi::{c_char, c_int};
use std::ptr::NonNull;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::{ask, index};

/// `c10::Event`, which only the shim looks into.
#[repr(C)]
struct RawEvent {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn grail_shim_to_pinned(from: *const C_tensor, error: *mut c_char, size: usize) -> *mut C_tensor;
    fn grail_shim_event_record(device: c_int, error: *mut c_char, size: usize) -> *mut RawEvent;
    fn grail_shim_event_wait(event: *const RawEvent, error: *mut c_char, size: usize) -> c_int;
    fn grail_shim_event_free(event: *mut RawEvent);
}

/// Calls a function of the shim that gives a pointer, or null and a text.
fn given<T>(call: impl FnOnce(*mut c_char, usize) -> *mut T) -> Result<NonNull<T>, TchError> {
    let mut found = None;
    let asked = ask(|error, size| {
        found = NonNull::new(call(error, size));
        if found.is_some() { 0 } else { -1 }
    });
    asked.and_then(|()| found.ok_or_else(|| TchError::Torch("libtorch gave nothing and no reason".to_owned())))
}

/// A copy of a CUDA tensor in pinned host memory. It is enqueued: read it after an [`Event`] that was recorded later has come.
pub(crate) fn to_pinned(from: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: torch-sys' C_tensor is at::Tensor; the handle is alive during the call, and libtorch's allocator keeps the memory
    // of both sides until the enqueued copy is done, whenever their handles are dropped. The result is a new handle of our own.
    unsafe {
        let copied = given(|error, size| grail_shim_to_pinned(from.as_ptr(), error, size))?;
        Ok(Tensor::from_ptr(copied.as_ptr()))
    }
}

/// A place in the stream of a CUDA device.
#[derive(Debug)]
pub(crate) struct Event(NonNull<RawEvent>);

impl Event {
    /// Marks what was enqueued on the device so far.
    pub fn record(device: usize) -> Result<Self, TchError> {
        // SAFETY: the buffer is valid during the call; without a CUDA half the shim reports an error.
        given(|error, size| unsafe { grail_shim_event_record(index(device), error, size) }).map(Self)
    }

    /// Waits until all of that is done.
    pub fn wait(&self) -> Result<(), TchError> {
        // SAFETY: the event is alive until it is dropped, and waiting does not change it.
        ask(|error, size| unsafe { grail_shim_event_wait(self.0.as_ptr(), error, size) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the shim made it, nobody else holds it, and it is not used afterwards.
        unsafe { grail_shim_event_free(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_events_are_refused_with_a_reason() {
        if !tch::Cuda::is_available() {
            let error = Event::record(0).unwrap_err().to_string();
            assert!(error.len() > 20, "libtorch says what is missing: {error:?}");
        }
    }

    #[test]
    fn a_tensor_comes_whole_into_pinned_memory() {
        if tch::Cuda::is_available() {
            let tensor = Tensor::arange(1000, (tch::Kind::Float, tch::Device::Cuda(0)));
            let copied = to_pinned(&tensor).unwrap();
            Event::record(0).unwrap().wait().unwrap();
            assert_eq!(Vec::<f32>::try_from(copied).unwrap()[999], 999.0);
        } else {
            to_pinned(&Tensor::arange(3, (tch::Kind::Float, tch::Device::Cpu))).unwrap_err();
        }
    }
}
