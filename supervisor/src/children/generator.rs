//! The generation side's child: one launcher, which owns the server. The supervisor learns the server's address from it and
//! then talks to the server itself.

use std::time::Duration;

use grail_link::Connection;
use grail_link::message::{FromLauncher, ReloadCommand, Revision, ToLauncher};
use grail_process::Spawner;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::keep::{Ended, Kept, Refusals, keep};
use super::life_cycle::ChildState;
use super::session::{self, ChildPrograms, Incoming, Opening, Programs, Session};
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
    refusals: Refusals,
    stop: CancellationToken,
    task: tokio::sync::Mutex<tokio::task::JoinSet<()>>,
}

impl Generator {
    /// Starts the launcher's task; the server itself is started by the first [`Generator::reload`].
    pub fn start(settings: LauncherSettings, spawner: Spawner, board: Board) -> Self {
        let (target, wanted) = watch::channel(None);
        let (report, serving) = watch::channel(None);
        let stop = CancellationToken::new();
        let refusals = Refusals::new();
        let slot = Slot { settings, spawner, board, wanted, report, refusals: refusals.clone() };
        let mut task = tokio::task::JoinSet::new();
        task.spawn(keep(slot, stop.clone()));
        Self { target, serving, refusals, stop, task: task.into() }
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
        let mut serving = self.serving.clone();
        let found = serving.wait_for(|now| now.as_ref().is_some_and(|now| now.revision == *revision)).await;
        found.ok().and_then(|found| found.clone())
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
}

struct Slot {
    settings: LauncherSettings,
    spawner: Spawner,
    board: Board,
    wanted: watch::Receiver<Option<ReloadCommand>>,
    report: watch::Sender<Option<Serving>>,
    refusals: Refusals,
}

impl Kept for Slot {
    fn name(&self) -> &str {
        NAME
    }

    fn board(&self) -> &Board {
        &self.board
    }

    fn vacated(&mut self) {
        self.report(None);
    }

    async fn session(&mut self, stop: &CancellationToken) -> Ended {
        let opened = tokio::select! {
            opened = session::open::<FromLauncher, ToLauncher>(self.opening()) => opened,
            () = stop.cancelled() => return Ended::Stopped,
        };
        let Session { mut child, link, hello } = match opened {
            Ok(session) => session,
            Err(error) => return error.ended(),
        };
        let FromLauncher::Hello { backend, .. } = hello else { return Ended::Died("its first message was no hello".into()) };
        tracing::info!(child = NAME, backend, pid = child.pid(), "The launcher is there.");
        self.board.child(NAME, |shown| shown.pid = Some(child.pid()));
        self.show(ChildState::Ready, None);
        let ended = tokio::select! {
            why = self.serve(link) => Ended::Died(why),
            status = child.exited() => Ended::Died(format!("it ended ({status})")),
            () = stop.cancelled() => Ended::Stopped,
        };
        child.stop(self.settings.grace).await;
        self.board.child(NAME, |shown| shown.pid = None);
        ended
    }
}

impl Slot {
    fn report(&self, serving: Option<Serving>) {
        self.board.child(NAME, |child| child.revision = serving.as_ref().map(|serving| serving.revision.to_string()));
        self.report.send_replace(serving);
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
        let Connection { inbox, mut outbox } = link;
        let mut incoming = session::forward(inbox);
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
                        self.refusals.tell(revision.clone(), reason);
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
                message = incoming.recv() => return session::unexpected(message),
            }
        }
    }

    /// The inner result is the launcher's answer, the outer one tells whether the launcher is still of use.
    async fn answer(
        &self,
        revision: &Revision,
        incoming: &mut Incoming<FromLauncher>,
    ) -> Result<Result<Serving, String>, String> {
        let limit = Duration::from_secs_f64(self.settings.generation.server_timeout);
        let answer = tokio::time::timeout(limit, incoming.recv()).await;
        match answer.map_err(|_| format!("the server was not ready within {} s", limit.as_secs()))? {
            Some(Ok(FromLauncher::Serving { revision: held, url, context_length })) if held == *revision => {
                Ok(Ok(Serving { revision: held, url, context_length }))
            }
            Some(Ok(FromLauncher::ReloadRefused { reason, .. })) => Ok(Err(reason)),
            other => Err(session::unexpected(other)),
        }
    }
}
