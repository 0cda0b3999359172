//! Copies between host and device that run beside the computation.
//!
//! ```text
//!  host     pack n+1 ─ upload ─ submit n+1 ─────── wait for event n ── read n
//!  device   … forward n ─ download n, event n ─ upload n+1 ─ forward n+1 …
//! ```
//!
//! A copy from pageable memory waits for everything that is enqueued before it, and so would the host. So what a batch needs goes
//! up through pinned memory before its forward pass, and what it gives comes down into pinned memory; only the event behind
//! that is waited for. On the CPU nothing is copied and nothing waited for.

use tch::{Device, TchError, Tensor};

use crate::native::{self, Event};

/// Lists of numbers on the device, all of them by one copy.
pub(crate) fn upload<const N: usize>(lists: [&[i64]; N], device: Device) -> Result<[Tensor; N], TchError> {
    let host = Tensor::f_from_slice(&lists.concat())?;
    let there = if device.is_cuda() {
        let mut there = Tensor::f_empty(host.size(), (host.kind(), device))?;
        // The pinned memory is dropped before the copy is done: libtorch's allocator gives it to nobody before that.
        native::copy_non_blocking(&mut there, &host.f_pin_memory(device)?)?;
        there
    } else {
        host
    };
    let parts = there.f_split_with_sizes(&lists.map(|list| list.len() as i64)[..], 0)?;
    parts.try_into().map_err(|parts: Vec<Tensor>| TchError::Shape(format!("{N} lists were split into {} parts", parts.len())))
}

/// Tensors on their way from the device to the host.
#[derive(Debug)]
pub(crate) struct Download<const N: usize> {
    tensors: [Tensor; N],
    arrived: Option<Event>,
}

impl<const N: usize> Download<N> {
    /// Enqueues the copies; nothing is waited for.
    pub fn start(tensors: [Tensor; N], device: Device) -> Result<Self, TchError> {
        let Device::Cuda(index) = device else { return Ok(Self { tensors, arrived: None }) };
        let copies = tensors.iter().map(native::to_pinned).collect::<Result<Vec<_>, _>>()?;
        let arrived = Some(Event::record(index)?);
        // As many copies as tensors.
        let tensors = copies.try_into().unwrap_or(tensors);
        Ok(Self { tensors, arrived })
    }

    /// The tensors on the host, when they are there.
    pub fn finish(self) -> Result<[Tensor; N], TchError> {
        if let Some(event) = &self.arrived {
            event.wait()?;
        }
        Ok(self.tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_apart_as_they_were_put_together() {
        let device = if tch::Cuda::is_available() { Device::Cuda(0) } else { Device::Cpu };
        let lists: [&[i64]; 4] = [&[7, -1, i64::MAX], &[], &[5], &[0; 300]];
        let there = upload(lists, device).unwrap();
        assert!(there.iter().all(|tensor| tensor.device() == device));
        let back = Download::start(there, device).unwrap().finish().unwrap();
        assert!(back.iter().all(|tensor| tensor.device() == Device::Cpu));
        for (list, back) in lists.iter().zip(&back) {
            assert_eq!(Vec::<i64>::try_from(back).unwrap(), *list);
        }
    }
}
