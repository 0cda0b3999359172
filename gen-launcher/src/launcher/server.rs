//! One running generation server: its process, and what it holds.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use grail_engines::{
    Calls, CommandError, Concealed, Engine, Installed, PORTS, PREPARATION, ServerOptions, UpdateError, VLLM_NAME, keyed,
};
use grail_model::{LoadError, ModelConfig};
use grail_process::{Child, Launch, SpawnError, Spawner, Watched, clock, environment, ports, proc};
use grail_secrets::{Secret, Words};
use tokio::task::JoinSet;

use super::installed::{ProbeError, probe, variables, words};
use super::output::{LastLines, drain};
use super::starting::{Stillness, processes};
use crate::arguments::{Backend, LauncherArguments};

/// Pause between two looks whether the server answers.
const READY_LOOK: Duration = Duration::from_millis(200);
/// Time a server gets to end when it did not become ready.
const GRACE: Duration = Duration::from_secs(2);
/// Wait for the pipes of a server that is gone to run dry. Something else may hold them open.
const DRY_LIMIT: Duration = Duration::from_millis(300);

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no free port, or this program's own path is unknown.
    #[error("cannot prepare the generation server: {0}")]
    Prepare(#[from] std::io::Error),
    /// The program cannot be executed.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The server is not installed, or too old.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// What is installed cannot do what is asked for.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The HTTP client cannot be built.
    #[error("cannot build the HTTP client: {0}")]
    Client(#[source] reqwest::Error),
    /// The disk or the Python was too slow.
    #[error(
        "the generation server could not be prepared within {seconds} s (the weights are judged, its --help is asked); is the disk slow?"
    )]
    Unprepared {
        /// The limit.
        seconds: u64,
    },
    /// The directory would make a server die, or serve values that nobody trained.
    #[error("the checkpoint cannot be served: {0}")]
    Checkpoint(#[from] LoadError),
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
    /// The server neither prints nor computes nor reads.
    #[error(
        "the generation server makes no progress: for {seconds} s it printed nothing, computed nothing and read nothing; its processes: {processes}; its last lines: {lines}"
    )]
    Stuck {
        /// How long nothing moved.
        seconds: u64,
        /// Its processes with their states.
        processes: String,
        /// The last lines it printed.
        lines: String,
    },
    /// The server answers, but not with what it was started with.
    #[error("the generation server answers, but {0}")]
    Wrong(String),
}

/// A server that answers.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Its own processes without which it cannot live. A server whose scheduler died may listen on for a minute.
    vital: Vec<Watched>,
    readers: JoinSet<()>,
    lines: LastLines,
    calls: Calls,
    backend: Backend,
    /// What it was started with: no other network fits into it.
    network: ModelConfig,
    context_length: u32,
    weight_version: String,
    /// The link that vLLM was started with.
    link: Option<PathBuf>,
}

impl Server {
    /// Starts a server on a free loopback port and waits until it can produce. `installed` is what was learnt about SGLang or
    /// vLLM; it is learnt here the first time.
    ///
    /// # Errors
    /// When it cannot be started, ends, does not answer in time, or holds other weights than asked for.
    pub async fn start(
        spawner: &Spawner,
        arguments: &LauncherArguments,
        installed: &mut Option<Installed>,
        directory: &Path,
        weight_version: &str,
    ) -> Result<Self, StartError> {
        let preparing = Prepared::make(spawner, arguments, installed, directory, weight_version);
        let prepared = tokio::time::timeout(PREPARATION, preparing).await;
        let Prepared { network, launch, calls, link, file } =
            prepared.map_err(|_| StartError::Unprepared { seconds: PREPARATION.as_secs() })??;
        let mut child = spawner.spawn(launch).await?;
        if let Some(error) = child.take_unrecorded() {
            tracing::warn!(%error, "The server could not be written down; a later supervisor would not find it.");
        }
        let (mut readers, lines) = (JoinSet::new(), LastLines::default());
        if let Some(output) = child.take_output() {
            readers.spawn(drain(output.stdout, lines.clone()));
            readers.spawn(drain(output.stderr, lines.clone()));
        }
        let (backend, weight_version) = (arguments.backend, weight_version.to_owned());
        let vital = Vec::new();
        let mut server = Self { child, vital, readers, lines, calls, backend, network, context_length: 0, weight_version, link };
        server.wait_until_ready(arguments.ready_timeout).await?;
        server.confirm().await?;
        drop(file);
        server.vital = server.vital_processes();
        Ok(server)
    }

