//! From nothing to a child that has said hello: bind, spawn, accept; and the messages that come after it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use grail_link::{Connection, Inbox, LinkError, Listener};
use grail_process::{Child, Launch, SideThread, Spawner, environment};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::death::Cause;

/// What came over a link, in order. Dropping it closes the link, as far as this end is concerned.
pub struct Incoming<In> {
    messages: mpsc::Receiver<Result<In, LinkError>>,
    _reader: AbortOnDropHandle<()>,
}

impl<In: DeserializeOwned + Send + 'static> Incoming<In> {
    /// Reads a link on a task of its own, because receiving must not be cancelled in mid-frame. Bounded: a child that floods us
    /// waits in its own socket.
    pub fn over(mut inbox: Inbox<In>) -> Self {
        let (forward, messages) = mpsc::channel(4);
        let reader = tokio::spawn(async move {
            while let Some(message) = inbox.receive().await.transpose() {
                let broken = message.is_err();
                if forward.send(message).await.is_err() || broken {
                    return;
                }
            }
        });
        Self { messages, _reader: AbortOnDropHandle::new(reader) }
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// When there will be none.
    pub async fn receive(&mut self) -> Result<In, Cause> {
        match self.messages.recv().await {
            Some(Ok(message)) => Ok(message),
            Some(Err(error)) => Err(broken(error)),
            None => Err(Cause::Closed),
        }
    }
}

/// A link that breaks in the middle is the peer's end; anything else is its mistake.
pub fn broken(error: LinkError) -> Cause {
    match error {
        LinkError::Broken(_) => Cause::Closed,
        error => Cause::Protocol(error.to_string()),
    }
}

/// A message came that was not due.
pub fn unexpected(message: &impl std::fmt::Debug) -> Cause {
    let kind = format!("{message:?}");
    Cause::Protocol(format!("it sent an unexpected message: {}", kind.split(['(', '{']).next().unwrap_or_default().trim()))
}

/// How a child is started.
pub struct Opening<'a> {
    /// Starts it.
    pub spawner: &'a Spawner,
    /// Its program.
    pub program: PathBuf,
    /// Where it connects to.
    pub socket: PathBuf,
    /// Its arguments, beside the socket.
    pub arguments: Vec<OsString>,
    /// Variables beside those that every child gets.
    pub environment: Vec<(OsString, OsString)>,
}

/// Longest wait for a disk that shall make or remove a socket's file.
const SOCKET_LIMIT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(250));

/// A child's socket. A disk that hangs holds up nobody who closes it.
pub struct ChildSocket {
    listener: Option<Listener>,
    aside: SideThread,
}

impl ChildSocket {
    async fn open(socket: PathBuf, aside: &SideThread) -> Result<Self, String> {
        let runtime = tokio::runtime::Handle::current();
        let bound = aside.ask(SOCKET_LIMIT.0, move || {
            let _here = runtime.enter();
            Listener::bind(&socket)
        });
        let listener = bound.await.map_err(|error| format!("the disk of the sockets (state.folder): {error}"))?;
        Ok(Self { listener: Some(listener.map_err(|error| error.to_string())?), aside: aside.clone() })
    }
}

impl Drop for ChildSocket {
    fn drop(&mut self) {
        let listener = self.listener.take();
        // Its file goes with it.
        let _ = self.aside.wait(SOCKET_LIMIT.1, move || drop(listener));
    }
}

/// Binds the child's socket and starts it.
pub async fn spawn(opening: Opening<'_>, name: &str) -> Result<(ChildSocket, Child), Cause> {
    let failed = |error: &dyn std::fmt::Display| Cause::CannotStart(error.to_string());
    let door = ChildSocket::open(opening.socket.clone(), opening.spawner.aside()).await.map_err(Cause::HostDisk)?;
    let mut arguments: Vec<OsString> = vec!["--socket".into(), opening.socket.into()];
    arguments.extend(opening.arguments);
    let launch = Launch {
        name: name.into(),
        program: opening.program,
        arguments,
        environment: environment::for_child(
            environment::of_this_process(),
            opening.environment.into_iter().chain([opening.spawner.family()]),
        ),
    };
    let child = opening.spawner.spawn(launch).await.map_err(|error| failed(&error))?;
    crate::failpoint::pass("spawn").await;
    Ok((door, child))
}

/// Waits for the child's first message. The life cycle sets the time limit.
pub async fn hello<In: DeserializeOwned, Out>(door: &ChildSocket, pid: u32) -> Result<(Connection<In, Out>, In), Cause> {
    let listener = door.listener.as_ref().ok_or(Cause::Closed)?;
    let mut link: Connection<In, Out> = listener.accept(pid).await.map_err(broken)?;
    let hello = link.inbox.receive().await.map_err(broken)?.ok_or(Cause::Closed)?;
    crate::failpoint::pass("handshake").await;
    Ok((link, hello))
}
