//! What happened to children, worth a line: one value per event makes the log line, and whoever keeps records gets the same
//! value. Every event passes through [`Board::event`](crate::board::Board::event).

use serde::Serialize;

use super::death::Death;
use crate::journal::Event;

/// Something worth knowing about a child or its GPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum ChildEvent {
    /// A process was started and said hello.
    Started {
        /// The child.
        child: String,
        /// Its process id.
        pid: u32,
        /// Milliseconds from spawn to hello.
        hello_ms: u64,
    },
    /// It holds a checkpoint.
    Holds {
        /// The child.
        child: String,
        /// The checkpoint.
        revision: String,
        /// Seconds it took.
        seconds: f64,
    },
    /// It refused a checkpoint and holds what it held.
    Refused {
        /// The child.
        child: String,
        /// The checkpoint.
        revision: String,
        /// Why.
        reason: String,
    },
    /// It died and will be started again.
    Died {
        /// The child.
        child: String,
        /// Why, with its last lines.
        #[serde(flatten)]
        death: Death,
        /// Milliseconds until the next start.
        wait_ms: u64,
    },
    /// It died and stays down.
    Quarantined {
        /// The child.
        child: String,
        /// The GPUs that stay idle with it.
        gpus: Vec<String>,
        /// The last death.
        #[serde(flatten)]
        death: Death,
    },
    /// A server that runs elsewhere cannot be used; it is probed on.
    LeftOut {
        /// The server.
        child: String,
        /// Why.
        reason: String,
    },
    /// Every child of a kind is quarantined: nothing is left to work with.
    NoneLeft {
        /// `proof worker` or `generation launcher`.
        kind: &'static str,
    },
    /// The job of a child that died goes to another one.
    JobMoved {
        /// The child that died.
        child: String,
        /// The job.
        job: u64,
    },
    /// A start waits for the memory of a GPU.
    GpuAwaited {
        /// The child.
        child: String,
        /// Who holds what.
        holder: String,
    },
    /// Something about a GPU: an XID, a memory error, heat, a lowered power cap.
    GpuNote {
        /// The GPU, as the settings name it.
        gpu: String,
        /// What.
        note: String,
        /// Whether it asks for action.
        serious: bool,
    },
    /// The GPUs' state is unknown from here on.
    GpusUnknown {
        /// Why.
        reason: String,
    },
    /// A process that a child left behind was ended.
    OrphanEnded {
        /// Its process id.
        pid: u32,
        /// Its program.
        program: String,
    },
    /// A process of an earlier run was found at the start.
    Survivor {
        /// The child it was, or descends from.
        child: String,
        /// Its process id.
        pid: u32,
        /// Its program.
        program: String,
        /// Whether it is gone now.
        ended: bool,
    },
    /// A child could not be written down.
    Unrecorded {
        /// The child.
        child: String,
        /// Why.
        error: String,
    },
}

impl Event for ChildEvent {
    const KIND: &'static str = "child";
    const LASTING: bool = false;

    fn log(&self) {
        match self {
            Self::Started { child, pid, hello_ms } => tracing::info!(child, pid, hello_ms, "The child is there."),
            Self::Holds { child, revision, seconds } => {
                tracing::info!(child, revision, seconds, "The child holds the checkpoint.")
            }
            Self::Refused { child, revision, reason } => {
                tracing::error!(child, revision, reason, "The child refused the checkpoint.");
            }
            Self::Died { child, death, wait_ms } => {
                let Death { reason, lines, threads, .. } = death;
                tracing::warn!(child, reason, wait_ms, ?lines, ?threads, "The child died and will be restarted.");
            }
            Self::Quarantined { child, gpus, death } => {
                let Death { reason, lines, threads, .. } = death;
                tracing::error!(
                    child,
                    ?gpus,
                    reason,
                    ?lines,
                    ?threads,
                    "The child is quarantined; mend the cause and restart the supervisor."
                );
            }
            Self::LeftOut { child, reason } => {
                tracing::warn!(child, reason, "The generation server is left out until it answers; groups go to the others.");
            }
            Self::NoneLeft { kind } => {
                tracing::error!(
                    kind,
                    "Every child of this kind is quarantined: nothing is left to work with, the supervisor ends in order."
                );
            }
            Self::JobMoved { child, job } => tracing::info!(child, job, "The dead child's job goes to another one."),
            Self::GpuAwaited { child, holder } => tracing::warn!(child, holder, "A start waits for the memory of its GPU."),
            Self::GpuNote { gpu, note, serious: true } => tracing::error!(gpu, note, "A GPU is in trouble."),
            Self::GpuNote { gpu, note, serious: false } => tracing::warn!(gpu, note, "A GPU is not at its best."),
            Self::GpusUnknown { reason } => {
                tracing::warn!(reason, "The GPUs' state is unknown: deaths are classed and starts made without it.");
            }
            Self::OrphanEnded { pid, program } => tracing::warn!(pid, program, "A process that a child left behind was ended."),
            Self::Survivor { child, pid, program, ended: true } => {
                tracing::warn!(child, pid, program, "A process of an earlier run was still there and was ended.");
            }
            Self::Survivor { child, pid, program, ended: false } => {
                tracing::error!(child, pid, program, "A process of an earlier run cannot be ended; it may hold its GPU.");
            }
            Self::Unrecorded { child, error } => {
                tracing::warn!(child, error, "The child could not be written down; a later run would not find it.");
            }
        }
    }
}
