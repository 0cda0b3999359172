//! What the installed server says about itself: its version and the flags that its parser takes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_engines::{Engine, Installed, Unsuited};
use grail_process::{Launch, SpawnError, Spawner, environment};

/// Importing a server's package takes long on a cold disk.
const PATIENCE: Duration = Duration::from_secs(180);
/// Most of its output that is read, in bytes.
const MOST: u64 = 4 << 20;

/// Why nothing was learnt.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The Python cannot be started.
    #[error("{0}; is generation.sglang_python (generation.vllm_python) right?")]
    Spawn(#[from] SpawnError),
    /// It did not end.
    #[error("{python} gave no answer about {engine} within {} s", PATIENCE.as_secs())]
    Silent {
        /// The interpreter.
        python: PathBuf,
        /// Which server.
        engine: &'static str,
    },
    /// What it says cannot be used.
    #[error(transparent)]
    Unsuited(#[from] Unsuited),
}

/// Asks the Python of the host.
///
/// # Errors
/// When it has no server that can be used.
pub async fn probe(spawner: &Spawner, python: &Path, engine: Engine) -> Result<Installed, ProbeError> {
    let silent = || ProbeError::Silent { python: python.to_owned(), engine: engine.name() };
    let version = ask(spawner, python, vec!["-c".into(), engine.version_program().into()]);
    let version = tokio::time::timeout(PATIENCE, version).await.map_err(|_| silent())??;
    let help = async {
        // Without a version there is nothing whose imports are worth waiting for.
        if version.trim().is_empty() { Ok(String::new()) } else { ask(spawner, python, words(engine, &["--help"])).await }
    };
    let help = tokio::time::timeout(PATIENCE, help).await.map_err(|_| silent())??;
    Ok(Installed::read(engine, &version, &help)?)
}

/// `-m MODULE` and what follows.
pub fn words(engine: Engine, rest: &[&str]) -> Vec<OsString> {
    ["-m", engine.module()].iter().chain(rest).map(OsString::from).collect()
}

/// Variables of a server's process: nothing secret of the parent's, and the interpreter's folder first on the path, because
/// servers call compilers and tools of their environment by name.
pub fn variables(python: &Path, engine: Engine, cpu: bool) -> Vec<(OsString, OsString)> {
    let mut extra: Vec<(OsString, OsString)> =
        grail_engines::environment(engine, cpu).into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    if let Some(folder) = python.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let mut path = OsString::from(folder);
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        extra.push(("PATH".into(), path));
    }
    environment::for_child(std::env::vars_os(), extra)
}

async fn ask(spawner: &Spawner, python: &Path, arguments: Vec<OsString>) -> Result<String, ProbeError> {
    let launch = Launch {
        name: "generation server's version".into(),
        program: python.to_owned(),
        arguments,
        // No GPU is needed for this, and none must be touched.
        environment: environment::for_child(std::env::vars_os(), [("CUDA_VISIBLE_DEVICES".into(), "".into())]),
    };
    let said = spawner.ask(launch, MOST).await?;
    // A traceback is what a missing package says; it helps in the message.
    Ok(if said.output.trim().is_empty() { said.errors } else { said.output })
}
