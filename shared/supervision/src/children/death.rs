//! Why a child died, from everything that can be known about it, and what follows from it (pure).
//!
//! | class | seen as | reaction |
//! |---|---|---|
//! | `stopped` | the supervisor ended it | rest |
//! | `gpu_memory` | torch, cuBLAS or NCCL name CUDA memory in its last lines | restart |
//! | `host_memory` | SIGKILL while the kernel's count of memory kills rose; `bad_alloc`, `MemoryError` | restart later |
//! | `sticky_cuda` | a CUDA error after which its context is of no use: assert, illegal access, launch failure | restart |
//! | `xid` | NVML or the kernel log reports an XID that a new process outlives (13, 31, 43, 94, ...) | restart |
//! | `gpu_lost` | an XID that only a reset or new hardware mends (48, 79, 95, ...), or a GPU that is gone | quarantine |
//! | `gpu_held` | the memory of its GPU did not come back in time; the holder is named | restart later, not counted |
//! | `killed` | SIGKILL, SIGTERM, SIGINT, SIGHUP from outside | restart |
//! | `crashed` | any other signal | restart |
//! | `bad_configuration` | exit code 64 | quarantine |
//! | `cannot_start` | its program cannot be executed | restart |
//! | `host_disk` | the disk of its socket hangs or refuses; the child was never there | restart, not counted |
//! | `late` | no hello within the start-up limit | restart |
//! | `protocol` | a bad frame, an unexpected message, a wrong peer | restart |
//! | `wrong_proof` | an answer that must not be signed | restart |
//! | `differs` | it computes with another device, dtype, kernel or libtorch than the pool | quarantine |
//! | `condemned` | judged from outside, as by a spot check | quarantine |
//! | `weights_unfit` | it may hold a mixture of weights | restart |
//! | `hang` | work is pending and nothing moved, or it was stopped by a signal | restart, after its threads were noted |
//! | `unkillable` | SIGKILL did not end it: it sits in the kernel | quarantine |
//! | `lost_peer` | its connection, or that of one of its own processes, ended | restart |
//! | `failed` | any other exit code | restart |
//!
//! A restart waits by the life cycle's back-off and counts towards quarantine; "later" waits the longest back-off.

use serde::{Deserialize, Serialize};

use super::output::PANIC;

/// Why a child died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "class", content = "detail")]
#[allow(missing_docs, reason = "the table on top of this file says what each one means")]
pub enum DeathClass {
    Stopped,
    GpuMemory,
    HostMemory,
    StickyCuda,
    Xid(u32),
    GpuLost,
    GpuHeld,
    Killed,
    Crashed(i32),
    BadConfiguration,
    CannotStart,
    HostDisk,
    Late,
    Protocol,
    WrongProof,
    Differs,
    Condemned,
    WeightsUnfit,
    Hang,
    Unkillable,
    LostPeer,
    Failed(i32),
}

/// What follows from a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing: it was wanted.
    Rest,
    /// Start it again after the back-off.
    Restart,
    /// Start it again after the longest back-off: what it lacks takes time to come back.
    RestartLater,
    /// Leave it down; a restart cannot mend it.
    Quarantine,
}

impl DeathClass {
    /// What follows.
    pub fn reaction(self) -> Reaction {
        match self {
            Self::Stopped => Reaction::Rest,
            Self::HostMemory | Self::GpuHeld => Reaction::RestartLater,
            Self::GpuLost | Self::BadConfiguration | Self::Differs | Self::Condemned | Self::Unkillable => Reaction::Quarantine,
            Self::GpuMemory
            | Self::StickyCuda
            | Self::Xid(_)
            | Self::Killed
            | Self::Crashed(_)
            | Self::CannotStart
            | Self::HostDisk
            | Self::Late
            | Self::Protocol
            | Self::WrongProof
            | Self::WeightsUnfit
            | Self::Hang
            | Self::LostPeer
            | Self::Failed(_) => Reaction::Restart,
        }
    }

    /// Whether it counts towards quarantine. A stranger on the GPU, and the host's disk, say nothing about the child.
    pub fn counts(self) -> bool {
        !matches!(self, Self::Stopped | Self::GpuHeld | Self::HostDisk)
    }