    /// Looked for when it is ready: by then its processes have their titles.
    fn vital_processes(&self) -> Vec<Watched> {
        if self.backend == Backend::Embedded {
            return Vec::new();
        }
        let engine = self.backend.dialect();
        let tree = proc::tree(self.child.pid()).unwrap_or_default();
        let vital: Vec<Watched> =
            tree.into_iter().filter_map(|pid| Watched::of(pid).ok()).filter(|process| engine.is_vital(&process.name)).collect();
        match vital.as_slice() {
            [] => {
                tracing::warn!("None of the server's own processes is known; the death of one is noticed only by what follows.")
            }
            found => {
                let processes = found.iter().map(|process| format!("{} {}", process.name, process.pid)).collect::<Vec<_>>();
                tracing::info!(processes = processes.join(", "), "The server's own processes are watched.");
            }
        }
        vital
    }

    async fn wait_until_ready(&mut self, limit: Duration) -> Result<(), StartError> {
        let deadline = clock::monotonic() + limit;
        let mut stillness = Stillness::begin(limit, clock::monotonic());
        loop {
            let healthy = self.calls.healthy();
            tokio::select! {
                status = self.child.exited() => {
                    return Err(StartError::Ended { status, lines: self.last_lines().await });
                }
                answer = healthy => if answer.is_ok() {
                    return Ok(());
                }
            }
            if let Some(still) = stillness.look(self.child.pid(), self.lines.count(), clock::monotonic()) {
                let processes = processes(self.child.pid());
                self.child.kill().await;
                return Err(StartError::Stuck { seconds: still.as_secs(), processes, lines: self.last_lines().await });
            }
            if clock::monotonic() >= deadline {
                self.child.stop(GRACE).await;
                return Err(StartError::NotReady { seconds: limit.as_secs(), lines: self.last_lines().await });
            }
            tokio::time::sleep(READY_LOOK).await;
        }
    }

    async fn confirm(&mut self) -> Result<(), StartError> {
        let version = self.calls.weight_version().await.map_err(StartError::Wrong)?;
        if let Some(version) = version.filter(|version| *version != self.weight_version) {
            return Err(StartError::Wrong(format!("its weight version is {version:?}, want {:?}", self.weight_version)));
        }
        self.context_length = self.calls.context_length().await.map_err(StartError::Wrong)?;
        if self.backend == Backend::Vllm {
            self.calls.warm().await;
        }
        Ok(())
    }

    /// Where it answers.
    pub fn url(&self) -> &str {
        self.calls.url().reveal()
    }

    /// Longest prompt plus completion.
    pub fn context_length(&self) -> u32 {
        self.context_length
    }

    /// Waits until the server, or a process that it cannot live without, has ended; and says how. Whatever its exit code:
    /// vLLM ends with 0 when its engine died, SGLang by a signal that it sends itself. Cancel-safe.
    pub async fn ended(&mut self) -> String {
        end_of(&mut self.child, &self.vital).await
    }

    /// The last lines of a server that is gone.
    pub async fn last_lines(&mut self) -> String {
        let dry = async { while self.readers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRY_LIMIT, dry).await;
        self.lines.text()
    }

    /// Ends the server with everything it started.
    pub async fn stop(&mut self, grace: Duration) {
        self.child.stop(grace).await;
    }

    /// Ends what is left of a server that cannot be believed any more.
    pub async fn kill(&mut self) {
        self.child.kill().await;
    }

