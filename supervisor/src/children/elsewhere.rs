//! A generation server that runs elsewhere: somebody else starts and ends it, here it is probed, given weights in the safe order,
//! and left out while it does not answer. It is never killed.
//!
//! ```text
//!            healthy, update taken or weights already there
//!  left out ───────────────────────────────────────────────▶ serving
//!     ▲  probed again every two seconds                         │ no answer, other weights, an update that broke off
//!     └─────────────────────────────────────────────────────────┘
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_engines::Engine;
use grail_link::message::{ReloadCommand, Revision};
use grail_process::clock;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::event::ChildEvent;
use super::generator::Serving;
use super::life_cycle::ChildState;
use super::refusals::Refusals;
use super::traffic::Flow;
use crate::status::Board;

/// Pause between two probes.
const PROBE: Duration = Duration::from_secs(2);
/// SGLang's own probe fails after 20 s; a client must wait longer (generation-servers 1.1).
const CALL_LIMIT: Duration = Duration::from_secs(25);
/// An update waits for what runs, which may take minutes.
const UPDATE_LIMIT: Duration = Duration::from_secs(600);
/// Longest part of an answer that is repeated in a reason, in characters.
const SHOWN: usize = 300;

/// A server elsewhere.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// How logs and status call it.
    pub name: String,
    /// Its address, without a slash at the end.
    pub url: String,
    /// How it is spoken to.
    pub engine: Engine,
    /// Where checkpoints are here …
    pub cache: PathBuf,
    /// … and where the server sees them, if elsewhere.
    pub seen_as: Option<PathBuf>,
}

impl Elsewhere {
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

/// What an update came to.
enum Update {
    Taken,
    /// The old weights serve on.
    Refused(String),
    /// Nobody knows what it holds.
    Broken(String),
}

/// Probes one server until it is told to stop.
pub(super) struct Probing {
    pub server: Elsewhere,
    /// Which of the servers it is, from 0.
    pub place: usize,
    pub http: reqwest::Client,
    pub wanted: watch::Receiver<Option<ReloadCommand>>,
    pub report: watch::Sender<Option<Serving>>,
    pub refusals: Refusals,
    pub flow: watch::Receiver<Flow>,
    pub board: Board,
    /// What it holds, and what it refused, as far as is known.
    pub held: Option<Revision>,
    pub refused: Option<Revision>,
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
        self.call("/health", None, CALL_LIMIT).await?;
        // Whoever started it may have started it again since.
        let live = self.weight_version().await?;
        if let (Some(held), Some(live)) = (&self.held, &live)
            && *live != held.to_string()
        {
            return Err(format!("it holds weights {live:?}, and was given {held}"));
        }
        let Some(ReloadCommand { revision, directory, .. }) = wanted else { return Ok(()) };
        if self.held.as_ref() == Some(&revision) || self.refused.as_ref() == Some(&revision) {
            return Ok(());
        }
        self.report.send_replace(None);
        let (began, child) = (clock::monotonic(), self.server.name.clone());
        let update = match self.server.directory(&directory) {
            Err(reason) => Update::Refused(reason),
            Ok(_) if live.as_ref() == Some(&revision.to_string()) => Update::Taken,
            Ok(directory) => self.update(&directory, live.as_deref(), &revision.to_string()).await,
        };
        match update {
            Update::Taken => {
                let context_length = self.context_length().await?;
                let seconds = began.elapsed().as_secs_f64();
                self.board.event(ChildEvent::Holds { child, revision: revision.to_string(), seconds });
                self.board.child(&self.server.name, |child| child.revision = Some(revision.to_string()));
                self.held = Some(revision.clone());
                self.report.send_replace(Some(Serving { revision, url: self.server.url.clone(), context_length }));
            }
            Update::Refused(reason) => {
                self.board.event(ChildEvent::Refused { child, revision: revision.to_string(), reason: reason.clone() });
                self.refusals.tell(self.place, revision.clone(), reason);
                self.refused = Some(revision);
            }
            Update::Broken(reason) => return Err(format!("the update to {revision} broke off: {reason}")),
        }
        Ok(())
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

    /// The safe sequence of each engine (generation-servers 1.6 and 2.3).
    async fn update(&self, directory: &Path, old: Option<&str>, new: &str) -> Update {
        let done = match self.server.engine {
            Engine::Sglang => self.update_sglang(directory, old, new).await,
            Engine::Vllm => self.update_vllm(directory).await.map(|()| None),
        };
        match done {
            Ok(None) => Update::Taken,
            Ok(Some(reason)) => Update::Refused(reason),
            Err(reason) => Update::Broken(reason),
        }
    }

