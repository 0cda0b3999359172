//! The events of windows, groups and files. Those of the host and its children are defined by the supervision.

use grail_supervision::event;
use grail_supervision::journal::Event;
use serde::{Deserialize, Serialize};

event! {
    /// A window is attempted.
    WindowOpened, "window_opened", lasting: false, info "The window is opened."
    {
        /// First block.
        window: u64,
        /// Unix seconds after which an upload is ignored.
        deadline: f64,
        /// Groups that an earlier run left in the spool.
        spooled: usize,
        /// Problem indices go on here; none when that cannot be told from the disk.
        next_index: Option<i64>,
    }
}

event! {
    /// The chain's newest block is old.
    ChainSilent, "chain_silent", lasting: true, warn "The chain has told no new block for several block times; windows go on by the clock."
    {
        /// The newest block that is known, if any is.
        block: Option<u64>,
        /// Its age here.
        seconds: f64,
        /// What the chain says, if anything.
        why: String,
    }
}

event! {
    /// There are new blocks again.
    ChainAnswersAgain, "chain_answers_again", lasting: true, info "The chain tells new blocks again."
    {
        /// The newest block.
        block: u64,
        /// How long there was none.
        seconds: f64,
    }
}

event! {
    /// Something that a window needs is not to be had.
    WindowWaits, "window_waits", lasting: true, warn "The window cannot be mined yet; it is tried again while that is of use."
    {
        /// First block.
        window: u64,
        /// What is missing or wrong.
        why: String,
    }
}

event! {
    /// The window's checkpoint is in server and workers, groups are made from now on.
    MiningBegan, "mining_began", lasting: false, info "Children hold the window's checkpoint; groups are begun."
    {
        /// First block.
        window: u64,
        /// The weights.
        revision: String,
        /// Seconds since the window was opened here.
        seconds: f64,
    }
}

event! {
    /// A group is complete, judged, and durable unless said otherwise.
    GroupKept, "group_kept", lasting: false, debug "A group is kept."
    {
        /// First block of the window.
        window: u64,
        /// The problem index.
        group: i64,
        /// Proof slot that proved it.
        worker: u32,
        /// Whether it survives a crash.
        durable: bool,
        /// Seconds from its begin to its end.
        seconds: f64,
    }
}

event! {
    /// A group is lost.
    GroupDropped, "group_dropped", lasting: false, warn "A group was dropped."
    {
        /// First block of the window.
        window: u64,
        /// The problem index.
        group: i64,
        /// Why, in the words under which it is counted.
        cause: String,
        /// What is known beyond that.
        detail: String,
    }
}

event! {
    /// A file of the spool cannot be used.
    SpooledGroupUnusable, "spooled_group_unusable", lasting: true, error "A spooled group cannot be used and is left out."
    {
        /// First block of the window.
        window: u64,
        /// The problem index.
        group: i64,
        /// What is wrong with it.
        why: String,
    }
}

event! {
    /// The disk does not take the spool; the window goes on in memory.
    SpoolRefused, "spool_refused", lasting: true, error "The disk does not take the spool; the window goes on in memory, and a crash would lose it."
    {
        /// First block of the window.
        window: u64,
        /// What the disk said.
        why: String,
    }
}

event! {
    /// An earlier window's groups were never uploaded.
    SpoolExpired, "spool_expired", lasting: true, error "Nothing on record says that groups of a past window were uploaded; its deadline is over."
    {
        /// First block of the past window.
        window: u64,
        /// Groups that are lost.
        groups: usize,
        /// Whether the file was being sent when that run ended, so that it may be in the bucket after all.
        #[serde(default)]
        sending: bool,
    }
}

event! {
    /// One rollout was proved again.
    SpotChecked, "spot_checked", lasting: false, info "A rollout was proved again."
    {
        /// First block of the window.
        window: u64,
        /// The problem index.
        group: i64,
        /// Place of the rollout in its group.
        rollout: usize,
        /// Proof slot whose proof is in the group.
        worker: u32,
        /// Proof slot that proved it again; the same one where there is no other.
        by: u32,
        /// Positions with the same sketch, as a share.
        identical_share: f64,
        /// 99th percentile of the sketch distances.
        distance_p99: u32,
        /// 99th percentile of the log-probabilities' differences.
        logprob_p99: f32,
        /// Whether the two agree.
        agrees: bool,
    }
}

