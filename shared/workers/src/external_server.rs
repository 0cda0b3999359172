//! A generation server that runs elsewhere: somebody else starts and ends it, here it is probed, given weights in the safe order,
//! and left out while it does not answer. It is never killed.
//!
//! ```text
//!            healthy, update taken or weights already there
//!  left out ───────────────────────────────────────────────▶ serving
//!     ▲  probed again every two seconds                         │ no answer, other weights
//!     ├─────────────────────────────────────────────────────────┤
//!     │  the whole sequence goes through                        │ an update that broke off: it is paused, and nobody knows
//!     └──────────────────────── in doubt ◀──────────────────────┘ what it would answer with
//! ```
//!
//! An update of an earlier run that was killed in the middle leaves a paused server as well. SGLang's health fails then, but only
//! after 20 s, where one that still warms up says so at once.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_engines::{Calls, Engine, UpdateError};
use grail_link::message::{ReloadCommand, Revision};
use grail_process::{SideThread, clock};
use grail_secrets::{Address, Secret};
use grail_supervision::board::Board;
use grail_supervision::children::{ChildEvent, ChildState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::refusals::Refusals;
use super::serving::Serving;
use super::traffic::Flow;

/// Pause between two probes.
const PROBE: Duration = Duration::from_secs(2);
/// A health probe that fails after so long is that of a server which is paused, or stuck.
const PAUSED: Duration = Duration::from_secs(5);
/// How long the cache's disk is waited for: a server of the same user reads the checkpoint without our help.
const DISK_LIMIT: Duration = Duration::from_secs(5);

/// A server elsewhere.
#[derive(Debug, Clone)]
pub struct ExternalServer {
    /// How logs and status call it.
    pub name: String,
    /// Its address, without a slash at the end.
    pub url: Address,
    /// How it is spoken to.
    pub engine: Engine,
    /// Where checkpoints are here …
    pub cache: PathBuf,
    /// … and where the server sees them, if elsewhere.
    pub seen_as: Option<PathBuf>,
    /// What it was started with, as far as requests must carry it.
    pub credentials: Vec<(String, Secret)>,
}

impl ExternalServer {
    /// The directory of a checkpoint as the server sees it.
    ///
    /// # Errors
    /// When it is not in the cache, so that nobody knows where the server sees it.
    pub fn directory(&self, here: &Path) -> Result<PathBuf, String> {
        let Some(seen_as) = &self.seen_as else { return Ok(here.to_path_buf()) };
        let within = here.strip_prefix(&self.cache).map_err(|_| {
            format!(
                "{} is not below checkpoints.cache ({}), which generation.servers_cache stands for",
                here.display(),
                self.cache.display()
            )
        })?;
        Ok(seen_as.join(within))
    }
}

/// What this process makes is its user's alone, and a server elsewhere may run as another one: a checkpoint is no secret.
fn open_to_readers(directory: &Path, cache: &Path) -> std::io::Result<()> {
    let open = |path: &Path, bits: u32| {
        let mode = std::fs::metadata(path)?.permissions().mode();
        if mode & bits == bits { Ok(()) } else { std::fs::set_permissions(path, Permissions::from_mode(mode | bits)) }
    };
    for entry in std::fs::read_dir(directory)? {
        open(&entry?.path(), 0o444)?;
    }
    open(directory, 0o555)?;
    open(cache, 0o555)
}

/// Has the cache's disk do something, and waits for it as long as it is worth.
async fn in_time(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> std::io::Result<()> {
    let disk = SideThread::start("cache", 1)?;
    disk.ask(DISK_LIMIT, work).await.unwrap_or_else(|held_up| Err(held_up.into()))
}

/// Probes one server until it is told to stop.
pub(super) struct Probing {
    pub server: ExternalServer,
    /// Which of the servers it is, from 0.
    pub place: usize,
    pub calls: Calls,
    pub wanted: watch::Receiver<Option<ReloadCommand>>,
    /// The weights that a proof worker has found whole.
    pub judged: watch::Receiver<Option<Revision>>,
    pub report: watch::Sender<Option<Serving>>,
    pub refusals: Refusals,
    pub flow: watch::Receiver<Flow>,
    pub board: Board,
    /// What it holds, and what it refused, as far as is known.
    pub held: Option<Revision>,
    pub refused: Option<Revision>,
    /// It may be in the middle of an update, and paused.
    pub in_doubt: bool,
}

impl Probing {
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.turn(wanted) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.wanted.changed() => match changed {
                    Ok(()) => self.refused = None,
                    Err(_) => return,
                },
                Ok(()) = self.judged.changed() => {}
                () = tokio::time::sleep(PROBE) => {}
            }
        }
    }

    async fn turn(&mut self, wanted: Option<ReloadCommand>) {
        let looked = self.look(wanted).await;
        let answered = self.flow.borrow().answered;
        let serves = self.report.borrow().is_some();
        self.board.child(&self.server.name, |child| {
            child.progress = answered;
            child.state = if serves { ChildState::Ready } else { ChildState::Absent };
        });
        if let Err(reason) = looked {
            self.leave_out(reason);
        }
    }

    /// One probe, and an update where one is due.
    ///
    /// # Errors
    /// Why the server is to be left out.
    async fn look(&mut self, wanted: Option<ReloadCommand>) -> Result<(), String> {
        // Whoever started it may have started it again since.
        let live = self.alive().await?;
        if let (Some(held), Some(live)) = (&self.held, &live)
            && *live != held.to_string()
        {
            return Err(format!("it holds weights {live:?}, and was given {held}"));
        }
        let Some(wanted) = wanted else { return Ok(()) };
        let of_wanted = |revision: &Option<Revision>| revision.as_ref() == Some(&wanted.revision);
        if of_wanted(&self.held) || of_wanted(&self.refused) {
            return Ok(());
        }
        if !of_wanted(&self.judged.borrow_and_update()) {
            // Nobody is sent there with the weights of before.
            self.report.send_replace(None);
            return Ok(());
        }
        self.give(wanted, live).await
    }

    /// Makes sure that it can produce, or could if an update went through; the weight version that it tells.
    async fn alive(&mut self) -> Result<Option<String>, String> {
        // Only SGLang's health fails while it is paused, where the rest keeps answering.
        if self.in_doubt && self.server.engine == Engine::Sglang {
            let live = self.calls.weight_version().await;
            // It is gone; what comes in its place is in the middle of nothing.
            self.in_doubt = live.is_ok();
            return live;
        }
        let asked = clock::monotonic();
        if let Err(reason) = self.calls.healthy().await {
            self.in_doubt = asked.elapsed() >= PAUSED;
            return Err(reason);
        }
        self.calls.weight_version().await
    }

    /// # Errors
    /// Why the server is to be left out.
    async fn give(&mut self, wanted: ReloadCommand, live: Option<String>) -> Result<(), String> {
        let ReloadCommand { revision, directory, .. } = wanted;
        self.report.send_replace(None);
        let (here, cache) = (directory.clone(), self.server.cache.clone());
        if let Err(error) = in_time(move || open_to_readers(&here, &cache)).await {
            tracing::warn!(%error, directory = %directory.display(), "The checkpoint cannot be opened to a server of another user.");
        }
        let (began, child, text) = (clock::monotonic(), self.server.name.clone(), revision.to_string());
        let update = match self.server.directory(&directory) {
            Err(reason) => Err(UpdateError::Refused(reason)),
            // Continued by whoever updated it, so flushed as well.
            Ok(_) if live.as_ref() == Some(&text) && !self.in_doubt => Ok(()),
            Ok(directory) => self.update(&directory, &live.unwrap_or_default(), &text).await,
        };
        match update {
            Ok(()) => {
                let context_length = self.calls.context_length().await?;
                self.board.event(ChildEvent::Holds { child, revision: text.clone(), seconds: began.elapsed().as_secs_f64() });
                self.board.child(&self.server.name, |child| child.revision = Some(text));
                self.held = Some(revision.clone());
                self.report.send_replace(Some(Serving { revision, url: self.server.url.clone(), context_length }));
            }
            Err(UpdateError::Refused(reason)) => {
                self.board.event(ChildEvent::Refused { child, revision: text, reason: reason.clone() });
                self.refusals.tell(self.place, revision.clone(), reason);
                self.refused = Some(revision);
            }
            Err(UpdateError::Unknown(reason)) => return Err(format!("the update to {revision} broke off: {reason}")),
        }
        Ok(())
    }

    /// Whatever cancels this leaves a server in doubt.
    async fn update(&mut self, directory: &Path, old: &str, new: &str) -> Result<(), UpdateError> {
        self.in_doubt = true;
        let updated = self.calls.update(directory, old, new, |_| {}).await;
        self.in_doubt = matches!(updated, Err(UpdateError::Unknown(_)));
        updated
    }

    fn leave_out(&mut self, reason: String) {
        // One that has not been there yet has not ended either.
        let served = self.held.take().is_some();
        self.report.send_replace(None);
        let mut told = false;
        self.board.child(&self.server.name, |child| {
            told = child.state == ChildState::Absent && child.last_end.is_some();
            child.ends += u32::from(served);
            (child.state, child.revision, child.last_end) = (ChildState::Absent, None, Some(reason.clone()));
        });
        if !told {
            self.board.event(ChildEvent::LeftOut { child: self.server.name.clone(), reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_opened_to_readers_and_nothing_beside_it() {
        let cache = tempfile::tempdir().unwrap();
        let (directory, secret) = (cache.path().join("checkpoint-30"), cache.path().join("secret"));
        std::fs::create_dir(&directory).unwrap();
        let file = directory.join("model.safetensors");
        for (path, mode) in [(&file, 0o600), (&secret, 0o600)] {
            std::fs::write(path, "x").unwrap();
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        std::fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
        open_to_readers(&directory, cache.path()).unwrap();
        let found = [cache.path(), &directory, &file, &secret].map(|path| std::fs::metadata(path).unwrap().permissions().mode());
        assert_eq!(found.map(|mode| mode & 0o777), [0o755, 0o755, 0o644, 0o600]);
    }

    #[test]
    fn a_checkpoint_is_where_the_server_sees_it_or_refused() {
        let mut server = ExternalServer {
            name: "generation server 0".into(),
            url: "http://10.0.0.2:30000".into(),
            engine: Engine::Sglang,
            cache: "/var/cache/grail".into(),
            seen_as: None,
            credentials: Vec::new(),
        };
        let here = Path::new("/var/cache/grail/checkpoints/checkpoint-30");
        assert_eq!(server.directory(here).unwrap(), here);
        server.seen_as = Some("/mnt/grail".into());
        assert_eq!(server.directory(here).unwrap(), Path::new("/mnt/grail/checkpoints/checkpoint-30"));
        assert!(server.directory(Path::new("/tmp/checkpoint-30")).unwrap_err().contains("generation.servers_cache"));
    }
}
