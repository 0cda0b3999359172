//! The generation side's child: one launcher, which owns the server. The supervisor learns the server's address from it and
//! then talks to the server itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use grail_link::message::{FromLauncher, ReloadCommand, Revision, ToLauncher};
use grail_link::{Connection, Outbox};
use grail_process::{Spawner, clock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::death::Cause;
use super::event::ChildEvent;
use super::keep::{Kept, keep};
use super::life::{Life, Muster};
use super::life_cycle::{Event, LifePolicy, RestartPolicy};
use super::progress::ProgressPolicy;
use super::refusals::Refusals;
use super::session::{self, ChildPrograms, Incoming, Opening, Programs};
use super::traffic::{Flow, Traffic};
use crate::gpu::Gpus;
use crate::settings::Generation;
use crate::status::Board;

const NAME: &str = "generation";

/// A server that answers with known weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// The weights.
    pub revision: Revision,
    /// `http://127.0.0.1:port`.
    pub url: String,
    /// Longest prompt plus completion, in tokens.
    pub context_length: u32,
}

impl Serving {
    /// Waits until somebody serves `revision`; `None` when nobody ever will.
    pub async fn awaited(mut servings: watch::Receiver<Option<Self>>, revision: &Revision) -> Option<Self> {
        let found = servings.wait_for(|now| now.as_ref().is_some_and(|now| now.revision == *revision)).await;
        found.ok().and_then(|found| found.clone())
    }
}

/// How the launcher is started.
#[derive(Debug, Clone)]
pub struct LauncherSettings {
    /// Where the programs are.
    pub programs: Programs,
    /// The socket's path.
    pub socket: std::path::PathBuf,
    /// The generation settings.
    pub generation: Generation,
    /// GPUs of the server; empty for the embedded engine.
    pub gpus: Vec<String>,
    /// Where the launcher writes down its server.
    pub records: PathBuf,
    /// Time the launcher gets to end by itself.
    pub grace: Duration,
    /// What is known about the server's GPUs.
    pub watch: Gpus,
}

/// What the launcher is judged by: its start-up and loads by the configured time-out of the server, its work by the completions
/// that its server's client sees.
fn policy(server_timeout: Duration) -> LifePolicy {
    LifePolicy {
        restart: RestartPolicy::default(),
        stagger: Duration::ZERO,
        start_up: Duration::from_secs(60),
        cold_load: server_timeout,
        warm_load: ProgressPolicy { floor: server_timeout.min(Duration::from_secs(60)), ceiling: server_timeout, factor: 10.0 },
        // The reference gives up on one completion after 300 s (grail-miner 5).
        work: ProgressPolicy { floor: Duration::from_secs(15), ceiling: Duration::from_secs(300), factor: 6.0 },
        frozen: Duration::from_secs(4),
    }
}

/// The launcher and what it serves. Dropping it ends both; [`Generator::stop`] waits until they are gone.
pub struct Generator {
    target: watch::Sender<Option<ReloadCommand>>,
    serving: watch::Receiver<Option<Serving>>,
    refusals: Refusals,
    traffic: Traffic,
    stop: CancellationToken,
    task: tokio::sync::Mutex<tokio::task::JoinSet<()>>,
    muster: Arc<Muster>,
}

impl Generator {
    /// Starts the launcher's task; the server itself is started by the first [`Generator::reload`].
    pub fn start(settings: LauncherSettings, spawner: Spawner, board: Board) -> Self {
        let (target, wanted) = watch::channel(None);
        let (report, serving) = watch::channel(None);
        let (stop, refusals, traffic) = (CancellationToken::new(), Refusals::new(1), Traffic::default());
        let muster = Muster::new("generation launcher", 1);
        let policy = policy(Duration::from_secs_f64(settings.generation.server_timeout));
        let life = Life::new(NAME.into(), policy, board, muster.clone());
        let gpus = settings.watch.clone();
        let slot = Slot { settings, spawner, wanted, report, refusals: refusals.clone(), flow: traffic.watch() };
        let mut task = tokio::task::JoinSet::new();
        let stopping = stop.clone();
        task.spawn(async move { keep(slot, &life, &gpus, stopping).await });
        Self { target, serving, refusals, traffic, stop, task: task.into(), muster }
    }

    /// Counts requests to the server. Its client must use it: forward progress is judged by it.
    pub fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// Waits until the launcher is quarantined.
    pub async fn none_left(&self) {
        self.muster.none_left().await;
    }

    /// The server shall hold these weights. Asked again for weights that it refused, it tries again: a start may fail for
    /// reasons that pass.
    pub fn reload(&self, command: ReloadCommand) {
        self.refusals.clear();
        self.target.send_replace(Some(command));
    }

    /// Who serves now, if anybody.
    pub fn serving(&self) -> Option<Serving> {
        self.serving.borrow().clone()
    }

    /// Waits until somebody serves `revision`. The caller sets the time limit.
    pub async fn serving_revision(&self, revision: &Revision) -> Option<Serving> {
        Serving::awaited(self.serving.clone(), revision).await
    }

    /// Who serves, now and later.
    pub fn servings(&self) -> watch::Receiver<Option<Serving>> {
        self.serving.clone()
    }

    /// Waits until the server refuses `revision`, and says why. The caller sets the time limit.
    pub async fn refusing(&self, revision: &Revision) -> String {
        self.refusals.of(revision).await
    }

    /// Ends launcher and server and waits until both are gone.
    pub async fn stop(&self) {
        self.stop.cancel();
        while self.task.lock().await.join_next().await.is_some() {}
    }

