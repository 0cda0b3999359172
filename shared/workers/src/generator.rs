//! The generation side's children: launchers, each of which owns one server on GPUs of its own. The supervisor learns a server's
//! address from its launcher and then talks to the server itself.

use std::path::PathBuf;
use std::time::Duration;

use grail_engines::{Calls, PREPARATION};
use grail_link::message::{FromLauncher, ReloadCommand, Revision, ToLauncher};
use grail_link::{Connection, Outbox};
use grail_process::{Spawner, clock};
use grail_settings::Generation;
use grail_supervision::board::Board;
use grail_supervision::children::{
    Cause, ChildEvent, Event, Incoming, Kept, Life, LifePolicy, Opening, ProgressPolicy, RestartPolicy, Team, broken, unexpected,
};
use grail_supervision::gpu::Gpus;
use tokio::sync::watch;

use super::external_server::{ExternalServer, Probing};
use super::programs::{ChildPrograms, Programs};
use super::refusals::Refusals;
use super::replicas::{Replica, Replicas};
use super::serving::Serving;
use super::traffic::{Flow, Traffic};

/// How a launcher is started.
#[derive(Debug, Clone)]
pub struct LauncherSettings {
    /// How logs and status call it.
    pub name: String,
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
    /// Where it remembers what the installed server's help says.
    pub probes: PathBuf,
    /// Time the launcher gets to end by itself.
    pub grace: Duration,
    /// What is known about the server's GPUs.
    pub watch: Gpus,
}

/// What a launcher takes beyond its own limits: the first calls to a server that answers, the end of one that does not, and telling.
const TELLING: Duration = Duration::from_secs(120);

/// What the launcher is judged by: its loads by its own limits and some time more, so that its message comes, its work by the
/// completions that its server's client sees.
fn policy(server_timeout: Duration) -> LifePolicy {
    let load = PREPARATION + server_timeout + TELLING;
    LifePolicy {
        restart: RestartPolicy::default(),
        stagger: Duration::ZERO,
        start_up: Duration::from_secs(60),
        cold_load: load,
        // One that needs a server of its own, for another network, may be too late by this; a new launcher then has the time.
        warm_load: ProgressPolicy { floor: server_timeout.min(Duration::from_secs(60)), ceiling: load, factor: 10.0 },
        // The reference gives up on one completion after 300 s (grail-miner 5).
        work: ProgressPolicy { floor: Duration::from_secs(15), ceiling: Duration::from_secs(300), factor: 6.0 },
        frozen: Duration::from_secs(4),
    }
}

/// The launchers and what they serve. Dropping it ends all; [`Generator::stop`] waits until they are gone.
pub struct Generator {
    target: watch::Sender<Option<ReloadCommand>>,
    judged: watch::Sender<Option<Revision>>,
    replicas: Replicas,
    refusals: Refusals,
    team: Team,
}

impl Generator {
    /// Starts a task for each launcher, and for each server that runs elsewhere, which is asked through `http`; the launchers'
    /// servers themselves are started by the first [`Generator::reload`].
    pub fn start(
        launchers: Vec<LauncherSettings>,
        elsewhere: Vec<ExternalServer>,
        http: &reqwest::Client,
        spawner: &Spawner,
        board: &Board,
    ) -> Self {
        let ((target, _), (judged, _)) = (watch::channel(None), watch::channel(None));
        let refusals = Refusals::new(launchers.len() + elsewhere.len());
        let mut team = Team::new("generation launcher", launchers.len() + elsewhere.len());
        let mut replicas = Vec::new();
        for (place, settings) in launchers.into_iter().enumerate() {
            let (report, serving) = watch::channel(None);
            let traffic = Traffic::default();
            let policy = policy(Duration::from_secs_f64(settings.generation.server_timeout));
            let (name, gpus) = (settings.name.clone(), settings.watch.clone());
            let (wanted, flow) = (target.subscribe(), traffic.watch());
            let slot = Slot { settings, place, spawner: spawner.clone(), wanted, report, refusals: refusals.clone(), flow };
            team.keep(slot, name, policy, board, gpus);
            replicas.push(Replica { serving, traffic });
        }
        for server in elsewhere {
            let (report, serving) = watch::channel(None);
            let traffic = Traffic::default();
            let probing = Probing {
                place: replicas.len(),
                calls: Calls::to(http.clone(), server.engine, server.url.clone()).authorised(&server.credentials),
                server,
                wanted: target.subscribe(),
                judged: judged.subscribe(),
                report,
                refusals: refusals.clone(),
                flow: traffic.watch(),
                board: board.clone(),
                held: None,
                refused: None,
                in_doubt: false,
            };
            team.attend(|stop| probing.run(stop));
            replicas.push(Replica { serving, traffic });
        }
        Self { target, judged, replicas: Replicas::new(replicas), refusals, team }
    }

