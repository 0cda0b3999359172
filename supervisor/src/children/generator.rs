//! The generation side's child: one launcher, which owns the server. The supervisor learns the server's address from it and
//! then talks to the server itself.

use std::sync::Arc;
use std::time::Duration;

use grail_link::message::{FromLauncher, ReloadCommand, Revision, ToLauncher};
use grail_link::{Connection, LinkError};
use grail_process::{Spawner, clock};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::life_cycle::{ChildState, LifeCycle, Next, RestartPolicy};
use super::session::{self, ChildPrograms, Opening, Programs, Session};
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
    /// Time the launcher gets to end by itself.
    pub grace: Duration,
}

/// The launcher and what it serves. Dropping it ends both; [`Generator::stop`] waits until they are gone.
pub struct Generator {
    target: watch::Sender<Option<ReloadCommand>>,
    serving: watch::Receiver<Option<Serving>>,
    refused: Arc<watch::Sender<Option<(Revision, String)>>>,
    stop: CancellationToken,
    task: tokio::sync::Mutex<tokio::task::JoinSet<()>>,
}

impl Generator {
    /// Starts the launcher's task; the server itself is started by the first [`Generator::reload`].
    pub fn start(settings: LauncherSettings, spawner: Spawner, board: Board) -> Self {
        let (target, wanted) = watch::channel(None);
        let (report, serving) = watch::channel(None);
        let stop = CancellationToken::new();
        let refused = Arc::new(watch::channel(None).0);
        let slot = Slot { settings, spawner, board, wanted, report, refused: refused.clone() };
        let mut task = tokio::task::JoinSet::new();
        task.spawn(slot.run(stop.clone()));
        Self { target, serving, refused, stop, task: task.into() }
    }

    /// The server shall hold these weights. Asked again for weights that it refused, it tries again: a start may fail for
    /// reasons that pass.
    pub fn reload(&self, command: ReloadCommand) {
        self.refused.send_replace(None);
        self.target.send_replace(Some(command));
    }

    /// Who serves now, if anybody.
    pub fn serving(&self) -> Option<Serving> {
        self.serving.borrow().clone()
    }

    /// Waits until somebody serves `revision`. The caller sets the time limit.
    pub async fn serving_revision(&self, revision: &Revision) -> Option<Serving> {
        let mut serving = self.serving.clone();
        let found = serving.wait_for(|now| now.as_ref().is_some_and(|now| now.revision == *revision)).await;
        found.ok().and_then(|found| found.clone())
    }

    /// Waits until the server refuses `revision`, and says why. The caller sets the time limit.
    pub async fn refusing(&self, revision: &Revision) -> String {
        let mut refused = self.refused.subscribe();
        let found = refused
            .wait_for(|last| last.as_ref().is_some_and(|(last, _)| last == revision))
            .await
            .ok()
            .and_then(|found| found.clone());
        match found {
            Some((_, why)) => why,
            // The side is down for good; it will never refuse anything.
            None => std::future::pending().await,
        }
    }

    /// Ends launcher and server and waits until both are gone.
    pub async fn stop(&self) {
        self.stop.cancel();
        while self.task.lock().await.join_next().await.is_some() {}
    }
}

type Incoming = Result<FromLauncher, LinkError>;

struct Slot {
    settings: LauncherSettings,
    spawner: Spawner,
    board: Board,
    wanted: watch::Receiver<Option<ReloadCommand>>,
    report: watch::Sender<Option<Serving>>,
    refused: Arc<watch::Sender<Option<(Revision, String)>>>,
}

