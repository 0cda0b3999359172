use super::Fault::{self, Busy, Ecc, GpuMemory, HostMemory, Lost, Sticky, Unusable};

/// What follows every CUDA error of libtorch 2.11.
const NOTE: &str = "Search for `cudaErrorX' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more \
                    information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below \
                    might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to \
                    enable device-side assertions.\n";

/// Messages as their makers write them.
const MESSAGES: &[(Option<Fault>, &str)] = &[
    (
        Some(GpuMemory),
        "CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.21 GiB is free. Process \
         1234 has 77.93 GiB memory in use. Of the allocated memory 70.01 GiB is allocated by PyTorch",
    ),
    (Some(GpuMemory), "CUDA error: out of memory"),
    (Some(GpuMemory), "CUDA driver error: out of memory"),
    (Some(GpuMemory), "Allocation on device 0 would exceed allowed memory. (out of memory)\nCurrently allocated     : 20.53 GiB"),
    (Some(GpuMemory), "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."),
    (Some(GpuMemory), "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    (Some(GpuMemory), "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    (Some(GpuMemory), "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    (
        Some(GpuMemory),
        "NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() INTERNAL ASSERT FAILED at \"/pytorch/c10/cuda/CUDACachingAllocator.cpp\":1124, \
         please report a bug to PyTorch.",
    ),
    (Some(GpuMemory), "misc/strongstream.cc:395 NCCL WARN Cuda failure 'out of memory'"),
    (
        Some(HostMemory),
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 16106127360 \
         bytes. Error code 12 (Cannot allocate memory)",
    ),
    (Some(HostMemory), "std::bad_alloc"),
    (Some(HostMemory), "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    (Some(HostMemory), "memory allocation of 4294967296 bytes failed"),
    (Some(HostMemory), "MemoryError"),
    (Some(HostMemory), "OSError: [Errno 12] Cannot allocate memory"),
    (Some(Sticky), "CUDA error: an illegal memory access was encountered"),
    (Some(Sticky), "CUDA error: device-side assert triggered"),
    (Some(Sticky), "CUDA error: unspecified launch failure"),
    (Some(Sticky), "CUDA error: misaligned address"),
    (Some(Sticky), "CUDA error: an illegal instruction was encountered"),
    (Some(Sticky), "CUDA error: the launch timed out and was terminated"),
    (Some(Sticky), "CUDA error: unknown error"),
    (
        Some(Sticky),
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k, &falpha, a)`",
    ),
    (Some(Sticky), "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasSgemm( handle)`"),
    (Some(Sticky), "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    (Some(Sticky), "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    (Some(Sticky), "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    (Some(Sticky), "CUDA error: the MPS client has been terminated by the server"),
    (Some(Ecc), "CUDA error: uncorrectable ECC error encountered"),
    (Some(Ecc), "CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error"),
    (Some(Busy), "CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    (Some(Busy), "CUDA error: exclusive-thread device already in use by a different thread"),
    (Some(Busy), "CUDA error: the device is in prohibited compute mode"),
    (
        Some(Busy),
        "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that might have \
         already set an error? Error 802: system not yet initialized",
    ),
    (Some(Lost), "CUDA error: no CUDA-capable device is detected"),
    (Some(Lost), "GPU has fallen off the bus."),
    (
        Some(Lost),
        "Unable to determine the device handle for GPU0000:41:00.0: GPU is lost.  Reboot the system to recover this GPU",
    ),
    (Some(Unusable), "CUDA error: no kernel image is available for execution on the device"),
    (Some(Unusable), "CUDA error: the provided PTX was compiled with an unsupported toolchain."),
    (Some(Unusable), "CUDA error: device kernel image is invalid"),
    (Some(Unusable), "CUDA driver version is insufficient for CUDA runtime version"),
    (
        Some(Unusable),
        "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading and \
         installing a new version from the URL: http://www.nvidia.com/Download/index.aspx",
    ),
    (
        Some(Unusable),
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from \
         http://www.nvidia.com/Download/index.aspx",
    ),
    (Some(Unusable), "Error 803: system has unsupported display driver / cuda driver combination"),
    (Some(Unusable), "Error 804: forward compatibility was attempted on non supported HW"),
    (Some(Unusable), "No CUDA GPUs are available"),
    (Some(Unusable), "cuDNN error: CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH"),
    (Some(Unusable), "Cannot initialize CUDA without ATen_cuda library. PyTorch splits its backend into two shared libraries"),
    (None, "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul(handle)`"),
    (None, "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx(handle)`"),
    (None, "cuDNN error: CUDNN_STATUS_BAD_PARAM"),
    (None, "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    (None, "allow_splitk=False requires the cuBLASLt backend"),
    (None, "value cannot be converted to type at::Half without overflow"),
    (None, "WARN If you see out of memory errors, set --mem-fraction-static to a smaller value"),
    (None, "Memory ran out; the batch is computed in smaller ones."),
    (None, ""),
];

#[test]
fn real_messages_have_their_fault_with_and_without_what_libtorch_adds() {
    for (want, message) in MESSAGES {
        assert_eq!(Fault::in_text(message), *want, "{message}");
        if want.is_some() && message.starts_with("CUDA error: ") {
            let whole = format!("{message}\n{NOTE}Exception raised from c10_cuda_check_implementation at Exceptions.cpp:44");
            assert_eq!(Fault::in_text(&whole), *want, "{whole}");
        }
    }
}

#[test]
fn exit_codes_come_back_as_the_fault_and_stand_in_the_table() {
    let table = include_str!("lib.rs");
    for fault in Fault::ALL {
        let code = fault.exit_code();
        assert_eq!(Fault::of_exit_code(i32::from(code)), Some(fault));
        assert!(table.contains(&format!("| {code} |")), "{fault:?}");
    }
    for code in [0, 1, 64, 70, 79, 87, 101, 127, -1] {
        assert_eq!(Fault::of_exit_code(code), None, "{code}");
    }
}

#[test]
fn only_memory_is_helped_by_smaller_batches() {
    let small: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| fault.is_memory()).collect();
    assert_eq!(small, [GpuMemory, HostMemory]);
}

#[test]
fn what_to_do_is_not_taken_for_another_fault() {
    for fault in Fault::ALL {
        assert_eq!(Fault::in_text(fault.advice()), None, "{fault:?}");
    }
}
