use super::*;

struct Case {
    what: &'static str,
    cause: Cause,
    exit: Exit,
    tail: &'static [&'static str],
    xids: &'static [u32],
    memory_kills: bool,
    class: DeathClass,
}

const EXITED: Case = Case {
    what: "",
    cause: Cause::Exited,
    exit: Exit::Code(1),
    tail: &[],
    xids: &[],
    memory_kills: false,
    class: DeathClass::Failed(1),
};

/// Last lines as torch, CUDA, NCCL, Python, glibc and the kernel write them.
fn cases() -> Vec<Case> {
    vec![
        Case { what: "an exit code alone", ..EXITED },
        Case { what: "a stop", cause: Cause::Stopped, exit: Exit::Signal(15), class: DeathClass::Stopped, ..EXITED },
        Case {
            what: "a stop that needed force, of a worker that had printed something bad",
            cause: Cause::Stopped,
            exit: Exit::Signal(9),
            tail: &["CUDA error: device-side assert triggered"],
            class: DeathClass::Stopped,
            ..EXITED
        },
        Case {
            what: "libtorch out of memory",
            tail: &[
                "ERROR The proof worker cannot go on. error=\"job 7 failed: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.21 GiB is free. Process 1234 has 77.93 GiB memory in use.\"",
            ],
            class: DeathClass::GpuMemory,
            ..EXITED
        },
        Case {
            what: "a server out of memory, told by its launcher",
            tail: &[
                "ERROR server: Scheduler hit an exception: Traceback (most recent call last):",
                "ERROR server: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.",
                "ERROR server: SIGQUIT received. It usually means one child failed.",
                "ERROR grail_gen_launcher: The generation launcher cannot go on. error=\"the generation server is gone: it ended by itself (signal: 9 (SIGKILL))\"",
            ],
            class: DeathClass::GpuMemory,
            ..EXITED
        },
        Case {
            what: "cuBLAS without memory for its handle",
            tail: &["RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"],
            class: DeathClass::GpuMemory,
            ..EXITED
        },
        Case {
            what: "NCCL without memory",
            tail: &["misc/strongstream.cc:395 NCCL WARN Cuda failure 'out of memory'"],
            class: DeathClass::GpuMemory,
            ..EXITED
        },
        Case {
            what: "a device-side assert",
            tail: &[
                "/pytorch/aten/src/ATen/native/cuda/Indexing.cu:1255: indexSelectSmallIndex: block: [0,0,0], thread: [0,0,0] Assertion `srcIndex < srcSelectDimSize` failed.",
                "CUDA error: device-side assert triggered",
                "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.",
            ],
            class: DeathClass::StickyCuda,
            ..EXITED
        },
        Case {
            what: "an abort from an uncaught CUDA exception",
            exit: Exit::Signal(6),
            tail: &[
                "terminate called after throwing an instance of 'c10::AcceleratorError'",
                "  what():  CUDA error: an illegal memory access was encountered",
            ],
            class: DeathClass::StickyCuda,
            ..EXITED
        },
        Case {
            what: "the XID that explains the CUDA error",
            exit: Exit::Signal(6),
            tail: &["  what():  CUDA error: an illegal memory access was encountered"],
            xids: &[31],
            class: DeathClass::Xid(31),
            ..EXITED
        },
        Case {
            what: "an XID in a line of the kernel log",
            tail: &["[1234.5] NVRM: Xid (PCI:0000:3b:00): 94, pid=4242, name=grail-proof-wor, Contained: SM (0x1)."],
            class: DeathClass::Xid(94),
            ..EXITED
        },
        Case {
            what: "a GPU that fell off the bus, met as a hang",
            cause: Cause::Hang("nothing moved for 30 s".into()),
            exit: Exit::Signal(9),
            xids: &[79],
            class: DeathClass::GpuLost,
            ..EXITED
        },
        Case {
            what: "the same from the kernel log",
            tail: &["NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."],
            class: DeathClass::GpuLost,
            ..EXITED
        },
        Case {
            what: "a memory error of which the driver says nothing",
            tail: &["RuntimeError: CUDA error: uncorrectable ECC error encountered"],
            class: DeathClass::GpuEcc,
            ..EXITED
        },
        Case {
            what: "a memory error that was contained",
            tail: &["RuntimeError: CUDA error: uncorrectable ECC error encountered"],
            xids: &[94],
            class: DeathClass::Xid(94),
            ..EXITED
        },
        Case {
            what: "a memory error that was not contained",
            tail: &["RuntimeError: CUDA error: uncorrectable ECC error encountered"],
            xids: &[48, 95],
            class: DeathClass::GpuLost,
            ..EXITED
        },
        Case {
            what: "a libtorch without its CUDA half, by the worker's exit code",
            exit: Exit::Code(86),
            tail: &[
                "ERROR The proof worker cannot go on. slot=0 class=\"no GPU\" error=\"the GPU that was given cannot be computed on: libtorch_cuda.so: cannot open shared object file: No such file or directory\"",
            ],
            class: DeathClass::NoGpu,
            ..EXITED
        },
        Case {
            what: "a worker on the CPU that was given a GPU",
            cause: Cause::NoGpu("it computes on cpu (cpu AVX512) where GPU 3 was given to it".into()),
            exit: Exit::Signal(15),
            class: DeathClass::NoGpu,
            ..EXITED
        },
        Case {
            what: "kernels for other GPUs than this one",
            tail: &["RuntimeError: CUDA error: no kernel image is available for execution on the device"],
            class: DeathClass::NoGpu,
            ..EXITED
        },
        Case {
            what: "a GPU in exclusive mode, by the worker's exit code",
            exit: Exit::Code(84),
            tail: &[
                "ERROR The proof worker cannot go on. error=\"CUDA error: CUDA-capable device(s) is/are busy or unavailable\"",
            ],
            class: DeathClass::GpuHeld,
            ..EXITED
        },
        Case {
            what: "a sticky error long after a job was refused for memory: the exit code knows",
            exit: Exit::Code(82),
            tail: &[
                "WARN The job is refused. job=3 reason=\"CUDA out of memory. Tried to allocate 2.32 GiB.\"",
                "ERROR The proof worker cannot go on. error=\"job 7: CUDA error: misaligned address\"",
            ],
            class: DeathClass::StickyCuda,
            ..EXITED
        },
        Case {
            what: "host memory during a load, by the exit code",
            exit: Exit::Code(81),
            class: DeathClass::HostMemory,
            ..EXITED
        },
        Case {
            what: "cuDNN without memory",
            tail: &["RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"],
            class: DeathClass::GpuMemory,
            ..EXITED
        },
        Case {
            what: "no GPU after a driver update",
            tail: &["CUDA error: no CUDA-capable device is detected"],
            class: DeathClass::GpuLost,
            ..EXITED
        },
        Case { what: "SIGKILL by an operator", exit: Exit::Signal(9), class: DeathClass::Killed, ..EXITED },
        Case {
            what: "SIGKILL by an operator long after a job was refused for memory",
            exit: Exit::Signal(9),
            tail: &["WARN The job is refused. job=3 reason=\"CUDA out of memory. Tried to allocate 2.32 GiB.\""],
            class: DeathClass::Killed,
            ..EXITED
        },
        Case { what: "SIGTERM by an operator", exit: Exit::Signal(15), class: DeathClass::Killed, ..EXITED },
        Case {
            what: "the kernel's memory killer",
            exit: Exit::Signal(9),
            memory_kills: true,
            class: DeathClass::HostMemory,
            ..EXITED
        },
        Case {
            what: "no memory for a C++ allocation",
            exit: Exit::Signal(6),
            tail: &["terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc"],
            class: DeathClass::HostMemory,
            ..EXITED
        },
        Case {
            what: "no memory for a tensor on the CPU",
            tail: &[
                "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 16106127360 bytes. Error code 12 (Cannot allocate memory)",
            ],
            class: DeathClass::HostMemory,
            ..EXITED
        },
        Case { what: "a segmentation fault", exit: Exit::Signal(11), class: DeathClass::Crashed(11), ..EXITED },
        Case {
            what: "arguments it does not know",
            exit: Exit::Code(64),
            tail: &["error: unexpected argument '--thread' found"],
            class: DeathClass::BadConfiguration,
            ..EXITED
        },
        Case {
            what: "a bad frame",
            cause: Cause::Protocol("the frame's checksum differs".into()),
            exit: Exit::Signal(15),
            class: DeathClass::Protocol,
            ..EXITED
        },
        Case {
            what: "a wrong proof",
            cause: Cause::WrongProof("its commitments hash differs".into()),
            exit: Exit::Signal(15),
            class: DeathClass::WrongProof,
            ..EXITED
        },
        Case {
            what: "another libtorch",
            cause: Cause::Differs("it computes with 2.10, the pool with 2.11".into()),
            exit: Exit::Signal(15),
            class: DeathClass::Differs,
            ..EXITED
        },
        Case {
            what: "a spot check",
            cause: Cause::Condemned("three of four workers disagree with it".into()),
            exit: Exit::Signal(15),
            class: DeathClass::Condemned,
            ..EXITED
        },
        Case {
            what: "a reload that broke off",
            tail: &["ERROR The proof worker cannot go on. error=\"the reload of 30-640221d8 failed: copying model.norm.weight\""],
            class: DeathClass::WeightsUnfit,
            ..EXITED
        },
        Case { what: "no hello", cause: Cause::Late("60 s".into()), exit: Exit::Signal(9), class: DeathClass::Late, ..EXITED },
        Case {
            what: "a hang",
            cause: Cause::Hang("nothing moved for 12 s".into()),
            exit: Exit::Signal(9),
            tail: &["INFO The weights are resident."],
            class: DeathClass::Hang,
            ..EXITED
        },
        Case {
            what: "SIGKILL that does not work",
            cause: Cause::Hang("nothing moved for 12 s".into()),
            exit: Exit::Stuck,
            class: DeathClass::Unkillable,
            ..EXITED
        },
        Case {
            what: "a socket that ended",
            cause: Cause::Closed,
            exit: Exit::Code(0),
            tail: &["INFO The supervisor closed the socket; the worker ends."],
            class: DeathClass::LostPeer,
            ..EXITED
        },
        Case {
            what: "a closed socket of a process that went on and was ended",
            cause: Cause::Closed,
            exit: Exit::Signal(15),
            class: DeathClass::LostPeer,
            ..EXITED
        },
        Case {
            what: "a rank that lost another",
            tail: &[
                "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:328, remote process exited or there was a network error, NCCL version 2.27.3",
            ],
            class: DeathClass::LostPeer,
            ..EXITED
        },
        Case {
            what: "a missing program",
            cause: Cause::CannotStart("No such file or directory".into()),
            exit: Exit::None,
            class: DeathClass::CannotStart,
            ..EXITED
        },
        Case {
            what: "a disk that hangs before it is started",
            cause: Cause::HostDisk("the disk of the sockets (state.folder): no answer within 5s".into()),
            exit: Exit::None,
            class: DeathClass::HostDisk,
            ..EXITED
        },
        Case {
            what: "a GPU in other hands",
            cause: Cause::GpuHeld("python (pid 4242) holds 71 GiB of GPU 3".into()),
            exit: Exit::None,
            class: DeathClass::GpuHeld,
            ..EXITED
        },
    ]
}

