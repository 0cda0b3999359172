//! A host that runs a workload: what every workload has for nothing, and how one ends.
//!
//! ```text
//!  Host::open(state folder)   board, journal, status file
//!  host.run(start)            survivors of the last run are ended · start: the workload starts its children
//!                             until: it is done · a signal comes · nothing is left to work with (exit code 76)
//!                             stop: it finishes and sends · children end in order, are told to, are killed
//!  host.close()               orphans are gone; last records, last status
//! ```

use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::FusedFuture;
use grail_process::orphans::become_subreaper;
use grail_process::{Spawner, clock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backstop::Backstop;
use crate::board::{Board, StatusFile};
use crate::exit::Failure;
use crate::journal::{Journal, SupervisorStarted, SupervisorStopped};
use crate::orphans;
use crate::shutdown::{Shutdown, grace_warning};
use crate::signals::{Signals, manager};
use crate::state::{Before, StateFolder};

/// Time for the last orphans to be gone, for the last records to reach the disk, and for the last look at the picture and the
/// status file.
const LAST_STEP: Duration = Duration::from_secs(2);

/// What a host runs.
pub trait Workload {
    /// Its children.
    type Children: Children;

    /// Works until it is done. When `stop` is cancelled it begins nothing new, and finishes and sends what it has.
    fn work(&mut self, stop: &CancellationToken) -> impl Future<Output = ()>;

    /// Its children, to be asked and ended while it works.
    fn children(&self) -> Self::Children;

    /// The time for working and sending is over: what is still under way ends now.
    fn break_off(&mut self) {}
}

/// The children of a workload, all of them.
pub trait Children {
    /// Waits until too few are left to work with, and says who is missing ("every proof worker").
    fn none_left(&self) -> impl Future<Output = String>;

    /// Ends them in order: their sockets are closed, they get a signal, they are killed.
    fn stop(&self) -> impl Future<Output = ()>;

    /// Kills what has not ended.
    fn kill(&self) -> impl Future<Output = ()>;
}

/// The time that an orderly stop may take.
#[derive(Debug, Clone, Copy)]
pub struct StopTime {
    /// Until no child is left.
    pub budget: Duration,
    /// Seconds until the service manager kills, where the operator says so.
    pub grace: Option<f64>,
}

/// The one supervisor of a state folder.
#[derive(Debug)]
pub struct Host {
    /// Where everything lies.
    pub state: StateFolder,
    /// What is shown.
    pub board: Board,
    /// What is written down.
    pub journal: Journal,
    file: StatusFile,
    keeper: AbortOnDropHandle<()>,
    time: StopTime,
    zero: Instant,
    shutdown: Shutdown,
}

impl Host {
    /// Opens journal and status file in the folder. `hotkey` is who works here, for the record.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn open(state: StateFolder, hotkey: &str, time: StopTime) -> Result<Self, Failure> {
        let journal = Journal::open(&state.journal());
        let board = Board::with_journal(journal.clone());
        board.update(|status| status.pid = std::process::id());
        let file = StatusFile::at(state.root().join("status.json"));
        let file = file.map_err(|error| Failure::internal("start a thread", error))?;
        let keeper = AbortOnDropHandle::new(tokio::spawn(file.clone().keep(board.clone())));
        journal.record(&SupervisorStarted {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            hotkey: hotkey.into(),
        });
        // Until a stop is planned its whole budget is there for the last steps.
        let shutdown = Shutdown::new(Duration::ZERO, time.budget);
        Ok(Self { state, board, journal, file, keeper, time, zero: clock::monotonic(), shutdown })
    }

    /// Ends what an earlier run left, has the workload started, and attends to it until it has ended in order: at the latest when the
    /// budget is used up no child is left.
    ///
    /// # Errors
    /// When it cannot be started, or nothing was left to work with.
    pub async fn run<W: Workload>(&mut self, start: impl FnOnce(&Spawner) -> Result<W, Failure>) -> Result<(), Failure> {
        if let Some(warning) = grace_warning(self.time.budget.as_secs_f64(), self.time.grace, manager()) {
            tracing::warn!(warning, "The time for an orderly stop is short.");
        }
        match self.state.before() {
            Before::Orderly => {}
            before => tracing::warn!(?before, "The last run with this state folder did not end in order."),
        }
        become_subreaper().map_err(|error| Failure::internal("become the subreaper of the children", error))?;
        let records = self.state.end_survivors(&self.board)?;
        let spawner = Spawner::recording(records).map_err(|error| Failure::internal("start the spawner thread", error))?;
        let sweeper = AbortOnDropHandle::new(tokio::spawn(orphans::sweep(spawner.clone(), self.board.clone())));
        let signals = Signals::listen()?;
        let backstop = Backstop::keep(self.time.budget, spawner.clone());
        let backstop = backstop.map_err(|error| Failure::internal("start the backstop's thread", error))?;
        let mut workload = start(&spawner)?;
        let outcome = self.attend(&mut workload, signals, &backstop).await;
        drop(sweeper);
        orphans::end_all(&spawner, &self.board, self.last_step()).await;
        outcome
    }

    /// Writes the last records and the last status; `shown` is what else must have been seen by then.
    pub async fn close(self, shown: impl Future) {
        self.journal.record(&SupervisorStopped { pid: std::process::id() });
        self.journal.flush(self.last_step());
        self.keeper.abort();
        let _ = tokio::time::timeout(self.last_step(), shown).await;
        self.file.write_last(&self.board, self.last_step()).await;
    }

    fn last_step(&self) -> Duration {
        self.shutdown.last_step(self.zero.elapsed(), LAST_STEP)
    }

    async fn attend<W: Workload>(&mut self, workload: &mut W, mut signals: Signals, backstop: &Backstop) -> Result<(), Failure> {
        let (zero, budget) = (self.zero, self.time.budget);
        let stop = CancellationToken::new();
        let children = workload.children();
        let mut outcome = Ok(());
        {
            // Fused: it may be looked at again after it is done.
            let working = workload.work(&stop).fuse();
            tokio::pin!(working);
            tokio::select! {
                () = &mut working => {}
                name = signals.next() => {
                    tracing::info!(signal = name, "Stopping: what is finished is sent, then the children end. A second signal hurries it.");
                }
                who = children.none_left() => outcome = Err(exhausted(&who)),
            }
            stop.cancel();
            backstop.arm();
            self.shutdown = Shutdown::new(zero.elapsed(), budget);
            if !working.is_terminated() {
                tokio::select! {
                    () = &mut working => {}
                    name = signals.again() => self.hurry(name),
                    () = tokio::time::sleep(self.shutdown.uploading(zero.elapsed())) => {
                        tracing::warn!("The time for finishing and sending is used up: what is left stays in the state folder for the next start.");
                    }
                }
            }
        }
        workload.break_off();
        crate::failpoint::pass("shutting-down").await;
        let orderly = children.stop();
        tokio::pin!(orderly);
        loop {
            tokio::select! {
                () = &mut orderly => return outcome,
                name = signals.again() => self.hurry(name),
                () = tokio::time::sleep(self.shutdown.ending_children(zero.elapsed())) => break,
            }
        }
        tracing::warn!("Children did not end in time and are killed.");
        // Ending the tasks kills the children's groups.
        let _ = tokio::time::timeout(self.shutdown.killing(zero.elapsed()), children.kill()).await;
        outcome
    }

    fn hurry(&mut self, signal: &str) {
        tracing::warn!(signal, "Another signal: only the children are ended, at once.");
        self.shutdown.hurry(self.zero.elapsed());
    }
}

fn exhausted(who: &str) -> Failure {
    Failure::Exhausted(format!(
        "{who} is quarantined, so nothing is left to work with; the reasons are in the log and in status.json (children, death); mend the \
         cause and start the supervisor again"
    ))
}
