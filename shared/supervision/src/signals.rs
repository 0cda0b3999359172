//! The signals that stop a supervisor, and who sends them.

use std::path::Path;

use grail_process::limits;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;
use crate::shutdown::Manager;

/// Who starts and stops this process, as far as it can tell.
pub fn manager() -> Manager {
    // Read here only to learn who starts and stops this process.
    let contained = Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists();
    // A container's signals go to its first process, which may be an init that passes them on.
    if contained && (std::process::id() == 1 || nix::unistd::getppid().as_raw() == 1) {
        Manager::Container
    } else if std::env::var_os("INVOCATION_ID").is_some() {
        Manager::Systemd
    } else {
        Manager::Other
    }
}

/// SIGTERM, SIGINT, and SIGHUP unless it was ignored at the start: whoever started this by `nohup` wants it to outlive the terminal,
/// everybody else whose terminal or session ends wants it to end in order.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    /// From now on signals come here.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::internal("listen for signals", error));
        // Listening would end the ignoring.
        let ignored = limits::ignores(nix::sys::signal::Signal::SIGHUP);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: if ignored { None } else { Some(listen(SignalKind::hangup())?) },
        })
    }

    /// The first one.
    pub async fn next(&mut self) -> &'static str {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => _ = hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = hang_up => "SIGHUP",
        }
    }

    /// One that hurries a stop. SIGHUP does not: a terminal that ends sends it more than once (kernel and shell), and systemd may send it
    /// beside SIGTERM.
    pub async fn again(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