    /// The servers, for their client.
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// Waits until every launcher is quarantined.
    pub async fn none_left(&self) {
        self.team.none_left().await;
    }

    /// Every server shall hold these weights. Asked again for weights that it refused, one tries again: a start may fail for
    /// reasons that pass.
    pub fn reload(&self, command: ReloadCommand) {
        self.refusals.clear();
        self.target.send_replace(Some(command));
    }

    /// A proof worker has judged every tensor of `revision` and holds it. Launchers judge for themselves; a server elsewhere, which
    /// a damaged checkpoint would kill, is given nothing before.
    pub fn judged(&self, revision: &Revision) {
        self.judged.send_replace(Some(revision.clone()));
    }

    /// Waits until every server refuses `revision`, and says why one does. The caller sets the time limit.
    pub async fn refusing(&self, revision: &Revision) -> String {
        self.refusals.of(revision).await
    }

    /// Ends launchers and servers and waits until all are gone.
    pub async fn stop(&self) {
        self.team.stop().await;
    }

    /// Kills what [`Generator::stop`] has left, and waits until it is gone.
    pub async fn kill(&self) {
        self.team.kill().await;
    }
}

struct Slot {
    settings: LauncherSettings,
    /// Which of the launchers it is, from 0.
    place: usize,
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
            environment: [
                ("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()),
                ("CUDA_VISIBLE_DEVICES".into(), self.settings.gpus.join(",").into()),
                ("OMP_WAIT_POLICY".into(), "passive".into()),
                ("GRAIL_CHILD_RECORDS".into(), self.settings.records.clone().into()),
                ("GRAIL_PROBES".into(), self.settings.probes.clone().into()),
            ]
            .into_iter()
            .chain(generation.launcher_variable())
            .collect(),
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
            other => Err(unexpected(&other)),
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
        life.board
            .child(&self.settings.name, |child| child.revision = serving.as_ref().map(|serving| serving.revision.to_string()));
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
            message = launcher.incoming.receive() => Err(message.map_or_else(|cause| cause, |message| unexpected(&message))),
        }
    }

    async fn load(&mut self, launcher: &mut Launcher, command: ReloadCommand, life: &Life) -> Result<(), Cause> {
        self.report(None, life);
        let began = clock::monotonic();
        let revision = command.revision.clone();
        let child = self.settings.name.clone();
        // What is under way meanwhile is no measure of the server: an update pauses it.
        launcher.answered = None;
        life.tell(Event::Loading);
        launcher.outbox.send(&ToLauncher::Reload(command)).await.map_err(broken)?;
        match launcher.incoming.receive().await? {
            FromLauncher::Serving { revision: held, url, context_length } if held == revision => {
                let seconds = began.elapsed().as_secs_f64();
                life.board.event(ChildEvent::Holds { child, revision: revision.to_string(), seconds });
                self.report(Some(Serving { revision: held, url: url.into(), context_length }), life);
                launcher.refused = false;
            }
            FromLauncher::ReloadRefused { reason, .. } => {
                life.board.event(ChildEvent::Refused { child, revision: revision.to_string(), reason: reason.clone() });
                self.refusals.tell(self.place, revision.clone(), reason);
                launcher.refused = true;
            }
            other => return Err(unexpected(&other)),
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