    /// Gives the server other weights and makes sure that it answers with them and with no older cache.
    ///
    /// # Errors
    /// [`UpdateError::Refused`] where the old weights serve on, [`UpdateError::Unknown`] where the server must be replaced;
    /// [`NotUpdated::OtherNetwork`] where only a server of its own could serve the directory.
    pub async fn update(&mut self, directory: &Path, weight_version: &str) -> Result<(), NotUpdated> {
        // SGLang dies of what is damaged, vLLM of the next request, and both keep old values in place of missing ones.
        let judged = judge(directory).await.map_err(|error| UpdateError::Refused(error.to_string()))?;
        let network = judged.map_err(|error| UpdateError::Refused(error.to_string()))?;
        if !network.same_network(&self.network) {
            return Err(NotUpdated::OtherNetwork);
        }
        if let Some(link) = &self.link {
            point(link, directory)
                .map_err(|error| UpdateError::Refused(format!("the link {link:?} cannot be moved: {error}")))?;
        }
        let weights = self.link.clone().unwrap_or_else(|| directory.to_owned());
        let mut stand_still = StandStill::begin();
        tokio::select! {
            biased;
            why = end_of(&mut self.child, &self.vital) => return Err(UpdateError::Unknown(why).into()),
            updated = self.calls.update(&weights, &self.weight_version, weight_version, |step| stand_still.ended(step)) => updated?,
        }
        stand_still.tell();
        self.weight_version = weight_version.to_owned();
        Ok(())
    }
}

/// Everything that a server is started with.
struct Prepared {
    network: ModelConfig,
    launch: Launch,
    calls: Calls,
    link: Option<PathBuf>,
    /// Kept until the server answers: it has read it by then.
    file: Option<SecretFile>,
}

impl Prepared {
    async fn make(
        spawner: &Spawner,
        arguments: &LauncherArguments,
        installed: &mut Option<Installed>,
        directory: &Path,
        weight_version: &str,
    ) -> Result<Self, StartError> {
        let network = judge(directory).await??;
        let port = free_port()?;
        let engine = arguments.backend.dialect();
        let link = (engine == Engine::Vllm).then(|| link_path(arguments, directory));
        if let Some(link) = &link {
            point(link, directory)?;
        }
        let given = arguments.installed.credentials.clone().unwrap_or_default();
        let (credentials, _) = given.without_credentials();
        let mut file = None;
        let launch = match arguments.backend {
            Backend::Embedded => embedded(std::env::current_exe()?, arguments, directory, weight_version, port),
            Backend::Sglang | Backend::Vllm => {
                let python = &arguments.installed.python;
                let known = match installed.take() {
                    Some(known) => known,
                    None => probe(spawner, python, engine, arguments.probes.as_deref()).await?,
                };
                let options = options(arguments, link.as_deref().unwrap_or(directory), weight_version, port);
                let mut command = known.command(&options)?;
                let Concealed { open, variables: secret, file: text } = known.conceal(&credentials)?;
                command.extend(open.into_iter().flat_map(|(flag, value)| [flag, value.reveal().to_owned()]));
                if let Some(text) = text {
                    let written = SecretFile::write(arguments.socket.with_extension("yaml"), &text)?;
                    command.extend(["--config".to_owned(), written.0.display().to_string()]);
                    file = Some(written);
                }
                tracing::info!(version = %known.version(), command = %Words::new(&command), "A generation server is started.");
                *installed = Some(known);
                let command: Vec<&str> = command.iter().map(String::as_str).collect();
                let mut environment = variables(python, engine, arguments.installed.cpu);
                environment.extend(secret.into_iter().map(|(name, value)| (name.into(), value.reveal().into())));
                Launch {
                    name: "generation server".to_owned(),
                    program: python.clone(),
                    arguments: words(engine, &command),
                    environment,
                }
            }
        };
        let client = keyed(reqwest::Client::builder().no_proxy(), &credentials).map_err(StartError::Client)?;
        let calls = Calls::to(client, engine, format!("http://127.0.0.1:{port}").into()).authorised(&credentials);
        Ok(Self { network, launch, calls, link, file })
    }
}

/// A file that only this user reads, and that goes with this.
struct SecretFile(PathBuf);