    /// For operators.
    fn words(self) -> String {
        match self {
            Self::Stopped => "it was stopped".into(),
            Self::GpuMemory => "the GPU's memory did not suffice".into(),
            Self::HostMemory => "the host's memory ran out".into(),
            Self::StickyCuda => "a CUDA error made its context useless".into(),
            Self::Xid(xid) => format!("the driver reported XID {xid} for its GPU"),
            Self::GpuLost => "its GPU needs a reset or is broken".into(),
            Self::GpuHeld => "its GPU is held by somebody else".into(),
            Self::Killed => "it was killed from outside".into(),
            Self::Crashed(signal) => format!("it crashed with signal {signal}"),
            Self::BadConfiguration => "it refused its arguments".into(),
            Self::CannotStart => "it could not be started".into(),
            Self::HostDisk => "the host's disk did not let it start".into(),
            Self::Late => "it did not say hello in time".into(),
            Self::Protocol => "it broke the protocol".into(),
            Self::WrongProof => "it answered with a proof that must not be signed".into(),
            Self::Differs => "it computes with something else than the pool".into(),
            Self::Condemned => "it was taken out of service".into(),
            Self::WeightsUnfit => "its weights cannot be trusted".into(),
            Self::Hang => "it made no progress".into(),
            Self::Unkillable => "not even SIGKILL ends it; its GPU's driver is stuck, as a rule: reboot the host".into(),
            Self::LostPeer => "it lost a connection".into(),
            Self::Failed(code) => format!("it failed with exit code {code}"),
        }
    }
}

/// What ended a life, as the supervisor met it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The supervisor wants it gone.
    Stopped,
    /// The process ended.
    Exited,
    /// The process closed its end of the link, and may have ended.
    Closed,
    /// A bad frame, an unexpected message, a wrong peer.
    Protocol(String),
    /// A proof that must not be signed.
    WrongProof(String),
    /// It differs from the pool.
    Differs(String),
    /// Judged from outside.
    Condemned(String),
    /// It may hold a mixture of weights.
    WeightsUnfit(String),
    /// The program cannot be executed.
    CannotStart(String),
    /// Its socket cannot be bound.
    HostDisk(String),
    /// The GPU's memory did not come back.
    GpuHeld(String),
    /// No hello.
    Late(String),
    /// No progress.
    Hang(String),
}

impl Cause {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Stopped | Self::Exited => None,
            Self::Closed => Some("it closed the connection"),
            Self::Protocol(why)
            | Self::WrongProof(why)
            | Self::Differs(why)
            | Self::Condemned(why)
            | Self::WeightsUnfit(why)
            | Self::CannotStart(why)
            | Self::HostDisk(why)
            | Self::GpuHeld(why)
            | Self::Late(why)
            | Self::Hang(why) => Some(why),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was never there.
    None,
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It did not end.
    Stuck,
}

/// Everything that is known about a death.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What the supervisor met first.
    pub cause: &'a Cause,
    /// How the process ended.
    pub exit: Exit,
    /// Its last lines of output, oldest first.
    pub tail: &'a [String],
    /// XIDs that the driver reported for its GPUs while it lived.
    pub xids: &'a [u32],
    /// One of its GPUs does not answer any more.
    pub gpu_gone: bool,
    /// The kernel killed processes for memory while it lived.
    pub memory_kills: bool,
}

/// XIDs after which only a GPU reset, a reboot or new hardware helps (NVIDIA's XID catalogue): uncorrectable memory errors that
/// are not contained, NVLink, the GPU's own processors, and a GPU that fell off the bus.
const FATAL_XIDS: [u32; 10] = [48, 54, 62, 64, 74, 79, 95, 119, 120, 140];

const GPU_GONE: [&str; 4] =
    ["no CUDA-capable device is detected", "GPU is lost", "has fallen off the bus", "uncorrectable ECC error"];
const GPU_MEMORY: [&str; 6] = [
    "CUDA out of memory",
    "CUDA error: out of memory",
    "OutOfMemoryError",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cuda failure 'out of memory'",
];
const HOST_MEMORY: [&str; 5] = [
    "std::bad_alloc",
    "DefaultCPUAllocator: can't allocate memory",
    "Cannot allocate memory",
    "MemoryError",
    "memory allocation of",
];
const STICKY_CUDA: [&str; 5] = [
    "CUDA error:",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "cudaError",
    "CUBLAS_STATUS_INTERNAL_ERROR",
];
const WEIGHTS: [&str; 1] = ["the reload of "];
const PEER: [&str; 6] = [
    "remote process exited",
    "NCCL error",
    "ncclRemoteError",
    "Connection reset by peer",
    "closed the socket",
    "The link to the supervisor broke",
];

