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
/// Telling what is installed imports nothing of it.
const IDENTITY_PATIENCE: Duration = Duration::from_secs(60);
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
    #[error("{python} gave no answer about {engine} within {seconds} s")]
    Silent {
        /// The interpreter.
        python: PathBuf,
        /// Which server.
        engine: &'static str,
        /// The limit.
        seconds: u64,
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
    let asking = |arguments, gpus, patience| ask(spawner, python, engine, arguments, gpus, patience);
    let said = asking(vec!["-c".into(), engine.identity_program().into()], Gpus::Hidden, IDENTITY_PATIENCE).await?;
    let (version, identity) = said.trim().split_once("\nidentity ").unwrap_or((&said, ""));
    if let Some(help) = memory.and_then(|folder| remembered(folder, engine, identity)) {
        return judged(engine, version, &help);
    }
    // Without a version there is nothing whose imports are worth waiting for.
    if version.trim().is_empty() {
        return judged(engine, version, "");
    }
    let mut help = asking(words(engine, &["--help"]), Gpus::Hidden, PATIENCE).await?;
    let mut installed = judged(engine, version, &help);
    // A release that looks for a GPU while it is imported says nothing without one.
    if matches!(installed, Err(ProbeError::Unsuited(Unsuited::NoHelp { .. }))) && may_see_gpus() {
        tracing::info!("The server does not tell its flags with every GPU hidden; it is asked again with its own.");
        help = asking(words(engine, &["--help"]), Gpus::Shown, PATIENCE).await?;
        installed = judged(engine, version, &help);
    }
    let installed = installed?;
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

/// Whether what is asked may touch a GPU.
#[derive(Debug, Clone, Copy)]
enum Gpus {
    /// None must be touched: what is asked needs none.
    Hidden,
    /// Those that the server will have.
    Shown,
}

/// Whether this launcher's server has GPUs.
fn may_see_gpus() -> bool {
    std::env::var_os("CUDA_VISIBLE_DEVICES").is_none_or(|list| !list.is_empty())
}

async fn ask(
    spawner: &Spawner,
    python: &Path,
    engine: Engine,
    arguments: Vec<OsString>,
    gpus: Gpus,
    patience: Duration,
) -> Result<String, ProbeError> {
    let hidden = matches!(gpus, Gpus::Hidden).then(|| ("CUDA_VISIBLE_DEVICES".into(), "".into()));
    let launch = Launch {
        name: "generation server's version".into(),
        program: python.to_owned(),
        arguments,
        environment: environment::for_child(std::env::vars_os(), hidden),
    };
    let seconds = patience.as_secs();
    let silent = |_| ProbeError::Silent { python: python.to_owned(), engine: engine.name(), seconds };
    let said = tokio::time::timeout(patience, spawner.ask(launch, MOST)).await.map_err(silent)??;
    // A traceback is what a missing package says; it helps in the message.
    Ok(if said.output.trim().is_empty() { said.errors } else { said.output })
}
