//! One running generation server: its process, its address, and the calls that change its weights.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use grail_process::{Child, Launch, SpawnError, Spawner, clock, environment};
use serde_json::{Value, json};

use super::output::{LastLines, drain};
use crate::arguments::LauncherArguments;

/// Pause between two looks whether the server answers.
const READY_LOOK: Duration = Duration::from_millis(200);
/// A health probe of SGLang fails after 20 s; a client must wait longer.
const CALL_LIMIT: Duration = Duration::from_secs(25);
/// An update waits for running requests, which may take minutes.
const UPDATE_LIMIT: Duration = Duration::from_secs(600);
/// Time a flush may wait for the server to be idle, in seconds.
const FLUSH_SECONDS: u32 = 60;
/// Time a server gets to end when it did not become ready.
const GRACE: Duration = Duration::from_secs(2);

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no free port, or this program's own path is unknown.
    #[error("cannot prepare the generation server: {0}")]
    Prepare(#[from] std::io::Error),
    /// The program cannot be executed.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The HTTP client cannot be built.
    #[error("cannot build the HTTP client: {0}")]
    Client(#[source] reqwest::Error),
    /// The server ended before it answered.
    #[error("the generation server ended while it started ({status}); its last lines: {lines}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The last lines it printed.
        lines: String,
    },
    /// The server did not answer in time.
    #[error("the generation server did not answer within {seconds} s; its last lines: {lines}")]
    NotReady {
        /// The limit.
        seconds: u64,
        /// The last lines it printed.
        lines: String,
    },
    /// The server answers, but not with what it was started with.
    #[error("the generation server answers, but {0}")]
    Wrong(String),
}

/// Why an update failed, and what the server is worth now.
#[derive(Debug)]
pub enum UpdateError {
    /// The old weights go on serving, as the server itself confirms.
    Refused(String),
    /// Nobody knows which weights, or which cache, the server answers with: it must be replaced.
    Unknown(String),
}

/// A server that answers.
#[derive(Debug)]
pub struct Server {
    child: Child,
    client: reqwest::Client,
    url: String,
    context_length: u32,
    weight_version: String,
}

impl Server {
    /// Starts the embedded engine on a free loopback port and waits until it can produce.
    ///
    /// # Errors
    /// When it cannot be started, ends, does not answer in time, or holds other weights than asked for.
    pub async fn start(
        spawner: &Spawner,
        arguments: &LauncherArguments,
        directory: &Path,
        weight_version: &str,
    ) -> Result<Self, StartError> {
        let port = free_port()?;
        let launch = launch(std::env::current_exe()?, arguments, directory, weight_version, port);
        let client = reqwest::Client::builder().no_proxy().timeout(CALL_LIMIT).build().map_err(StartError::Client)?;
        let mut child = spawner.spawn(launch).await?;
        if let Some(error) = child.take_unrecorded() {
            tracing::warn!(%error, "The server could not be written down; a later supervisor would not find it.");
        }
        let lines = LastLines::default();
        if let Some(output) = child.take_output() {
            tokio::spawn(drain(output.stdout, lines.clone()));
            tokio::spawn(drain(output.stderr, lines.clone()));
        }
        let url = format!("http://127.0.0.1:{port}");
        let mut server = Self { child, client, url, context_length: 0, weight_version: weight_version.to_owned() };
        server.wait_until_ready(arguments.ready_timeout, &lines).await?;
        server.confirm().await?;
        Ok(server)
    }

    async fn wait_until_ready(&mut self, seconds: u64, lines: &LastLines) -> Result<(), StartError> {
        let deadline = clock::monotonic() + Duration::from_secs(seconds);
        loop {
            let healthy = self.client.get(format!("{}/health", self.url)).send();
            tokio::select! {
                status = self.child.exited() => {
                    // The pipes end with the process; the readers need a moment to come to their ends.
                    tokio::time::sleep(READY_LOOK).await;
                    return Err(StartError::Ended { status, lines: lines.text() });
                }
                answer = healthy => if answer.is_ok_and(|answer| answer.status().is_success()) {
                    return Ok(());
                }
            }
            if clock::monotonic() >= deadline {
                self.child.stop(GRACE).await;
                return Err(StartError::NotReady { seconds, lines: lines.text() });
            }
            tokio::time::sleep(READY_LOOK).await;
        }
    }

