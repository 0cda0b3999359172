//! Faults of the device that a child computes on: known by the words of CUDA, cuBLAS, cuDNN, NCCL, libtorch and the C library, and
//! passed on as an exit code. Pure.
//!
//! | fault | exit code | what helps |
//! |---|---|---|
//! | GPU memory | 80 | a smaller batch; else a new process, which has nothing fragmented |
//! | host memory | 81 | the same, when there is more of it |
//! | sticky | 82 | a new process: the CUDA context is of no use any more |
//! | ECC | 83 | a new process, which gets other memory; a reset where the driver says that the error is not contained |
//! | busy | 84 | time: somebody else has the GPU, or its services are not up yet |
//! | lost | 85 | a reset, a reboot or new hardware |
//! | unusable | 86 | another libtorch, driver or GPU: these do not go together |
//!
//! libtorch's exceptions reach Rust as texts only, and so do the last lines of a server. A text that says nothing of this is no fault
//! of the device's.
#![forbid(unsafe_code)]

/// What is wrong with the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The GPU's memory does not suffice.
    GpuMemory,
    /// The host's memory does not suffice.
    HostMemory,
    /// A kernel failed, and with it the CUDA context: every later call fails too.
    Sticky,
    /// Memory or a link of the GPU gave back something else than was put in.
    Ecc,
    /// The GPU is there and does not let this process in.
    Busy,
    /// The GPU is gone.
    Lost,
    /// libtorch, driver and GPU do not go together.
    Unusable,
}

/// The words of each fault, in lower case. What explains goes before what follows from it, and the general words come last.
const WORDS: [(Fault, &[&str]); 8] = [
    (Fault::Lost, &["no cuda-capable device is detected", "gpu is lost", "fallen off the bus"]),
    (
        Fault::HostMemory,
        &[
            "defaultcpuallocator: can't allocate memory",
            "defaultcpuallocator: not enough memory",
            "host_allocation_failed",
            "std::bad_alloc",
        ],
    ),
    (
        Fault::GpuMemory,
        &[
            "cuda out of memory",
            "cuda error: out of memory",
            "cuda driver error: out of memory",
            "cuda failure 'out of memory'",
            "(out of memory)",
            "outofmemoryerror",
            "cudaerrormemoryallocation",
            "cublas_status_alloc_failed",
            "cusparse_status_alloc_failed",
            "cudnn_status_alloc_failed",
            "device_allocation_failed",
            // libtorch meant to say who holds the memory, and NVML did not answer.
            "nvml_success ==",
        ],
    ),
    (Fault::HostMemory, &["cannot allocate memory", "memoryerror", "memory allocation of "]),
    (Fault::Ecc, &["uncorrectable ecc error", "uncorrectable nvlink error", "peer gpu memory over nvlink or a hardware error"]),
    (
        Fault::Busy,
        &[
            "busy or unavailable",
            "device already in use",
            "prohibited compute mode",
            "system not yet initialized",
            "mps client failed to connect",
            "mps server is not ready",
            "required to create mps client have been exhausted",
        ],
    ),
    (
        Fault::Unusable,
        &[
            "no kernel image is available",
            "device kernel image is invalid",
            "ptx was compiled with an unsupported toolchain",
            "ptx jit compil",
            "driver version is insufficient",
            "driver on your system is too old",
            "found no nvidia driver",
            "not supported in the installed cuda driver",
            "unsupported display driver / cuda driver combination",
            "forward compatibility was attempted",
            "no cuda gpus are available",
            "invalid device ordinal",
            "_status_arch_mismatch",
            "cudnn_status_sublibrary_",
            "without aten_cuda library",
            "not compiled with cuda enabled",
        ],
    ),
    (
        Fault::Sticky,
        &[
            "cuda error:",
            "cuda driver error:",
            "cudaerror",
            "cublas_status_execution_failed",
            "cublas_status_internal_error",
            "cublas_status_mapping_error",
            "cublas_status_not_initialized",
            "cudnn_status_execution_failed",
            "cudnn_status_internal_error",
            "cudnn_status_mapping_error",
            "cudnn_status_not_initialized",
        ],
    ),
];

/// cuBLAS and cuDNN were asked for something that they do not do: a mistake of the program's, whatever libtorch calls it.
const NO_FAULTS: [&str; 4] =
    ["_status_not_supported", "_status_invalid_value", "_status_bad_param", "cuda error: invalid configuration argument"];

/// Bytes of a text that are looked at.
const MOST: usize = 2048;

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::GpuMemory, Self::HostMemory, Self::Sticky, Self::Ecc, Self::Busy, Self::Lost, Self::Unusable];

    /// The fault that an error's text, or a line of it, tells of. What libtorch says comes first, then many kilobytes of its stack, which
    /// are not copied: where memory has run out there may not be so much.
    pub fn in_text(text: &str) -> Option<Self> {
        let text = text[..text.floor_char_boundary(MOST)].to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let found = WORDS.iter().find(|(_, words)| says(words)).map(|(fault, _)| *fault)?;
        (found != Self::Sticky || !says(&NO_FAULTS)).then_some(found)
    }

    /// The exit code by which a child passes it on.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::GpuMemory => 80,
            Self::HostMemory => 81,
            Self::Sticky => 82,
            Self::Ecc => 83,
            Self::Busy => 84,
            Self::Lost => 85,
            Self::Unusable => 86,
        }
    }

    /// The fault that an exit code passes on.
    pub fn of_exit_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| i32::from(fault.exit_code()) == code)
    }

    /// Whether a smaller batch may do.
    pub fn is_memory(self) -> bool {
        matches!(self, Self::GpuMemory | Self::HostMemory)
    }

    /// What is wrong and what to do, for operators.
    pub fn advice(self) -> &'static str {
        match self {
            Self::GpuMemory => "the GPU's memory does not suffice: see with nvidia-smi who else uses it",
            Self::HostMemory => "the host's memory does not suffice: see what else runs, and the control group's limit",
            Self::Sticky => "the GPU's context is of no use any more; a new process gets a new one",
            Self::Ecc => {
                "the GPU's memory is damaged in one place; where it happens again, reset the GPU (nvidia-smi -r) or leave it out"
            }
            Self::Busy => {
                "somebody else has the GPU, or its services are not up yet: see nvidia-smi, its compute mode (nvidia-smi -c DEFAULT), \
                 nvidia-fabricmanager"
            }
            Self::Lost => "the GPU is gone: see dmesg for NVRM lines, reset it or reboot the host",
            Self::Unusable => {
                "libtorch, driver and GPU do not go together: LD_LIBRARY_PATH must name the torch/lib folder of a libtorch 2.11 with CUDA \
                 and all its parts (sudo and systemd drop that variable: it belongs into the unit), made for no newer CUDA than the \
                 driver's (nvidia-smi), and the GPU must be one of nvidia-smi -L with compute capability 8.0 or more"
            }
        }
    }
}

#[cfg(test)]
mod tests;
