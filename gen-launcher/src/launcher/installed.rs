//! What the installed server says about itself: its version and the flags that its parser takes.
//!
//! Its `--help` goes through all its imports, which takes 6 to 18 s of every start. So the text is remembered on disk, under what
//! identifies the installation: a program that imports nothing tells that in a fraction of a second. Whatever of the installation
//! changes, the server itself is asked again.
//!
//! ```text
//!  <folder>/SGLang.help     first line: the identity; then the help as it was printed
//! ```

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_engines::{Engine, Installed, Unsuited};
use grail_process::{Launch, SpawnError, Spawner, environment};

/// Importing a server's package takes long on a cold disk.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longest wait for the disk that shall remember what it said.
const DISK_PATIENCE: Duration = Duration::from_secs(5);
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

/// Asks the Python of the host, or the folder that remembers what it said.
///
/// # Errors
/// When it has no server that can be used.
pub async fn probe(spawner: &Spawner, python: &Path, engine: Engine, memory: Option<&Path>) -> Result<Installed, ProbeError> {
    let silent = || ProbeError::Silent { python: python.to_owned(), engine: engine.name() };
    let said = ask(spawner, python, vec!["-c".into(), engine.identity_program().into()]);
    let said = tokio::time::timeout(PATIENCE, said).await.map_err(|_| silent())??;
    let (version, identity) = said.trim().split_once("\nidentity ").unwrap_or((&said, ""));
    if let Some(help) = memory.and_then(|folder| remembered(folder, engine, identity)) {
        return judged(engine, version, &help);
    }
    let help = async {
        // Without a version there is nothing whose imports are worth waiting for.
        if version.trim().is_empty() { Ok(String::new()) } else { ask(spawner, python, words(engine, &["--help"])).await }
    };
    let help = tokio::time::timeout(PATIENCE, help).await.map_err(|_| silent())??;
    let installed = judged(engine, version, &help)?;
    if let Some(folder) = memory.filter(|_| !identity.is_empty())
        && let Err(error) = remember_aside(spawner, folder, engine, identity, &help).await
    {
        tracing::warn!(%error, folder = %folder.display(), "What the server's help says cannot be remembered; it is asked again at the next start.");
    }
    Ok(installed)
}

fn judged(engine: Engine, version: &str, help: &str) -> Result<Installed, ProbeError> {
    let installed = Installed::read(engine, version, help)?;
    if let Some(warning) = installed.warning() {
        tracing::warn!(warning, "The installed server is no release.");
    }
    Ok(installed)
}

fn file(folder: &Path, engine: Engine) -> PathBuf {
    folder.join(format!("{}.help", engine.name()))
}

/// The help that was printed by exactly this installation.
fn remembered(folder: &Path, engine: Engine, identity: &str) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(file(folder, engine)).ok()?.take(MOST).read_to_string(&mut text).ok()?;
    let (of, help) = text.split_once('\n')?;
    (!identity.is_empty() && of == identity).then(|| help.to_owned())
}

/// [`remember`], by a thread that a disk may hold up.
async fn remember_aside(spawner: &Spawner, folder: &Path, engine: Engine, identity: &str, help: &str) -> std::io::Result<()> {
    let (folder, identity, help) = (folder.to_owned(), identity.to_owned(), help.to_owned());
    spawner.aside().ask(DISK_PATIENCE, move || remember(&folder, engine, &identity, &help)).await?
}

/// Other launchers of the host may do the same at the same time: a whole file takes the place of another.
fn remember(folder: &Path, engine: Engine, identity: &str, help: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let (path, beside) = (file(folder, engine), folder.join(format!("{}.{}.new", engine.name(), std::process::id())));
    let mut new = std::fs::File::create(&beside)?;
    new.write_all(format!("{identity}\n{help}").as_bytes())?;
    new.sync_all()?;
    std::fs::rename(beside, path)
}

/// Forgets what was remembered.
pub fn forget(folder: &Path, engine: Engine) {
    // What is not there need not be removed, and what cannot be is judged by its identity.
    let _ = std::fs::remove_file(file(folder, engine));
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
