//! Sockets: a listener per child, a connection with typed halves.

use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use interprocess::local_socket::tokio::Stream;
use interprocess::local_socket::tokio::prelude::*;
use interprocess::local_socket::traits::StreamCommon;
use interprocess::local_socket::{GenericFilePath, ListenerOptions, Name};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::codec::{self, CodecError};
use crate::frame::{self, FrameError, Header};

/// Longest path a Unix socket address can hold (108 bytes with the final zero).
pub const MAX_SOCKET_PATH: usize = 107;

/// Why a link could not be made, or broke.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The operating system cannot bind such a path.
    #[error(
        "the socket path {path:?} has {length} bytes, the operating system allows {MAX_SOCKET_PATH}; choose a shorter folder"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Others could connect to, or replace, sockets in this folder.
    #[error("the socket folder {path:?} is not private ({why}); it must belong to this user with mode 0700")]
    FolderNotPrivate {
        /// The folder.
        path: PathBuf,
        /// Owner or mode found.
        why: String,
    },
    /// Reading, writing, binding or connecting failed.
    #[error("cannot {doing} the socket {path:?}: {source}")]
    Socket {
        /// What was tried.
        doing: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A process connected that is not the child that was started.
    #[error("process {found:?} of user {user:?} connected where the child {expected} was expected")]
    WrongPeer {
        /// The peer's process id.
        found: Option<u32>,
        /// The peer's user id.
        user: Option<u32>,
        /// The child's process id.
        expected: u32,
    },
    /// The connection broke in mid-frame.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// A frame that must not be believed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A payload that is no message.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

fn name_of(path: &Path) -> Result<Name<'_>, LinkError> {
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(LinkError::PathTooLong { path: path.into(), length });
    }
    path.to_fs_name::<GenericFilePath>().map_err(|source| LinkError::Socket { doing: "name", path: path.into(), source })
}

/// A socket that waits for one child.
#[derive(Debug)]
pub struct Listener {
    inner: interprocess::local_socket::tokio::Listener,
    path: PathBuf,
}

impl Listener {
    /// Binds `path`, whose folder is created with mode 0700 where it is missing. A stale socket file is replaced: the
    /// folder belongs to one supervisor, which its lock guarantees.
    ///
    /// # Errors
    /// When the path is too long, the folder is open to others, or binding fails.
    pub fn bind(path: &Path) -> Result<Self, LinkError> {
        let name = name_of(path)?;
        let failed = |doing| move |source| LinkError::Socket { doing, path: path.into(), source };
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make the folder of"))?;
        require_private(folder)?;
        let _ = std::fs::remove_file(path);
        let inner = ListenerOptions::new().name(name).create_tokio().map_err(failed("bind"))?;
        Ok(Self { inner, path: path.into() })
    }

    /// Where the child connects.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the child with process id `pid`; any other peer is refused. The caller sets the time limit.
    ///
    /// # Errors
    /// When accepting fails or the peer is another process or user.
    pub async fn accept<In, Out>(&self, pid: u32) -> Result<Connection<In, Out>, LinkError> {
        let stream = self.inner.accept().await.map_err(|source| LinkError::Socket {
            doing: "accept on",
            path: self.path.clone(),
            source,
        })?;
        let peer = stream.peer_creds()?;
        let (found, user) = (peer.pid().map(i32::cast_unsigned), peer.euid());
        if found != Some(pid) || user != Some(nix::unistd::geteuid().as_raw()) {
            return Err(LinkError::WrongPeer { found, user, expected: pid });
        }
        Ok(Connection::over(stream))
    }
}

fn require_private(folder: &Path) -> Result<(), LinkError> {
    let failed = |source| LinkError::Socket { doing: "look at the folder of", path: folder.into(), source };
    let facts = std::fs::metadata(folder).map_err(failed)?;
    let mode = facts.permissions().mode() & 0o777;
    let owner = facts.uid();
    if owner == nix::unistd::geteuid().as_raw() && mode & 0o077 == 0 {
        return Ok(());
    }
    Err(LinkError::FolderNotPrivate { path: folder.into(), why: format!("owner {owner}, mode {mode:04o}") })
}

/// Both directions of a link. `In` is what comes, `Out` what goes.
#[derive(Debug)]
pub struct Connection<In, Out> {
    /// What comes.
    pub inbox: Inbox<In>,
    /// What goes.
    pub outbox: Outbox<Out>,
}

impl<In, Out> Connection<In, Out> {
    /// The child's side: connects to the supervisor's socket.
    ///
    /// # Errors
    /// When the path is too long or nobody listens.
    pub async fn connect(path: &Path) -> Result<Self, LinkError> {
        let stream = Stream::connect(name_of(path)?).await;
        Ok(Self::over(stream.map_err(|source| LinkError::Socket { doing: "connect to", path: path.into(), source })?))
    }

    fn over(stream: Stream) -> Self {
        let stream = Arc::new(stream);
        Self { inbox: Inbox { stream: stream.clone(), kind: PhantomData }, outbox: Outbox { stream, kind: PhantomData } }
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Inbox<In> {
    stream: Arc<Stream>,
    kind: PhantomData<fn() -> In>,
}

impl<In: DeserializeOwned> Inbox<In> {
    /// The next message, or `None` when the peer has closed the connection between two frames. Not cancel-safe: give it a
    /// task of its own.
    ///
    /// # Errors
    /// When the connection breaks in mid-frame, or the bytes are no message. After [`FrameError::TooLarge`] the frame was read
    /// to its end and dropped, so the next one can be received; after any other error nothing more can.
    pub async fn receive(&mut self) -> Result<Option<In>, LinkError> {
        let mut stream = &*self.stream;
        let mut header = [0; frame::HEADER_BYTES];
        match stream.read_exact(&mut header[..1]).await {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
        stream.read_exact(&mut header[1..]).await?;
        let header = match Header::decode(header) {
            Err(FrameError::TooLarge(length)) => {
                self.skip(length).await?;
                return Err(FrameError::TooLarge(length).into());
            }
            header => header?,
        };
        let mut payload = vec![0; header.length];
        stream.read_exact(&mut payload).await?;
        header.check(&payload)?;
        Ok(Some(codec::decode(&payload)?))
    }

    async fn skip(&self, mut length: usize) -> Result<(), LinkError> {
        let mut stream = &*self.stream;
        let mut dropped = vec![0; 1 << 16];
        while length > 0 {
            let part = length.min(dropped.len());
            stream.read_exact(&mut dropped[..part]).await?;
            length -= part;
        }
        Ok(())
    }
}

/// The sending half.
#[derive(Debug)]
pub struct Outbox<Out> {
    stream: Arc<Stream>,
    kind: PhantomData<fn(Out)>,
}

impl<Out: Serialize> Outbox<Out> {
    /// Sends one message. Waits while the peer does not read, which bounds what is under way.
    ///
    /// # Errors
    /// When the message is too large for a frame, or the peer is gone.
    pub async fn send(&mut self, message: &Out) -> Result<(), LinkError> {
        let frame = frame::encode(&codec::encode(message)?)?;
        let mut stream = &*self.stream;
        stream.write_all(&frame).await?;
        Ok(stream.flush().await?)
    }
}