impl Slot {
    async fn run(mut self, stop: CancellationToken) {
        let mut life = LifeCycle::new(RestartPolicy::default());
        let zero = clock::monotonic();
        loop {
            life.started(zero.elapsed());
            self.show(ChildState::Starting, None);
            let why = self.session(&stop).await;
            self.report(None);
            if stop.is_cancelled() {
                return self.show(ChildState::Absent, None);
            }
            match life.ended(zero.elapsed(), rand::random()) {
                Next::Quarantine => {
                    tracing::error!(child = NAME, why, "The generation side ended too often and is quarantined.");
                    return self.show(ChildState::Quarantined, Some(why));
                }
                Next::RestartAfter(wait) => {
                    tracing::warn!(
                        child = NAME,
                        why,
                        wait_ms = wait.as_millis() as u64,
                        "The generation side ended and will be restarted."
                    );
                    self.show(ChildState::Backoff, Some(why));
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => return self.show(ChildState::Absent, None),
                    }
                }
            }
        }
    }

    fn show(&self, state: ChildState, why: Option<String>) {
        self.board.child(NAME, |child| child.enter(state, why));
    }

    fn report(&self, serving: Option<Serving>) {
        self.board.child(NAME, |child| child.revision = serving.as_ref().map(|serving| serving.revision.to_string()));
        self.report.send_replace(serving);
    }

    /// Runs until the launcher has ended; the answer says why.
    async fn session(&mut self, stop: &CancellationToken) -> String {
        let opened = tokio::select! {
            opened = session::open::<FromLauncher, ToLauncher>(self.opening()) => opened,
            () = stop.cancelled() => return "stopped".into(),
        };
        let Session { mut child, link, hello } = match opened {
            Ok(session) => session,
            Err(error) => return error.to_string(),
        };
        let FromLauncher::Hello { backend, .. } = hello else { return "its first message was no hello".into() };
        tracing::info!(child = NAME, backend, pid = child.pid(), "The launcher is there.");
        self.board.child(NAME, |shown| shown.pid = Some(child.pid()));
        let why = tokio::select! {
            why = self.serve(link) => why,
            status = child.exited() => format!("it ended ({status})"),
            () = stop.cancelled() => "stopped".into(),
        };
        child.stop(self.settings.grace).await;
        self.board.child(NAME, |shown| shown.pid = None);
        why
    }

    fn opening(&self) -> Opening<'_> {
        let generation = &self.settings.generation;
        let arguments = [
            ("--backend", generation.backend.clone()),
            ("--threads", generation.threads.to_string()),
            ("--dtype", generation.dtype.clone()),
            ("--max-running-requests", generation.max_concurrent.to_string()),
            ("--ready-timeout", generation.server_timeout.to_string()),
        ];
        Opening {
            spawner: &self.spawner,
            name: NAME,
            program: self.settings.programs.path(ChildPrograms::GenLauncher),
            socket: self.settings.socket.clone(),
            arguments: arguments.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]).collect(),
            environment: vec![
                ("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()),
                ("CUDA_VISIBLE_DEVICES".into(), self.settings.gpus.join(",").into()),
                ("OMP_WAIT_POLICY".into(), "passive".into()),
            ],
        }
    }

    async fn serve(&mut self, link: Connection<FromLauncher, ToLauncher>) -> String {
        let Connection { mut inbox, mut outbox } = link;
        let (forward, mut incoming) = mpsc::channel::<Incoming>(4);
        tokio::spawn(async move {
            while let Some(message) = inbox.receive().await.transpose() {
                let broken = message.is_err();
                if forward.send(message).await.is_err() || broken {
                    return;
                }
            }
        });
        // What was answered last, and whether with no.
        let (mut settled, mut refused): (Option<Revision>, bool) = (None, false);
        loop {
            if refused && self.wanted.has_changed().unwrap_or(false) {
                settled = None;
            }
            let wanted = self.wanted.borrow_and_update().clone();
            if let Some(command) = wanted.filter(|command| settled.as_ref() != Some(&command.revision)) {
                self.report(None);
                self.show(ChildState::Starting, None);
                let revision = command.revision.clone();
                if let Err(error) = outbox.send(&ToLauncher::Reload(command)).await {
                    return error.to_string();
                }
                match self.answer(&revision, &mut incoming).await {
                    Ok(Ok(serving)) => {
                        tracing::info!(child = NAME, %revision, url = serving.url, "The generation server holds the checkpoint.");
                        self.report(Some(serving));
                        refused = false;
                    }
                    Ok(Err(reason)) => {
                        tracing::error!(child = NAME, %revision, reason, "The generation server refused the checkpoint.");
                        self.refused.send_replace(Some((revision.clone(), reason)));
                        refused = true;
                    }
                    Err(why) => return why,
                }
                self.show(ChildState::Ready, None);
                settled = Some(revision);
                continue;
            }
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return "the supervisor is ending".into() },
                message = incoming.recv() => return unexpected(message),
            }
        }
    }

    /// The inner result is the launcher's answer, the outer one tells whether the launcher is still of use.
    async fn answer(
        &self,
        revision: &Revision,
        incoming: &mut mpsc::Receiver<Incoming>,
    ) -> Result<Result<Serving, String>, String> {
        let limit = Duration::from_secs_f64(self.settings.generation.server_timeout);
        let answer = tokio::time::timeout(limit, incoming.recv()).await;
        match answer.map_err(|_| format!("the server was not ready within {} s", limit.as_secs()))? {
            Some(Ok(FromLauncher::Serving { revision: held, url, context_length })) if held == *revision => {
                Ok(Ok(Serving { revision: held, url, context_length }))
            }
            Some(Ok(FromLauncher::ReloadRefused { reason, .. })) => Ok(Err(reason)),
            other => Err(unexpected(other)),
        }
    }
}

fn unexpected(message: Option<Incoming>) -> String {
    match message {
        None => "it closed the connection".into(),
        Some(Err(error)) => error.to_string(),
        Some(Ok(message)) => format!("it sent an unexpected message: {message:?}"),
    }
}
