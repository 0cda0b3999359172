//! The launcher: one generation server, started on the first reload, updated on later ones, watched all the time.
//!
//! ```text
//!           Reload            ready, version confirmed             Reload
//!  Waiting ───────▶ Starting ─────────────────────────▶ Serving ───────────▶ Updating
//!     ▲                │ exit, time-out                     ▲  refused, or taken  │
//!     └────────────────┘ ReloadRefused                      └─────────────────────┘
//!  Serving or Updating, and the server ends, or nobody knows what it holds: the launcher exits 1, and with it the server.
//!  Starting, and nothing moves: the same; another process may well load these weights.
//!  The supervisor closes the socket: TERM to the server's group, grace, KILL; exit 0. Where it died, KILL at once.
//!
//! The launcher does not die with the supervisor: the kernel would end it and the server's first process, and leave those that
//! the server started, which go on loading a model for nobody (generation-servers 0).
//! ```

mod installed;
mod output;
mod server;
mod starting;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use grail_link::message::{FromLauncher, ReloadCommand, Revision, ToLauncher};
use grail_link::{Connection, Inbox, Outbox};
use grail_process::Spawner;
use grail_process::records::Records;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::LauncherArguments;
use grail_engines::{Installed, UpdateError};
use server::{NotUpdated, Server, StartError};

/// Time a server gets to end by itself.
const GRACE: Duration = Duration::from_secs(5);
/// Reloads that may wait; the supervisor sends one at a time.
const COMMANDS_UNDER_WAY: usize = 4;

/// Connects to the supervisor and serves it until it closes the socket.
///
/// # Errors
/// When the link breaks, or the server ends by itself.
pub fn run(arguments: LauncherArguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the launcher")?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: LauncherArguments) -> anyhow::Result<()> {
    // An interrupt at the terminal reaches the whole foreground group; only the supervisor decides when servers end.
    let supervisor = std::os::unix::process::parent_id();
    let _interrupts_are_ignored = signal(SignalKind::interrupt()).context("watching for interrupts")?;
    let Connection { inbox, mut outbox } = Connection::<ToLauncher, FromLauncher>::connect(&arguments.socket).await?;
    outbox.send(&FromLauncher::Hello { pid: std::process::id(), backend: arguments.backend.name().to_owned() }).await?;
    // From here on the socket's end tells of the supervisor's.
    grail_process::outlive_parent().context("outliving the supervisor")?;
    let (to_loop, mut commands) = tokio::sync::mpsc::channel(COMMANDS_UNDER_WAY);
    let mut reading = tokio::spawn(receive(inbox, to_loop));
    let spawner = match &arguments.records {
        Some(folder) => Records::open(folder).and_then(Spawner::recording),
        None => Spawner::start(),
    };
    let mut launcher = Launcher { spawner: spawner.context("starting the spawner")?, arguments, installed: None, server: None };
    let ended = tokio::select! {
        // The socket's end cancels whatever is under way.
        ended = &mut reading => ended.context("reading the socket")?,
        ended = launcher.obey(&mut commands, &mut outbox) => ended,
    };
    if let Some(server) = &mut launcher.server {
        if std::os::unix::process::parent_id() == supervisor {
            server.stop(GRACE).await;
        } else {
            server.kill().await;
        }
    }
    ended
}

async fn receive(mut inbox: Inbox<ToLauncher>, commands: tokio::sync::mpsc::Sender<ToLauncher>) -> anyhow::Result<()> {
    while let Some(command) = inbox.receive().await? {
        if commands.send(command).await.is_err() {
            break;
        }
    }
    tracing::info!("The supervisor closed the socket; the launcher ends.");
    Ok(())
}

struct Launcher {
    spawner: Spawner,
    arguments: LauncherArguments,
    /// What was learnt about SGLang or vLLM.
    installed: Option<Installed>,
    server: Option<Server>,
}

impl Launcher {
    /// Carries commands out and watches the server; returns only with an error.
    async fn obey(
        &mut self,
        commands: &mut tokio::sync::mpsc::Receiver<ToLauncher>,
        outbox: &mut Outbox<FromLauncher>,
    ) -> anyhow::Result<()> {
        loop {
            let command = match &mut self.server {
                None => commands.recv().await,
                Some(server) => tokio::select! {
                    command = commands.recv() => command,
                    why = server.ended() => {
                        server.kill().await;
                        anyhow::bail!("the generation server is gone: {why}; its last lines: {}", server.last_lines().await)
                    }
                },
            };
            match command {
                Some(ToLauncher::Reload(command)) => outbox.send(&self.reload(command).await?).await?,
                // The reading task is gone and says why.
                None => std::future::pending().await,
            }
        }
    }

    /// A server for `directory`, in the place of the one that there may be.
    async fn start(&mut self, directory: &Path, revision: &Revision) -> Result<(), UpdateError> {
        if let Some(mut server) = self.server.take() {
            tracing::info!(%revision, "The checkpoint is another network; a server of its own takes the place of this one.");
            server.stop(GRACE).await;
        }
        let started = Server::start(&self.spawner, &self.arguments, &mut self.installed, directory, &revision.to_string()).await;
        if let (Err(_), Some(folder)) = (&started, &self.arguments.probes) {
            // Should what was remembered be the cause, the next start asks again.
            self.installed = None;
            let (folder, engine) = (folder.clone(), self.arguments.backend.dialect());
            self.spawner.aside().offer(move || installed::forget(&folder, engine));
        }
        self.server = Some(started.map_err(|error| match error {
            // The same weights may well go into a new process.
            StartError::Stuck { .. } => UpdateError::Unknown(error.to_string()),
            error => UpdateError::Refused(error.to_string()),
        })?);
        Ok(())
    }

    async fn reload(&mut self, command: ReloadCommand) -> anyhow::Result<FromLauncher> {
        let ReloadCommand { revision, directory, .. } = command;
        let updated = match &mut self.server {
            None => Err(NotUpdated::OtherNetwork),
            Some(server) => server.update(&directory, &revision.to_string()).await,
        };
        let updated = match updated {
            Err(NotUpdated::OtherNetwork) => self.start(&directory, &revision).await,
            Err(NotUpdated::Failed(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        let outcome = match updated {
            Ok(()) => Ok(()),
            Err(UpdateError::Refused(reason)) => Err(reason),
            Err(UpdateError::Unknown(reason)) => anyhow::bail!("the server cannot be given {revision}: {reason}"),
        };
        match (outcome, &self.server) {
            (Ok(()), Some(server)) => {
                tracing::info!(%revision, url = server.url(), "The generation server serves.");
                Ok(FromLauncher::Serving { revision, url: server.url().to_owned(), context_length: server.context_length() })
            }
            (Ok(()), None) => anyhow::bail!("a server was started and is not there"),
            (Err(reason), _) => {
                tracing::warn!(%revision, reason, "The weights are refused.");
                Ok(FromLauncher::ReloadRefused { revision, reason })
            }
        }
    }
}
