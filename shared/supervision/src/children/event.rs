//! What happened to children, worth a line: one value per event makes the log line, and whoever keeps records gets the same
//! value. Every event passes through [`Board::event`](crate::board::Board::event).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::death::Death;
use crate::journal::Event;

/// Something worth knowing about a child or its GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
        kind: Cow<'static, str>,
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

/// Lines of a child that died, and characters of each, that a sentence about it has.
const LAST_WORDS: usize = 2;
const WORD_CHARACTERS: usize = 160;

impl ChildEvent {
    /// What happened, in one sentence for somebody who reads about it afterwards.
    pub fn sentence(&self) -> String {
        match self {
            Self::Started { child, pid, hello_ms } => {
                format!("{child} was started (pid {pid}) and answered after {:.1} s", seconds(*hello_ms))
            }
            Self::Holds { child, revision, seconds } => format!("{child} held checkpoint {revision} after {seconds:.1} s"),
            Self::Refused { child, revision, reason } => format!("{child} refused checkpoint {revision}: {reason}"),
            Self::Died { child, death, wait_ms } => {
                format!("{child} died, to be started again in {:.1} s: {}", seconds(*wait_ms), death.sentence())
            }
            Self::Quarantined { child, gpus, death } => {
                let idle = match gpus.as_slice() {
                    [] => String::new(),
                    gpus => format!(" (GPU {} stays idle)", gpus.join(", ")),
                };
                format!("{child} died and was not started again{idle}: {}", death.sentence())
            }
            Self::LeftOut { child, reason } => format!("{child} was left out until it answers: {reason}"),
            Self::NoneLeft { kind } => format!("every {kind} was quarantined, nothing was left to work with"),
            Self::JobMoved { child, job } => format!("job {job} of {child}, which died, went to another one"),
            Self::GpuAwaited { child, holder } => format!("the start of {child} waited for the memory of its GPU: {holder}"),
            Self::GpuNote { gpu, note, .. } => format!("GPU {gpu}: {note}"),
            Self::GpusUnknown { reason } => format!("the GPUs' state was unknown from here on: {reason}"),
            Self::OrphanEnded { pid, program } => format!("{program} (pid {pid}), which a child had left behind, was ended"),
            Self::Survivor { child, pid, program, ended: true } => {
                format!("{program} (pid {pid}) of {child} of an earlier run was still there and was ended")
            }
            Self::Survivor { child, pid, program, ended: false } => {
                format!("{program} (pid {pid}) of {child} of an earlier run was still there and could not be ended")
            }
            Self::Unrecorded { child, error } => format!("{child} could not be written down for a later run: {error}"),
        }
    }
}

impl Death {
    /// Why it died, how long it had lived, and its last words.
    fn sentence(&self) -> String {
        let pid = self.pid.map_or_else(String::new, |pid| format!(" (pid {pid}, after {:.0} s)", self.lived_seconds));
        let lines: Vec<&str> = self.lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
        let last: Vec<String> = lines[lines.len().saturating_sub(LAST_WORDS)..].iter().map(|line| shortened(line)).collect();
        let words = if last.is_empty() { String::new() } else { format!("; last words: {}", last.join(" | ")) };
        format!("{}{pid}{words}", self.reason)
    }
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

fn shortened(line: &str) -> String {
    let mut shown: String = line.chars().take(WORD_CHARACTERS).collect();
    if shown.len() < line.len() {
        shown.push('…');
    }
    shown
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
                    %kind,
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

#[cfg(test)]
mod tests {
    use super::super::DeathClass;
    use super::*;

    /// Whoever tells the story reads what this process, or an earlier version of it, has written.
    #[test]
    fn every_event_is_read_back_and_has_a_sentence_of_one_line() {
        let (child, reason) = ("proof-worker 0".to_owned(), "why".to_owned());
        let death = |class| Death {
            class,
            reason: reason.clone(),
            pid: None,
            lived_seconds: 0.5,
            lines: vec!["a line".into(), String::new()],
            threads: Vec::new(),
        };
        let (pid, program) = (7, "python".to_owned());
        let events = [
            ChildEvent::Started { child: child.clone(), pid, hello_ms: 300 },
            ChildEvent::Holds { child: child.clone(), revision: "30-ab".into(), seconds: 1.0 },
            ChildEvent::Refused { child: child.clone(), revision: "30-ab".into(), reason: reason.clone() },
            ChildEvent::Died { child: child.clone(), death: death(DeathClass::Xid(79)), wait_ms: 10 },
            ChildEvent::Died { child: child.clone(), death: death(DeathClass::Hang), wait_ms: 10 },
            ChildEvent::Quarantined { child: child.clone(), gpus: Vec::new(), death: death(DeathClass::Failed(3)) },
            ChildEvent::LeftOut { child: child.clone(), reason: reason.clone() },
            ChildEvent::NoneLeft { kind: "proof worker".into() },
            ChildEvent::JobMoved { child: child.clone(), job: 4 },
            ChildEvent::GpuAwaited { child: child.clone(), holder: "python 12, 30 GiB".into() },
            ChildEvent::GpuNote { gpu: "0".into(), note: "XID 13".into(), serious: true },
            ChildEvent::GpusUnknown { reason: reason.clone() },
            ChildEvent::OrphanEnded { pid, program: program.clone() },
            ChildEvent::Survivor { child: child.clone(), pid, program: program.clone(), ended: true },
            ChildEvent::Survivor { child: child.clone(), pid, program, ended: false },
            ChildEvent::Unrecorded { child, error: reason },
        ];
        for event in events {
            let written = serde_json::to_value(&event).unwrap();
            let read: ChildEvent = serde_json::from_value(written.clone()).unwrap_or_else(|error| panic!("{written}: {error}"));
            assert_eq!(read, event);
            let sentence = event.sentence();
            assert!(!sentence.contains(['{', '\n']) && sentence.len() < 200, "{sentence}");
        }
    }
}
