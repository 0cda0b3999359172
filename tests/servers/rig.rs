//! The real launcher over its real socket, with an installed server or the embedded engine behind it; and a client.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use grail_engines::{Engine, Reply, ReplyError};
use grail_link::message::{FromLauncher, ReloadCommand, Revision, ToLauncher};
use grail_link::{Connection, Listener};
use grail_process::{Child, Identity, Launch, Spawner, environment};
use grail_protocol::generation_params::GenerationParams;
use grail_tests::{programs, workspace};
use tokio::io::{AsyncBufReadExt, BufReader};

/// A server may take so long to start on a machine that does other things beside.
pub const START: Duration = Duration::from_secs(300);

/// A server that the tests drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    Sglang,
    Vllm,
}

impl Installed {
    pub const ALL: [Self; 2] = [Self::Sglang, Self::Vllm];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sglang => "sglang",
            Self::Vllm => "vllm",
        }
    }

    pub fn engine(self) -> Engine {
        match self {
            Self::Sglang => Engine::Sglang,
            Self::Vllm => Engine::Vllm,
        }
    }

    fn folder(self) -> PathBuf {
        workspace().join(format!(".venv-{}", self.name()))
    }

    /// Its Python, where scripts/servers.py has made one.
    pub fn python(self) -> Option<PathBuf> {
        self.folder().join("complete").is_file().then(|| self.folder().join("bin/python"))
    }

    /// Words of its command line that a CPU needs (generation-servers 4).
    pub fn extra(self) -> &'static [&'static str] {
        match self {
            Self::Sglang => &[
                "--attention-backend",
                "torch_native",
                "--sampling-backend",
                "pytorch",
                "--disable-overlap-schedule",
                "--grammar-backend",
                "none",
                "--max-total-tokens",
                "65536",
            ],
            Self::Vllm => &[],
        }
    }

    /// Its environment on a machine with few cores.
    pub fn variables(self) -> Vec<(&'static str, &'static str)> {
        let mut variables = vec![("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1")];
        if self == Self::Vllm {
            variables.extend([
                ("VLLM_CPU_KVCACHE_SPACE", "1"),
                ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
                ("VLLM_NO_USAGE_STATS", "1"),
            ]);
        }
        variables
    }

    /// The names of its processes without which it cannot live.
    pub fn vital(self) -> [&'static str; 2] {
        match self {
            Self::Sglang => ["sglang::schedul", "sglang::detoken"],
            Self::Vllm => ["VLLM::EngineCor", "VLLM::Worker"],
        }
    }
}

pub fn revision(window: u64) -> Revision {
    Revision { window, weights_hash: format!("{window:032x}") }
}

pub fn checkpoint(name: &str) -> PathBuf {
    workspace().join("demo").join(name)
}

/// A launcher and what it has said.
pub struct Rig {
    pub child: Child,
    pub link: Option<Connection<FromLauncher, ToLauncher>>,
    pub log: Arc<Mutex<String>>,
    pub engine: Engine,
    _spawner: Spawner,
    _folder: tempfile::TempDir,
}

impl Rig {
    /// A launcher of an installed server, computing in f32: there the engines differ too little to change a greedy choice.
    pub async fn installed(server: Installed, more: &[&str]) -> Self {
        Self::computing(server, "f32", more).await
    }

    /// A launcher of an installed server, computing in `dtype`.
    pub async fn computing(server: Installed, dtype: &str, more: &[&str]) -> Self {
        let python = server.python().expect("the scenario is played where the server is installed");
        let mut words: Vec<OsString> = ["--backend", server.name(), "--cpu", "--dtype", dtype, "--python"].map(Into::into).into();
        words.push(python.into());
        let common =
            ["--memory-share", "0.1", "--context-length", "2048", "--disable-cuda-graph", "--max-running-requests", "32"];
        words.extend(common.map(Into::into));
        words.extend(["--ready-timeout".into(), START.as_secs().to_string().into()]);
        for word in server.extra().iter().chain(more) {
            words.push(format!("--extra={word}").into());
        }
        let variables = server.variables().into_iter().map(|(name, value)| (name.into(), value.into()));
        Self::start(words, variables.collect(), server.engine()).await
    }

    /// The embedded engine.
    pub async fn embedded(dtype: &str) -> Self {
        let words = ["--backend", "embedded", "--threads", "1", "--dtype", dtype].map(Into::into).into();
        Self::start(words, Vec::new(), Engine::Sglang).await
    }