event! {
    /// A spot check gave no answer.
    SpotCheckMissed, "spot_check_missed", lasting: false, warn "A spot check gave no answer."
    {
        /// First block of the window.
        window: u64,
        /// The problem index.
        group: i64,
        /// Why not.
        why: String,
    }
}

event! {
    /// A worker's proofs are not believed any more.
    WorkerDistrusted, "worker_distrusted", lasting: true, error "A worker disagrees with the others; its groups are left out."
    {
        /// First block of the window.
        window: u64,
        /// Proof slot.
        worker: u32,
        /// What was compared.
        why: String,
        /// Its groups of this window, all of which are left out.
        groups: usize,
        /// Whether it is quarantined; the last worker of a host is not.
        quarantined: bool,
    }
}

event! {
    /// Workers disagree and nothing tells which one is wrong.
    WorkersDisagree, "workers_disagree", lasting: true, error "Workers disagree and none can be shown to be wrong; the window's groups are left out, it is held back, and both are replaced."
    {
        /// First block of the window.
        window: u64,
        /// Proof slot whose proof is in the group.
        worker: u32,
        /// Proof slot that proved it again.
        by: u32,
        /// What was compared.
        why: String,
    }
}

event! {
    /// The file is complete and has passed the gate.
    FileClosed, "file_closed", lasting: false, info "The window's file is closed and has passed the gate."
    {
        /// First block of the window.
        window: u64,
        /// Groups in it.
        groups: usize,
        /// Its bytes.
        bytes: u64,
        /// Seconds from the cut-off.
        seconds: f64,
        /// Rollouts that were proved again and agree.
        spot_checks: usize,
    }
}

event! {
    /// A local copy could not be kept.
    LocalCopyFailed, "local_copy_failed", lasting: false, warn "No local copy of the window's file is kept."
    {
        /// First block of the window.
        window: u64,
        /// What the disk said.
        why: String,
    }
}

event! {
    /// The window's file is in the bucket, and was read back.
    FileUploaded, "file_uploaded", lasting: true, info "The window's file is uploaded and was read back."
    {
        /// First block of the window.
        window: u64,
        /// Groups in it.
        groups: usize,
        /// Its bytes.
        bytes: u64,
        /// Those of them that had left before the window was closed.
        #[serde(default)]
        ahead_bytes: u64,
        /// Its SHA-256, hex.
        sha256: String,
        /// Times that the bucket was sent the whole file.
        rounds: u32,
        /// Seconds that the bucket took.
        seconds: f64,
        /// Seconds that were left until the deadline.
        left: f64,
    }
}

event! {
    /// An uploaded file was taken out of the bucket.
    FileWithdrawn, "file_withdrawn", lasting: true, error "Validators would reject a window's file; it was removed before anybody judges it."
    {
        /// First block of the window.
        window: u64,
        /// Why it must not be judged.
        why: String,
    }
}

event! {
    /// A file that must not be judged could not be taken out of the bucket.
    FileStays, "file_stays", lasting: true, error "A window's file that must not be judged was not taken out of the bucket in time."
    {
        /// First block of the window.
        window: u64,
        /// Why it must not be judged.
        why: String,
        /// What the bucket said last.
        refusal: String,
    }
}

event! {
    /// An earlier run ended between sending the file and writing that down; the bucket has it.
    FileFound, "file_found", lasting: true, info "The bucket holds the file that an earlier run was sending when it ended."
    {
        /// First block of the window.
        window: u64,
        /// Groups in it.
        groups: usize,
        /// Its bytes.
        bytes: u64,
        /// Its SHA-256, hex.
        sha256: String,
    }
}

/// How a window ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowEnded {
    /// First block.
    pub window: u64,
    /// `uploaded`, `skipped`, `empty`, `held back`, `lost`, `broken off` or `withdrawn`.
    pub outcome: String,
    /// Why, where it was not uploaded.
    pub reason: Option<String>,
    /// Rollouts in the uploaded file.
    pub rollouts: u32,
    /// Window of the checkpoint.
    pub checkpoint: Option<u64>,
    /// Mean reward of the rollouts.
    pub mean_reward: f64,
}

impl Event for WindowEnded {
    const KIND: &'static str = "window_ended";
    const LASTING: bool = true;

    fn log(&self) {
        let Self { window, outcome, reason, rollouts, checkpoint, mean_reward } = self;
        match reason {
            None => tracing::info!(window, rollouts, ?checkpoint, mean_reward, "The window is uploaded and was read back."),
            Some(reason) => tracing::warn!(window, outcome, reason, "The window has no file in the bucket."),
        }
    }
}
