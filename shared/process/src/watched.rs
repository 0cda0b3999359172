//! The end of a process that is nobody's child here: a server's own children, without which it cannot live.

use std::io;
use std::time::Duration;

use crate::proc;
use crate::spawn::EndOf;

/// Pause between two looks, where the kernel woke us and the process still runs.
const LOOK: Duration = Duration::from_millis(100);

/// A process whose end can be waited for. It is never signalled through this value.
#[derive(Debug)]
pub struct Watched {
    /// Process id.
    pub pid: u32,
    /// Its name as the kernel keeps it, cut to 15 bytes.
    pub name: String,
    started: u64,
    end: EndOf,
}

impl Watched {
    /// Watches the process that has this pid now.
    ///
    /// # Errors
    /// When there is none, or the kernel gives no descriptor for it.
    pub fn of(pid: u32) -> io::Result<Self> {
        let end = EndOf::process(pid)?;
        // Read after the descriptor was opened: the name is the watched process's, or there is none any more.
        let facts = proc::facts(pid)?;
        Ok(Self { pid, name: facts.name, started: facts.started, end })
    }

    /// Waits until it has ended, reaped or not. Cancel-safe.
    pub async fn ended(&self) {
        loop {
            self.end.reached().await;
            let runs = proc::facts(self.pid).is_ok_and(|facts| facts.started == self.started && facts.lives());
            if !runs {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