    async fn start(mut words: Vec<OsString>, variables: Vec<(OsString, OsString)>, engine: Engine) -> Self {
        let folder = tempfile::Builder::new().prefix("grail").tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("run").join("g.sock")).unwrap();
        words.extend(["--socket".into(), listener.path().into(), "--link-folder".into(), folder.path().into()]);
        // The help of an installation is the same for all of these.
        words.extend(["--probes".into(), Path::new(env!("CARGO_TARGET_TMPDIR")).join("probes").into()]);
        let launch = Launch {
            name: "gen-launcher".into(),
            program: programs().join("grail-gen-launcher"),
            arguments: words,
            environment: environment::for_child(std::env::vars_os(), variables),
        };
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(launch).await.unwrap();
        let output = child.take_output().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let into = log.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output.stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                into.lock().unwrap().extend([line.as_str(), "\n"]);
            }
        });
        let mut link: Connection<FromLauncher, ToLauncher> =
            tokio::time::timeout(Duration::from_secs(60), listener.accept(child.pid())).await.unwrap().unwrap();
        let hello = link.inbox.receive().await.unwrap().unwrap();
        assert!(matches!(hello, FromLauncher::Hello { .. }), "{hello:?}");
        Self { child, link: Some(link), log, engine, _spawner: spawner, _folder: folder }
    }

    pub fn text(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub async fn order(&mut self, window: u64, directory: &Path) {
        let command = ReloadCommand { revision: revision(window), directory: directory.to_owned(), manifest: Default::default() };
        self.link.as_mut().unwrap().outbox.send(&ToLauncher::Reload(command)).await.unwrap();
    }

    pub async fn reload(&mut self, window: u64, directory: &Path) -> FromLauncher {
        self.order(window, directory).await;
        // The launcher gives up first, and says why.
        let answer = tokio::time::timeout(2 * START, self.link.as_mut().unwrap().inbox.receive()).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer to a reload\n{}", self.text()));
        answer.unwrap().unwrap_or_else(|| panic!("the launcher closed its socket:\n{}", self.text()))
    }

    /// A reload that must succeed: the server's address and the seconds it took.
    pub async fn serving(&mut self, window: u64, directory: &Path) -> (String, f64) {
        let began = Instant::now();
        match self.reload(window, directory).await {
            FromLauncher::Serving { revision: held, url, context_length } => {
                assert_eq!((held, context_length), (revision(window), 2048));
                (url, began.elapsed().as_secs_f64())
            }
            other => panic!("want Serving, got {other:?}\n{}", self.text()),
        }
    }

    /// A reload that must be refused: the reason.
    pub async fn refused(&mut self, window: u64, directory: &Path) -> String {
        match self.reload(window, directory).await {
            FromLauncher::ReloadRefused { reason, .. } => reason,
            other => panic!("want a refusal of {directory:?}, got {other:?}\n{}", self.text()),
        }
    }

    /// Waits until the launcher has ended: exit code and seconds.
    pub async fn ended(&mut self, limit: Duration) -> (Option<i32>, f64) {
        let began = Instant::now();
        let status = tokio::time::timeout(limit, self.child.exited()).await;
        let status = status.unwrap_or_else(|_| panic!("the launcher has not ended within {limit:?}\n{}", self.text()));
        (status.code(), began.elapsed().as_secs_f64())
    }
}

/// Greedy completions of prompts of several lengths, which the engines must agree on.
pub async fn greedy(engine: Engine, url: &str) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for prompt in prompts() {
        all.push(complete(engine, url, &prompt, 48).await.unwrap().ids);
    }
    all
}

/// What the embedded engine completes with these checkpoints.
pub async fn embedded_greedy(checkpoints: &[&str]) -> Vec<Vec<Vec<u32>>> {
    let mut rig = Rig::embedded("f32").await;
    let mut all = Vec::new();
    for (window, name) in (0..).zip(checkpoints) {
        let (url, _) = rig.serving(window, &checkpoint(name)).await;
        all.push(greedy(Engine::Sglang, &url).await);
    }
    assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "checkpoints that say the same would prove nothing");
    all
}

/// Ids of the demo's vocabulary, of problems that begin alike.
pub fn prompts() -> Vec<Vec<u32>> {
    [3usize, 17, 40, 90].iter().map(|length| (0..*length as u32).map(|place| 5 + (place * 37 + 11) % 600).collect()).collect()
}

/// One greedy completion, as the supervisor's client asks for it.
pub async fn complete(engine: Engine, url: &str, prompt: &[u32], tokens: u64) -> Result<Reply, ReplyError> {
    let params = GenerationParams { max_new_tokens: tokens, temperature: 0.0, top_p: 1.0, top_k: None, repetition_penalty: 1.0 };
    let body = engine.request(prompt, &params);
    let request = reqwest::Client::new().post(format!("{url}{}", engine.path())).header("content-type", "application/json");
    let answer = request.body(body).send().await.map_err(|error| ReplyError::Form(error.to_string()))?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(|error| ReplyError::Form(error.to_string()))?;
    match engine.reply(&body, tokens) {
        Ok(_) if !status.is_success() => Err(ReplyError::Form(format!("status {status}"))),
        read => read,
    }
}

/// Processes below `root` whose name begins with `name`.
pub fn named(root: i32, name: &str) -> Vec<Identity> {
    let has_name = |process: &Identity| {
        std::fs::read_to_string(format!("/proc/{}/comm", process.pid)).is_ok_and(|comm| comm.trim().starts_with(name))
    };
    grail_tests::tree(root).into_iter().filter(has_name).collect()
}
