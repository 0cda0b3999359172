//! Brings libtorch up, once per process and before anything else of this crate.

use std::fmt;
use std::str::FromStr;

use grail_faults::Fault;
use tch::{Device, Kind, TchError, Tensor};

use crate::native;

/// What a process shall compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceWish {
    /// The first visible GPU, else the CPU.
    #[default]
    Auto,
    /// The CPU; the CUDA half is not even loaded.
    Cpu,
    /// The first visible GPU, and nothing else.
    Cuda,
}

impl DeviceWish {
    /// `auto`, `cpu` or `cuda`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl FromStr for DeviceWish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Auto, Self::Cpu, Self::Cuda].into_iter().find(|wish| wish.name() == text);
        found.ok_or_else(|| format!("{text:?} is no device: use auto, cpu or cuda"))
    }
}

/// The GPU that was asked for cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the GPU that was given cannot be computed on: {reason}; {}", fault.advice())]
pub struct NoGpu {
    /// The loader's words, or libtorch's.
    pub reason: String,
    /// What that is.
    pub fault: Fault,
}

impl NoGpu {
    /// The loader or libtorch refuses, and says why.
    fn because(reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        let first = reason.lines().next().unwrap_or_default().trim().to_owned();
        // Whatever keeps a process from coming up on its GPU and is none of the known faults is a part that does not fit.
        Self { fault: Fault::in_text(&reason).unwrap_or(Fault::Unusable), reason: first }
    }
}

/// What libtorch turned out to be on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Version of the libtorch that was loaded, such as `2.11.0`, by its own account.
    pub libtorch: String,
    /// Version of the CUDA driver, such as `13.0`; `None` on the CPU.
    pub driver: Option<String>,
    /// The device's own name, such as `NVIDIA H200`; on the CPU the instruction set of the kernels, such as `cpu AVX512`.
    pub model: String,
    /// `true` when the CUDA half is loaded and a device is visible.
    pub cuda: bool,
    /// Why there is no CUDA device, in the loader's or libtorch's words; `None` where there is one.
    pub cpu_reason: Option<String>,
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

    /// What another process has to be told to compute on the same.
    pub fn wish(&self) -> DeviceWish {
        if self.cuda { DeviceWish::Cuda } else { DeviceWish::Cpu }
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
        match &self.cpu_reason {
            None => write!(f, " ({} visible)", self.devices),
            Some(reason) => write!(f, " ({} threads; no GPU: {reason})", self.threads),
        }
    }
}

/// Loads libtorch's CUDA half if there is one, sets the number of CPU threads (`None` leaves libtorch's choice, one per
/// core) and says what was found, and where no GPU was, why.
///
/// Call it first: the CUDA half registers itself only if it is loaded before any other use of libtorch.
pub fn startup(threads: Option<usize>) -> Runtime {
    native::keep_freed_memory();
    let absent = find_cuda().err();
    describe(absent.map(|absent| absent.reason), threads)
}

/// As [`startup()`], for a process that was told what to compute on.
///
/// # Errors
/// When that is a GPU and it cannot be computed on. Nothing falls back to the CPU.
pub fn startup_on(wish: DeviceWish, threads: Option<usize>) -> Result<Runtime, NoGpu> {
    match wish {
        DeviceWish::Auto => Ok(startup(threads)),
        DeviceWish::Cpu => {
            native::keep_freed_memory();
            Ok(describe(Some("it was told to compute on the CPU".to_owned()), threads))
        }
        DeviceWish::Cuda => {
            native::keep_freed_memory();
            find_cuda()?;
            first_kernel().map_err(NoGpu::because)?;
            Ok(describe(None, threads))
        }
    }
}

/// The CUDA half, and a device that it sees.
fn find_cuda() -> Result<(), NoGpu> {
    native::load_cuda_half().map_err(NoGpu::because)?;
    native::cuda_ready().map_err(|error| NoGpu::because(said(&error)))?;
    if tch::Cuda::is_available() { Ok(()) } else { Err(NoGpu::because("No CUDA GPUs are available")) }
}

/// A context and a kernel: a device that is busy, broken or too old for libtorch's code is found here and not in a load.
fn first_kernel() -> Result<(), String> {
    let counted =
        Tensor::f_ones([2], (Kind::Float, Device::Cuda(0))).and_then(|ones| ones.f_sum(Kind::Float)?.f_double_value(&[]));
    match counted {
        Ok(2.0) => Ok(()),
        Ok(other) => Err(format!("1 + 1 is {other} on it")),
        Err(error) => Err(said(&error)),
    }
}

/// libtorch's words without the crate's.
fn said(error: &TchError) -> String {
    match error {
        TchError::Torch(text) => text.clone(),
        error => error.to_string(),
    }
}

fn describe(cpu_reason: Option<String>, threads: Option<usize>) -> Runtime {
    if let Some(threads) = threads {
        tch::set_num_threads(i32::try_from(threads.clamp(1, 1024)).unwrap_or(1));
    }
    let cuda = cpu_reason.is_none();
    let driver = if cuda { native::cuda_driver() } else { None };
    let cpu = || format!("cpu {}", native::cpu_capability().unwrap_or_else(|_| "unknown".to_owned()));
    Runtime {
        libtorch: native::configuration().ok().and_then(|text| version(&text)).unwrap_or_else(|| "unknown".to_owned()),
        cuda,
        cpu_reason,
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
        assert_eq!((runtime.driver.is_some(), runtime.cpu_reason.is_none()), (runtime.cuda, runtime.cuda));
        assert!(runtime.cuda || runtime.model.starts_with("cpu A") || runtime.model.starts_with("cpu D"), "{}", runtime.model);
    }

    #[test]
    fn what_keeps_a_gpu_from_being_used_is_told_in_one_line_with_what_to_do() {
        let missing = NoGpu::because("libtorch_cuda.so: cannot open shared object file: No such file or directory");
        let text = missing.to_string();
        assert!(text.contains("libtorch_cuda.so: cannot open") && text.contains("LD_LIBRARY_PATH"), "{text}");
        let busy = NoGpu::because("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might be …");
        assert_eq!((busy.fault, busy.reason.lines().count()), (Fault::Busy, 1));
    }

    #[test]
    fn a_description_without_a_version_has_none() {
        assert_eq!(version("PyTorch built with: TORCH_VERSION=2.11.0, USE_CUDA=1"), Some("2.11.0".to_owned()));
        assert_eq!(version("PyTorch built with: something else"), None);
        assert_eq!(version("TORCH_VERSION=, USE_CUDA=1"), None);
    }
}