/// The class of a death. What names the hardware or the cause goes before what merely follows from it.
pub fn classify(facts: &Facts<'_>) -> DeathClass {
    match facts.cause {
        Cause::Stopped if facts.exit != Exit::Stuck => return DeathClass::Stopped,
        Cause::CannotStart(_) => return DeathClass::CannotStart,
        Cause::HostDisk(_) => return DeathClass::HostDisk,
        Cause::GpuHeld(_) => return DeathClass::GpuHeld,
        _ if facts.exit == Exit::Stuck => return DeathClass::Unkillable,
        Cause::Differs(_) => return DeathClass::Differs,
        Cause::Condemned(_) => return DeathClass::Condemned,
        _ => {}
    }
    let reported: Vec<u32> = facts.xids.iter().copied().chain(facts.tail.iter().filter_map(|line| xid_of(line))).collect();
    if facts.gpu_gone || reported.iter().any(|xid| FATAL_XIDS.contains(xid)) || says(facts.tail, &GPU_GONE) {
        return DeathClass::GpuLost;
    }
    if facts.exit == Exit::Code(64) {
        return DeathClass::BadConfiguration;
    }
    match facts.cause {
        Cause::Protocol(_) => return DeathClass::Protocol,
        Cause::WrongProof(_) => return DeathClass::WrongProof,
        Cause::WeightsUnfit(_) => return DeathClass::WeightsUnfit,
        Cause::Late(_) => return DeathClass::Late,
        Cause::Hang(_) => return DeathClass::Hang,
        _ => {}
    }
    let last_xid = reported.last().copied();
    match facts.exit {
        Exit::Signal(9) if facts.memory_kills => DeathClass::HostMemory,
        // SIGHUP, SIGINT, SIGKILL, SIGTERM: whatever it said before has nothing to do with it.
        Exit::Signal(1 | 2 | 9 | 15) if *facts.cause == Cause::Exited => DeathClass::Killed,
        exit => by_last_words(facts.tail, last_xid).unwrap_or(match exit {
            Exit::Code(0) => DeathClass::LostPeer,
            Exit::Code(code) => DeathClass::Failed(code),
            // It closed the connection, went on, and was ended for it.
            Exit::Signal(9 | 15) => DeathClass::LostPeer,
            Exit::Signal(signal) => DeathClass::Crashed(signal),
            Exit::None | Exit::Stuck => DeathClass::CannotStart,
        }),
    }
}

fn by_last_words(tail: &[String], xid: Option<u32>) -> Option<DeathClass> {
    let classes = [
        (GPU_MEMORY.as_slice(), DeathClass::GpuMemory),
        (HOST_MEMORY.as_slice(), DeathClass::HostMemory),
        (WEIGHTS.as_slice(), DeathClass::WeightsUnfit),
    ];
    let named = classes.into_iter().find(|(words, _)| says(tail, words)).map(|(_, class)| class);
    named
        .or(xid.map(DeathClass::Xid))
        .or_else(|| says(tail, &STICKY_CUDA).then_some(DeathClass::StickyCuda))
        .or_else(|| says(tail, &PEER).then_some(DeathClass::LostPeer))
}

fn says(tail: &[String], words: &[&str]) -> bool {
    tail.iter().any(|line| words.iter().any(|word| line.contains(word)))
}

/// The number in a kernel line such as `NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.`
fn xid_of(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("Xid (")?;
    let (_, rest) = rest.split_once("): ")?;
    rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// The record of a death.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Death {
    /// Why.
    #[serde(flatten)]
    pub class: DeathClass,
    /// The same in a sentence, with what was seen.
    pub reason: String,
    /// Process id, if it came to that.
    pub pid: Option<u32>,
    /// Seconds from its start.
    pub lived_seconds: f64,
    /// Its last lines of output, oldest first.
    pub lines: Vec<String>,
    /// What its threads were doing, noted before it was killed for standing still.
    pub threads: Vec<String>,
}

impl Death {
    /// Judges the facts and says so in words.
    pub fn of(facts: &Facts<'_>, pid: Option<u32>, lived_seconds: f64, threads: Vec<String>) -> Self {
        let class = classify(facts);
        let mut reason = class.words();
        if let Some(text) = facts.cause.text() {
            reason.push_str(&format!(": {text}"));
        }
        match (class, facts.exit) {
            (_, Exit::None | Exit::Stuck) | (DeathClass::Failed(_) | DeathClass::Crashed(_), _) => {}
            (_, Exit::Code(code)) => reason.push_str(&format!(" (exit code {code})")),
            (_, Exit::Signal(signal)) if *facts.cause == Cause::Exited => reason.push_str(&format!(" (signal {signal})")),
            (_, Exit::Signal(_)) => {}
        }
        if let Some(place) = facts.tail.iter().position(|line| line.contains(PANIC))
            && matches!(class, DeathClass::Failed(_) | DeathClass::Crashed(_))
        {
            let message: Vec<&str> = facts.tail[place..].iter().take(2).map(String::as_str).collect();
            reason.push_str(&format!(": {}", message.join(" ")));
        }
        Self { class, reason, pid, lived_seconds, lines: facts.tail.to_vec(), threads }
    }
}

#[cfg(test)]
#[path = "death_tests.rs"]
mod tests;