impl SecretFile {
    /// What a launcher that was killed has left under the same name goes.
    fn write(path: PathBuf, text: &Secret) -> std::io::Result<Self> {
        let _ = std::fs::remove_file(&path);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let written = Self(path);
        file.write_all(text.reveal().as_bytes())?;
        Ok(written)
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        // Best effort: the folder is for this user alone too.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Why the server does not hold a checkpoint.
#[derive(Debug)]
pub enum NotUpdated {
    /// The directory holds another network: a server of its own must serve it. Nothing was changed.
    OtherNetwork,
    /// The update failed.
    Failed(UpdateError),
}

impl From<UpdateError> for NotUpdated {
    fn from(error: UpdateError) -> Self {
        Self::Failed(error)
    }
}

/// Where the time goes in which a server produces nothing.
struct StandStill {
    since: Instant,
    steps: Vec<String>,
}

impl StandStill {
    fn begin() -> Self {
        Self { since: clock::monotonic(), steps: Vec::new() }
    }

    /// A step is over, and the next one begins.
    fn ended(&mut self, step: &str) {
        self.steps.push(format!("{step} {} ms", self.since.elapsed().as_millis()));
        self.since = clock::monotonic();
    }

    fn tell(&self) {
        tracing::info!(steps = self.steps.join(", "), "The server stood still for an update.");
    }
}

async fn end_of(child: &mut Child, vital: &[Watched]) -> String {
    tokio::select! {
        status = child.exited() => format!("it ended by itself ({status})"),
        process = first_ended(vital) => format!("its process {} ({}) ended", process.name, process.pid),
    }
}

/// The first of them that ends.
async fn first_ended(processes: &[Watched]) -> &Watched {
    let mut ends: FuturesUnordered<_> = processes
        .iter()
        .map(|process| async move {
            process.ended().await;
            process
        })
        .collect();
    match ends.next().await {
        Some(process) => process,
        None => std::future::pending().await,
    }
}

/// Judges a directory: files, headers, names and shapes of tensors, against its own configuration.
async fn judge(directory: &Path) -> std::io::Result<Result<ModelConfig, LoadError>> {
    let directory = directory.to_owned();
    let judging = tokio::task::spawn_blocking(move || grail_model::judge(&directory).map(|(config, _)| config));
    judging.await.map_err(std::io::Error::other)
}

/// Servers that start at the same time begin to look at different ports. Should another process take the port all the same, the
/// server ends at once and says so.
fn free_port() -> std::io::Result<u16> {
    let start = u16::try_from(std::process::id() % u32::from(PORTS.end - PORTS.start)).unwrap_or_default();
    ports::free(PORTS, PORTS.start + start)
}

/// `vllm_active`, in the folder of the setting or beside the checkpoint (grail-miner 5).
fn link_path(arguments: &LauncherArguments, directory: &Path) -> PathBuf {
    let beside = directory.parent().unwrap_or(Path::new("."));
    arguments.installed.link_folder.as_deref().unwrap_or(beside).join(VLLM_NAME)
}

/// Points the link at `directory`, at once: a link with another name takes its place.
fn point(link: &Path, directory: &Path) -> std::io::Result<()> {
    let beside = link.with_extension(format!("{}.new", std::process::id()));
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(std::path::absolute(directory)?, &beside)?;
    std::fs::rename(&beside, link)
}

fn options(arguments: &LauncherArguments, model: &Path, weight_version: &str, port: u16) -> ServerOptions {
    let installed = &arguments.installed;
    ServerOptions {
        model: model.display().to_string(),
        port,
        cpu: installed.cpu,
        dtype: arguments.engine.dtype.clone(),
        tensor_parallel: installed.tensor_parallel,
        memory_share: installed.memory_share,
        context_length: installed.context_length,
        max_running: arguments.engine.max_running_requests,
        disable_cuda_graph: installed.disable_cuda_graph,
        tokenizer: installed.tokenizer.clone(),
        weight_version: weight_version.to_owned(),
        extra: installed.extra.clone(),
    }
}

fn embedded(program: PathBuf, arguments: &LauncherArguments, directory: &Path, weight_version: &str, port: u16) -> Launch {
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
