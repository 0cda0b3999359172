//! Brings libtorch up, once per process and before anything else of this crate.

use std::fmt;

use tch::Device;

use crate::native;

/// What libtorch turned out to be on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Version of the libtorch that was loaded, such as `2.11.0`, by its own account.
    pub libtorch: String,
    /// Version of the CUDA driver, such as `13.0`; `None` on the CPU.
    pub driver: Option<String>,
    /// The device's own name, such as `NVIDIA H200`; on the CPU the instruction set of the kernels, such as `cpu AVX512`.
    pub model: String,
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
    native::keep_freed_memory();
    native::load_cuda_half();
    if let Some(threads) = threads {
        tch::set_num_threads(i32::try_from(threads.clamp(1, 1024)).unwrap_or(1));
    }
    let cuda = tch::Cuda::is_available();
    let driver = if cuda { native::cuda_driver() } else { None };
    let cpu = || format!("cpu {}", native::cpu_capability().unwrap_or_else(|_| "unknown".to_owned()));
    Runtime {
        libtorch: native::configuration().ok().and_then(|text| version(&text)).unwrap_or_else(|| "unknown".to_owned()),
        cuda,
        devices: if cuda { usize::try_from(tch::Cuda::device_count()).unwrap_or(0) } else { 0 },
        threads: usize::try_from(tch::get_num_threads()).unwrap_or(1),
        model: match &driver {
            Some((_, name)) => name.clone(),
            None if cuda => "cuda unknown".to_owned(),
            None => cpu(),
        },
        driver: driver.map(|(version, _)| format!("{}.{}", version / 1000, version % 1000 / 10)),
    }
}

/// The version in libtorch's description of its build, which says `TORCH_VERSION=2.11.0, ` among much else.
fn version(configuration: &str) -> Option<String> {
    let (_, rest) = configuration.split_once("TORCH_VERSION=")?;
    Some(rest.split([',', ' ', '\n']).next().unwrap_or_default().to_owned()).filter(|version| !version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_says_which_one_it_is() {
        let runtime = startup(None);
        assert!(runtime.libtorch.starts_with("2.11."), "{}", runtime.libtorch);
        assert_eq!(runtime.driver.is_some(), runtime.cuda);
        assert!(runtime.cuda || runtime.model.starts_with("cpu A") || runtime.model.starts_with("cpu D"), "{}", runtime.model);
    }

    #[test]
    fn a_description_without_a_version_has_none() {
        assert_eq!(version("PyTorch built with: TORCH_VERSION=2.11.0, USE_CUDA=1"), Some("2.11.0".to_owned()));
        assert_eq!(version("PyTorch built with: something else"), None);
        assert_eq!(version("TORCH_VERSION=, USE_CUDA=1"), None);
    }
}