    /// `Some` tells why it keeps its old weights.
    async fn update_sglang(&self, directory: &Path, old: Option<&str>, new: &str) -> Result<Option<String>, String> {
        self.call("/pause_generation", Some(json!({"mode": "abort"})), UPDATE_LIMIT).await?;
        let body = json!({"model_path": directory, "weight_version": new});
        // The answer alone proves nothing: one that says it failed may have replaced the weights.
        let said = self.call("/update_weights_from_disk", Some(body), UPDATE_LIMIT).await;
        let live = self.weight_version().await?;
        let refusal = match (live.as_deref(), said) {
            (live, _) if live == Some(new) => {
                self.call("/flush_cache?timeout=20", Some(json!({})), CALL_LIMIT).await?;
                None
            }
            (live, Err(reason)) if live == old => Some(reason),
            (live, said) => return Err(format!("its weight version is now {live:?}; it said {said:?}")),
        };
        self.call("/continue_generation", Some(json!({})), CALL_LIMIT).await?;
        Ok(refusal)
    }

    /// A reload that fails leaves vLLM with a model that its next request kills: it stays paused, and the next probe's reload is
    /// the way back.
    async fn update_vllm(&self, directory: &Path) -> Result<(), String> {
        self.call("/pause?mode=abort", Some(json!({})), UPDATE_LIMIT).await?;
        let body = json!({"method": "reload_weights", "kwargs": {"weights_path": directory}});
        self.call("/collective_rpc", Some(body), UPDATE_LIMIT).await?;
        self.call("/reset_prefix_cache", Some(json!({})), CALL_LIMIT).await?;
        self.call("/resume", Some(json!({})), CALL_LIMIT).await.map(drop)
    }

    /// What SGLang says that it holds; vLLM keeps no version.
    async fn weight_version(&self) -> Result<Option<String>, String> {
        if self.server.engine == Engine::Vllm {
            return Ok(None);
        }
        let info = self.call("/model_info", None, CALL_LIMIT).await?;
        let version = info["weight_version"].as_str().map(str::to_owned);
        version.map(Some).ok_or_else(|| "/model_info tells no weight_version".to_owned())
    }

    async fn context_length(&self) -> Result<u32, String> {
        let (path, value) = match self.server.engine {
            Engine::Sglang => ("/server_info", self.call("/server_info", None, CALL_LIMIT).await?["context_length"].clone()),
            Engine::Vllm => ("/v1/models", self.call("/v1/models", None, CALL_LIMIT).await?["data"][0]["max_model_len"].clone()),
        };
        value.as_u64().and_then(|length| u32::try_from(length).ok()).ok_or_else(|| format!("{path} tells no context length"))
    }

    /// A GET, or a POST of `body`, that must be answered with success; the answer's JSON, null where it is none.
    async fn call(&self, path: &str, body: Option<Value>, limit: Duration) -> Result<Value, String> {
        let url = format!("{}{path}", self.server.url);
        let request = match &body {
            Some(body) => self.http.post(url).json(body),
            None => self.http.get(url),
        };
        let answer = request.timeout(limit).send().await.map_err(|error| format!("{path} failed: {error}"))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| format!("{path} failed: {error}"))?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        if status.is_success() && value["success"] != false {
            return Ok(value);
        }
        Err(format!("{path} answered {status}: {}", text.chars().take(SHOWN).collect::<String>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_where_the_server_sees_it_or_refused() {
        let mut server = Elsewhere {
            name: "generation server 0".into(),
            url: "http://10.0.0.2:30000".into(),
            engine: Engine::Sglang,
            cache: "/var/cache/grail".into(),
            seen_as: None,
        };
        let here = Path::new("/var/cache/grail/checkpoints/checkpoint-30");
        assert_eq!(server.directory(here).unwrap(), here);
        server.seen_as = Some("/mnt/grail".into());
        assert_eq!(server.directory(here).unwrap(), Path::new("/mnt/grail/checkpoints/checkpoint-30"));
        assert!(server.directory(Path::new("/tmp/checkpoint-30")).unwrap_err().contains("generation.servers_cache"));
    }
}
