//! From nothing to a child that has said hello: bind, spawn, accept, and drain its output for ever.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_link::{Connection, Inbox, LinkError, Listener};
use grail_process::{Child, Launch, SpawnError, Spawner, environment};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::mpsc;

use super::keep::Ended;
use crate::exit::Failure;

/// Longest time from spawn to the first message. Loading a model comes later and has its own limit.
const HELLO_LIMIT: Duration = Duration::from_secs(60);
/// Longest line of a child's output that is kept; the rest of it is dropped.
const LINE_LIMIT: usize = 4096;

/// Where the other programs are.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

/// The other programs.
#[derive(Debug, Clone, Copy)]
pub enum ChildPrograms {
    /// `grail-proof-worker`
    ProofWorker,
    /// `grail-gen-launcher`
    GenLauncher,
}

impl ChildPrograms {
    fn file_name(self) -> &'static str {
        match self {
            Self::ProofWorker => "grail-proof-worker",
            Self::GenLauncher => "grail-gen-launcher",
        }
    }
}

impl Programs {
    /// The given folder, or the one this program lies in; every program named in `needed` must be there.
    ///
    /// # Errors
    /// When one is missing, with the path that was looked at.
    pub fn find(folder: Option<&Path>, needed: &[ChildPrograms]) -> Result<Self, Failure> {
        let folder = match folder {
            Some(folder) => folder.to_path_buf(),
            None => std::env::current_exe()
                .ok()
                .and_then(|path| path.parent().map(Path::to_path_buf))
                .ok_or_else(|| Failure::Internal("cannot tell where this program lies; set programs.folder".into()))?,
        };
        let programs = Self(folder);
        match needed.iter().map(|program| programs.path(*program)).find(|path| !path.is_file()) {
            None => Ok(programs),
            Some(path) => Err(Failure::Unavailable(format!(
                "the program {path:?} is missing; build all programs (`cargo build`) or set programs.folder"
            ))),
        }
    }

    /// The path of one program.
    pub fn path(&self, program: ChildPrograms) -> PathBuf {
        self.0.join(program.file_name())
    }
}

/// Why no session with a child came about.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("it ended before it said hello ({0})")]
    Ended(std::process::ExitStatus),
    #[error("it closed the connection before it said hello")]
    Silent,
    #[error("it said nothing within {} s", HELLO_LIMIT.as_secs())]
    Late,
}

impl SessionError {
    /// A child that refuses its arguments (exit code 64) will refuse them again.
    pub fn ended(self) -> Ended {
        match self {
            Self::Ended(status) if status.code() == Some(64) => Ended::Unfit(format!("it refused its arguments ({status})")),
            error => Ended::Died(error.to_string()),
        }
    }
}

/// What came over a link, in order.
pub(super) type Incoming<In> = mpsc::Receiver<Result<In, LinkError>>;

/// Reads a link on a task of its own, because receiving must not be cancelled in mid-frame. Bounded: a child that floods us
/// waits in its own socket.
pub(super) fn forward<In: DeserializeOwned + Send + 'static>(mut inbox: Inbox<In>) -> Incoming<In> {
    let (forward, incoming) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(message) = inbox.receive().await.transpose() {
            let broken = message.is_err();
            if forward.send(message).await.is_err() || broken {
                return;
            }
        }
    });
    incoming
}

/// Why a message ends the session: none was due, or it is of another kind.
pub(super) fn unexpected<In: std::fmt::Debug>(message: Option<Result<In, LinkError>>) -> String {
    match message {
        None => "it closed the connection".into(),
        Some(Err(error)) => error.to_string(),
        Some(Ok(message)) => {
            let kind = format!("{message:?}");
            format!("it sent an unexpected message: {}", kind.split(['(', '{']).next().unwrap_or_default().trim())
        }
    }
}

/// A child that has said hello.
pub(super) struct Session<In, Out> {
    pub child: Child,
    pub link: Connection<In, Out>,
    pub hello: In,
}

/// What a session is opened with.
pub(super) struct Opening<'a> {
    pub spawner: &'a Spawner,
    pub name: &'a str,
    pub program: PathBuf,
    pub socket: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
}

/// Starts the child and waits for its first message.
pub(super) async fn open<In: DeserializeOwned, Out>(opening: Opening<'_>) -> Result<Session<In, Out>, SessionError> {
    let listener = Listener::bind(&opening.socket)?;
    let mut arguments: Vec<OsString> = vec!["--socket".into(), opening.socket.clone().into()];
    arguments.extend(opening.arguments);
    let mut child = opening
        .spawner
        .spawn(Launch {
            name: opening.name.into(),
            program: opening.program,
            arguments,
            environment: environment::for_child(std::env::vars_os(), opening.environment),
        })
        .await?;
    if let Some(output) = child.take_output() {
        tokio::spawn(drain(opening.name.to_owned(), output.stdout));
        tokio::spawn(drain(opening.name.to_owned(), output.stderr));
    }
    crate::failpoint::pass("spawn").await;
    let pid = child.pid();
    let greeting = async {
        let mut link: Connection<In, Out> = listener.accept(pid).await?;
        let hello = link.inbox.receive().await?.ok_or(SessionError::Silent)?;
        Ok((link, hello))
    };
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(HELLO_LIMIT, greeting) => greeted.unwrap_or(Err(SessionError::Late)),
        status = child.exited() => Err(SessionError::Ended(status)),
    };
    let (link, hello) = greeted?;
    crate::failpoint::pass("handshake").await;
    Ok(Session { child, link, hello })
}

/// Re-emits a child's output line by line, for as long as the pipe is open: a full pipe would block the child.
async fn drain(name: String, pipe: impl AsyncRead + Unpin) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        // Bounded: a child that never ends its line must not fill our memory.
        match tokio::io::AsyncReadExt::take(&mut reader, LINE_LIMIT as u64).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        if !text.trim().is_empty() {
            re_emit(&name, text.trim());
        }
    }
}

/// Our own children write their level first; any other program's line counts as information.
fn re_emit(name: &str, line: &str) {
    match line.split_once(' ') {
        Some(("ERROR", rest)) => tracing::error!(target: "child", child = %name, "{}", rest.trim_start()),
        Some(("WARN", rest)) => tracing::warn!(target: "child", child = %name, "{}", rest.trim_start()),
        Some(("INFO", rest)) => tracing::info!(target: "child", child = %name, "{}", rest.trim_start()),
        Some(("DEBUG", rest)) => tracing::debug!(target: "child", child = %name, "{}", rest.trim_start()),
        _ => tracing::info!(target: "child", child = %name, "{line}"),
    }
}