    async fn confirm(&mut self) -> Result<(), StartError> {
        let version = self.live_version().await.map_err(StartError::Wrong)?;
        if version != self.weight_version {
            return Err(StartError::Wrong(format!("its weight version is {version:?}, want {:?}", self.weight_version)));
        }
        let info = self.get("/server_info").await.map_err(StartError::Wrong)?;
        let length = info["context_length"].as_u64().and_then(|length| u32::try_from(length).ok());
        self.context_length = length.ok_or_else(|| StartError::Wrong("/server_info tells no context_length".to_owned()))?;
        Ok(())
    }

    /// Where it answers.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Longest prompt plus completion.
    pub fn context_length(&self) -> u32 {
        self.context_length
    }

    /// Waits until the server ends.
    pub async fn exited(&mut self) -> ExitStatus {
        self.child.exited().await
    }

    /// Ends the server with everything it started.
    pub async fn stop(&mut self, grace: Duration) {
        self.child.stop(grace).await;
    }

    /// Gives the server other weights and makes sure that it answers with them and with no older cache.
    ///
    /// # Errors
    /// [`UpdateError::Refused`] where the old weights serve on; [`UpdateError::Unknown`] where the server must be replaced.
    pub async fn update(&mut self, directory: &Path, weight_version: &str) -> Result<(), UpdateError> {
        let body = json!({"model_path": directory, "weight_version": weight_version});
        let answer = tokio::select! {
            status = self.child.exited() => return Err(UpdateError::Unknown(format!("the server ended: {status}"))),
            answer = self.client.post(format!("{}/update_weights_from_disk", self.url)).timeout(UPDATE_LIMIT).json(&body).send() => answer,
        };
        // The server's answer alone proves nothing: one that says it failed may have replaced the weights.
        let said = match answer {
            Ok(answer) => success_of(answer).await,
            Err(error) => Err(format!("the update call failed: {error}")),
        };
        let live = self.live_version().await.map_err(UpdateError::Unknown)?;
        if live == weight_version {
            self.flush().await.map_err(UpdateError::Unknown)?;
            self.weight_version = live;
            return Ok(());
        }
        match said {
            Err(reason) if live == self.weight_version => Err(UpdateError::Refused(reason)),
            Err(reason) => Err(UpdateError::Unknown(format!("{reason}; its weight version is now {live:?}"))),
            Ok(()) => Err(UpdateError::Unknown(format!("it reports success, but its weight version is {live:?}"))),
        }
    }

    async fn live_version(&self) -> Result<String, String> {
        let info = self.get("/model_info").await?;
        info["weight_version"].as_str().map(str::to_owned).ok_or_else(|| "/model_info tells no weight_version".to_owned())
    }

    async fn flush(&self) -> Result<(), String> {
        let limit = CALL_LIMIT + Duration::from_secs(u64::from(FLUSH_SECONDS));
        let call = self.client.post(format!("{}/flush_cache?timeout={FLUSH_SECONDS}", self.url)).timeout(limit).send();
        match call.await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("/flush_cache answered {}: older keys and values may be in use", answer.status())),
            Err(error) => Err(format!("/flush_cache failed: {error}")),
        }
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status).map_err(|error| format!("{path} failed: {error}"))?;
        answer.json().await.map_err(|error| format!("{path} answered no JSON: {error}"))
    }
}

async fn success_of(answer: reqwest::Response) -> Result<(), String> {
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    if status.is_success() && body["success"] == true {
        return Ok(());
    }
    Err(body["message"].as_str().map_or_else(|| format!("the update answered {status}"), str::to_owned))
}

/// Another process may take the port before the server does; then the server ends at once and says so.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn launch(program: PathBuf, arguments: &LauncherArguments, directory: &Path, weight_version: &str, port: u16) -> Launch {
    let engine = &arguments.engine;
    let mut words: Vec<OsString> = vec!["embedded".into(), "--model-path".into(), directory.into()];
    let mut flag = |name: &str, value: String| words.extend([OsString::from(name), OsString::from(value)]);
    flag("--port", port.to_string());
    flag("--weight-version", weight_version.to_owned());
    flag("--dtype", engine.dtype.clone());
    flag("--max-running-requests", engine.max_running_requests.to_string());
    if let Some(threads) = engine.threads {
        flag("--threads", threads.to_string());
    }
    if let Some(seed) = engine.random_seed {
        flag("--random-seed", seed.to_string());
    }
    // OpenMP threads that spin while they wait take the cores from the proof worker beside them.
    let passive = [("OMP_WAIT_POLICY".into(), "passive".into())];
    let environment = environment::for_child(std::env::vars_os(), passive);
    Launch { name: "generation server".to_owned(), program, arguments: words, environment }
}