    /// Kills what [`Generator::stop`] has left, and waits until it is gone.
    pub async fn kill(&self) {
        self.task.lock().await.shutdown().await;
    }
}

struct Slot {
    settings: LauncherSettings,
    spawner: Spawner,
    wanted: watch::Receiver<Option<ReloadCommand>>,
    report: watch::Sender<Option<Serving>>,
    refusals: Refusals,
    flow: watch::Receiver<Flow>,
}

impl Kept for Slot {
    type In = FromLauncher;
    type Out = ToLauncher;

    fn opening(&self) -> Opening<'_> {
        let generation = &self.settings.generation;
        Opening {
            spawner: &self.spawner,
            program: self.settings.programs.path(ChildPrograms::GenLauncher),
            socket: self.settings.socket.clone(),
            arguments: generation.launcher_arguments(),
            environment: vec![
                ("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()),
                ("CUDA_VISIBLE_DEVICES".into(), self.settings.gpus.join(",").into()),
                ("OMP_WAIT_POLICY".into(), "passive".into()),
                ("GRAIL_CHILD_RECORDS".into(), self.settings.records.clone().into()),
            ],
        }
    }

    fn gpus(&self) -> &[String] {
        &self.settings.gpus
    }

    fn grace(&self) -> Duration {
        self.settings.grace
    }

    fn greet(&mut self, hello: FromLauncher) -> Result<(), Cause> {
        match hello {
            FromLauncher::Hello { .. } => Ok(()),
            other => Err(session::unexpected(&other)),
        }
    }

    async fn serve(&mut self, link: Connection<FromLauncher, ToLauncher>, life: &Life) -> Cause {
        let Connection { inbox, outbox } = link;
        let mut launcher = Launcher { incoming: Incoming::over(inbox), outbox, settled: None, refused: false, answered: None };
        loop {
            match self.turn(&mut launcher, life).await {
                Ok(()) => {}
                Err(cause) => return cause,
            }
        }
    }

    fn failing(&mut self, _cause: &Cause, life: &Life) {
        self.report(None, life);
    }

    fn vacated(&mut self, life: &Life) {
        self.report(None, life);
    }
}

/// The live side of a session.
struct Launcher {
    incoming: Incoming<FromLauncher>,
    outbox: Outbox<ToLauncher>,
    /// What was answered last …
    settled: Option<Revision>,
    /// … and whether with no.
    refused: bool,
    /// Completions when they were counted last; `None` while nothing is under way.
    answered: Option<u64>,
}

impl Slot {
    fn report(&self, serving: Option<Serving>, life: &Life) {
        life.board.child(NAME, |child| child.revision = serving.as_ref().map(|serving| serving.revision.to_string()));
        self.report.send_replace(serving);
    }

    /// One reload, or one wait.
    async fn turn(&mut self, launcher: &mut Launcher, life: &Life) -> Result<(), Cause> {
        if launcher.refused && self.wanted.has_changed().unwrap_or(false) {
            launcher.settled = None;
        }
        let wanted = self.wanted.borrow_and_update().clone();
        if let Some(command) = wanted.filter(|command| launcher.settled.as_ref() != Some(&command.revision)) {
            return self.load(launcher, command, life).await;
        }
        let flow = *self.flow.borrow_and_update();
        launcher.count(flow, life);
        tokio::select! {
            changed = self.wanted.changed() => changed.map_err(|_| Cause::Stopped),
            changed = self.flow.changed() => changed.map_err(|_| Cause::Stopped),
            message = launcher.incoming.receive() => Err(message.map_or_else(|cause| cause, |message| session::unexpected(&message))),
        }
    }

    async fn load(&mut self, launcher: &mut Launcher, command: ReloadCommand, life: &Life) -> Result<(), Cause> {
        self.report(None, life);
        let began = clock::monotonic();
        let revision = command.revision.clone();
        let child = NAME.to_owned();
        // What is under way meanwhile is no measure of the server: an update pauses it.
        launcher.answered = None;
        life.tell(Event::Loading);
        launcher.outbox.send(&ToLauncher::Reload(command)).await.map_err(session::broken)?;
        match launcher.incoming.receive().await? {
            FromLauncher::Serving { revision: held, url, context_length } if held == revision => {
                let seconds = began.elapsed().as_secs_f64();
                life.board.event(ChildEvent::Holds { child, revision: revision.to_string(), seconds });
                self.report(Some(Serving { revision: held, url, context_length }), life);
                launcher.refused = false;
            }
            FromLauncher::ReloadRefused { reason, .. } => {
                life.board.event(ChildEvent::Refused { child, revision: revision.to_string(), reason: reason.clone() });
                self.refusals.tell(0, revision.clone(), reason);
                launcher.refused = true;
            }
            other => return Err(session::unexpected(&other)),
        }
        life.tell(Event::Loaded);
        launcher.settled = Some(revision);
        Ok(())
    }
}

impl Launcher {
    /// Turns the client's counts into the work and the movement that the server is judged by.
    fn count(&mut self, flow: Flow, life: &Life) {
        let before = match self.answered {
            Some(before) => before,
            None if flow.in_flight == 0 => return,
            None => {
                life.tell(Event::Work(flow.tokens));
                flow.answered
            }
        };
        // One look may see several answers; they count as one movement, as they came at once.
        if flow.answered > before {
            life.tell(Event::Advanced);
        }
        self.answered = (flow.in_flight > 0).then_some(flow.answered);
        if self.answered.is_none() {
            life.tell(Event::Idle);
        }
    }
}
