//! Brings libtorch up, once per process and before anything else of this crate.

use std::fmt;

use tch::Device;

use crate::native;

/// The one version torch-sys 0.24 builds against; its build script refuses another.
const LIBTORCH: &str = "2.11.0";

/// What libtorch turned out to be on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// The libtorch version this program was built for (torch-sys refuses to build against another).
    pub libtorch: &'static str,
    /// `true` when the CUDA half is installed and a device is visible.
    pub cuda: bool,
    /// Number of visible CUDA devices.
    pub devices: usize,
    /// Threads libtorch computes with on the CPU.
    pub threads: usize,
}

impl Runtime {
    /// The device that models go to: the first visible CUDA device, else the CPU.
    pub fn device(&self) -> Device {
        if self.cuda { Device::Cuda(0) } else { Device::Cpu }
    }

    /// `cpu` or `cuda:0`, as messages name [`Runtime::device`].
    pub fn device_label(&self) -> &'static str {
        if self.cuda { "cuda:0" } else { "cpu" }
    }

    /// `CPU` or `CUDA`, for sentences.
    pub fn device_name(&self) -> &'static str {
        if self.cuda { "CUDA" } else { "CPU" }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libtorch {} on {}", self.libtorch, self.device_name())?;
        if self.cuda { write!(f, " ({} visible)", self.devices) } else { write!(f, " ({} threads)", self.threads) }
    }
}

/// Loads libtorch's CUDA half if there is one, sets the number of CPU threads (`None` leaves libtorch's choice, one per
/// core) and says what was found.
///
/// Call it first: the CUDA half registers itself only if it is loaded before any other use of libtorch.
pub fn startup(threads: Option<usize>) -> Runtime {
    native::load_cuda_half();
    if let Some(threads) = threads {
        tch::set_num_threads(i32::try_from(threads.clamp(1, 1024)).unwrap_or(1));
    }
    let cuda = tch::Cuda::is_available();
    Runtime {
        libtorch: LIBTORCH,
        cuda,
        devices: if cuda { usize::try_from(tch::Cuda::device_count()).unwrap_or(0) } else { 0 },
        threads: usize::try_from(tch::get_num_threads()).unwrap_or(1),
    }
}
