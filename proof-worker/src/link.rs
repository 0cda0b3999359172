//! The socket on a thread of its own, so that its end is seen while the main thread computes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::Context;
use grail_link::message::{FromWorker, ToWorker, WorkerHello};
use grail_link::{Connection, FrameError, Inbox, LinkError, Outbox};
use grail_process::with_causes;
use tokio::signal::unix::{SignalKind, signal};

/// Results that may wait for the socket; then computing waits, which bounds the memory.
const RESULTS_UNDER_WAY: usize = 64;

/// The main thread's end of the link.
pub struct Link {
    commands: mpsc::Receiver<ToWorker>,
    results: tokio::sync::mpsc::Sender<FromWorker>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// The next command. When the socket ends, the link thread ends the process, and this never returns.
    ///
    /// # Errors
    /// When the link thread panicked.
    pub fn next(&mut self) -> anyhow::Result<ToWorker> {
        if let Ok(command) = self.commands.recv() {
            return Ok(command);
        }
        // No command comes any more, but the exit code is the link thread's to choose.
        let _ = self.thread.take().map(JoinHandle::join);
        anyhow::bail!("the link's thread panicked")
    }

    /// Hands a message to the link thread. If that is gone the process is ending, and the message is of no use.
    pub fn send(&self, message: FromWorker) {
        let _ = self.results.blocking_send(message);
    }
}

/// Starts the link thread, which connects, says hello, and ends the process when the socket ends.
///
/// # Errors
/// When the operating system refuses a thread.
pub fn open(socket: PathBuf, hello: WorkerHello) -> anyhow::Result<Link> {
    let (to_worker, commands) = mpsc::channel();
    let (results, from_worker) = tokio::sync::mpsc::channel(RESULTS_UNDER_WAY);
    let refusals = results.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the link's runtime")?;
    let thread = std::thread::Builder::new()
        .name("link".into())
        .spawn(move || {
            let ended = runtime.block_on(serve(&socket, hello, to_worker, refusals, from_worker));
            // The model may be in the middle of a forward pass that nobody wants any more: no unwinding, no waiting.
            std::process::exit(match ended {
                Ok(()) => {
                    tracing::info!("The supervisor closed the socket; the worker ends.");
                    0
                }
                Err(error) => {
                    tracing::error!(error = with_causes(error.as_ref()), "The link to the supervisor broke; the worker ends.");
                    1
                }
            });
        })
        .context("starting the link's thread")?;
    Ok(Link { commands, results, thread: Some(thread) })
}

async fn serve(
    socket: &Path,
    hello: WorkerHello,
    commands: mpsc::Sender<ToWorker>,
    refusals: tokio::sync::mpsc::Sender<FromWorker>,
    results: tokio::sync::mpsc::Receiver<FromWorker>,
) -> anyhow::Result<()> {
    // An interrupt at the terminal reaches the whole foreground group; only the supervisor decides when a worker ends.
    let _interrupts_are_ignored = signal(SignalKind::interrupt()).context("watching for interrupts")?;
    let Connection { inbox, mut outbox } = Connection::connect(socket).await?;
    outbox.send(&FromWorker::Hello(hello)).await.context("saying hello")?;
    tokio::select! {
        ended = receive(inbox, commands, refusals) => ended,
        ended = send(outbox, results) => ended,
    }
}

async fn receive(
    mut inbox: Inbox<ToWorker>,
    commands: mpsc::Sender<ToWorker>,
    refusals: tokio::sync::mpsc::Sender<FromWorker>,
) -> anyhow::Result<()> {
    loop {
        let command = match inbox.receive().await {
            Err(LinkError::Frame(error @ FrameError::TooLarge(_))) => {
                tracing::warn!(%error, "A frame is refused.");
                let _ = refusals.send(FromWorker::FrameRefused { reason: error.to_string() }).await;
                continue;
            }
            command => command?,
        };
        let Some(command) = command else { return Ok(()) };
        // The main thread only drops its end when it is about to exit by itself.
        if commands.send(command).is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn send(mut outbox: Outbox<FromWorker>, mut results: tokio::sync::mpsc::Receiver<FromWorker>) -> anyhow::Result<()> {
    while let Some(message) = results.recv().await {
        match outbox.send(&message).await {
            Ok(()) => {}
            // A writer may meet the closed socket before the reader does; it is the same end.
            Err(LinkError::Broken(error)) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    std::future::pending().await
}