#[test]
fn every_death_has_its_class() {
    for case in cases() {
        let tail: Vec<String> = case.tail.iter().map(ToString::to_string).collect();
        let facts = Facts {
            cause: &case.cause,
            exit: case.exit,
            tail: &tail,
            xids: case.xids,
            gpu_gone: false,
            memory_kills: case.memory_kills,
        };
        assert_eq!(classify(&facts), case.class, "{}", case.what);
    }
}

#[test]
fn a_gpu_that_no_longer_answers_is_lost_whatever_the_child_said() {
    let facts = Facts { cause: &Cause::Closed, exit: Exit::Code(1), tail: &[], xids: &[], gpu_gone: true, memory_kills: false };
    assert_eq!(classify(&facts), DeathClass::GpuLost);
}

#[test]
fn reactions_match_the_table() {
    let table = include_str!("death.rs");
    for case in cases() {
        let json = serde_json::to_value(case.class).unwrap();
        let name = json["class"].as_str().unwrap();
        let row = table.lines().find(|line| line.starts_with(&format!("//! | `{name}` "))).expect(name);
        let said = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let reaction = match case.class.reaction() {
            Reaction::Rest => "rest",
            Reaction::Restart => "restart",
            Reaction::RestartLater => "restart later",
            Reaction::Quarantine => "quarantine",
        };
        assert_eq!(said.split(',').next().unwrap(), reaction, "{row}");
    }
}

#[test]
fn the_record_says_what_was_seen_and_keeps_the_last_lines() {
    let tail = vec!["CUDA error: device-side assert triggered".to_owned()];
    let facts =
        Facts { cause: &Cause::Exited, exit: Exit::Signal(6), tail: &tail, xids: &[], gpu_gone: false, memory_kills: false };
    let death = Death::of(&facts, Some(7), 1.5, Vec::new());
    assert_eq!(death.reason, "a CUDA error made its context useless (signal 6): CUDA error: device-side assert triggered");
    let json = serde_json::to_value(&death).unwrap();
    assert_eq!((json["class"].as_str(), json["lines"][0].as_str()), (Some("sticky_cuda"), Some(tail[0].as_str())));
}
