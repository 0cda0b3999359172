//! What the pool and the tasks of its slots share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use grail_link::message::{ApplyCommand, ReloadCommand, Revision, WorkerHello};
use grail_process::Spawner;
use grail_settings::WorkerNumerics;
use grail_supervision::board::Board;
use grail_supervision::gpu::Gpus;
use tokio::sync::{Notify, watch};

use super::agreement::Agreement;
use super::job_queue::{JobQueue, Pending};
use super::programs::Programs;
use super::refusals::Refusals;
use crate::plan::ProofSlot;

/// How workers are started.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Where the programs are.
    pub programs: Programs,
    /// Folder of the sockets.
    pub sockets: std::path::PathBuf,
    /// Slots and their GPUs.
    pub slots: Vec<ProofSlot>,
    /// `auto`, `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// Threads of one worker on the CPU.
    pub threads: u32,
    /// How exactly the workers compute.
    pub numerics: WorkerNumerics,
    /// Folder of libtorch for the workers alone.
    pub library_path: Option<std::path::PathBuf>,
    /// Time a worker gets to end by itself.
    pub grace: Duration,
    /// What is known about its GPUs.
    pub gpus: Gpus,
}

pub(super) struct Shared {
    pub queue: Mutex<JobQueue>,
    pub arrived: Notify,
    pub agreement: Mutex<Agreement>,
    pub refusals: Refusals,
    pub board: Board,
    pub spawner: Spawner,
    pub settings: WorkerSettings,
    /// What each slot holds, in the order of the settings' slots.
    pub held: Arc<watch::Sender<Vec<Option<Revision>>>>,
}

/// What every worker shall hold, and how it gets there.
#[derive(Debug, Clone, Default)]
pub(super) struct Target {
    /// The whole of it, once it is on the disk.
    pub directory: Option<ReloadCommand>,
    /// The shorter way, for workers that hold what it starts from.
    pub change: Option<ApplyCommand>,
}

impl Shared {
    pub fn queue(&self) -> MutexGuard<'_, JobQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn put(&self, pending: Pending, first: bool) {
        self.queue().put(pending, first);
        self.arrived.notify_waiters();
    }

    /// The next job for a slot that waits for one.
    pub fn take(&self, slot: u32) -> Option<Pending> {
        let holders = self.holders();
        self.queue().take(slot, &holders)
    }

    /// Each slot with the weights that it holds.
    pub fn holders(&self) -> Vec<(u32, Option<Revision>)> {
        self.settings.slots.iter().map(|slot| slot.slot).zip(self.held.borrow().iter().cloned()).collect()
    }

    /// The first worker settles what the pool computes with; one that differs would make proofs the others cannot repeat.
    pub fn agree(&self, hello: &WorkerHello) -> Result<(), String> {
        self.agreement.lock().unwrap_or_else(PoisonError::into_inner).join(hello)
    }
}
