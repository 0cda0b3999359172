//! A proof worker that is started as a run starts it, to hear what it is and to see it prove something small.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use grail_faults::Fault;
use grail_link::message::{FromWorker, ToWorker, WorkerHello};
use grail_link::{Connection, Listener};
use grail_process::{Child, Launch, Spawner, environment};
use grail_settings::Proof;
use grail_workers::plan::ProofSlot;
use grail_workers::{ChildPrograms, Programs, started_with};
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use super::trial;

/// Bytes of its log that are kept for what went wrong.
const LOG_BYTES: u64 = 64 << 10;

/// A worker that closes its connection is about to end; its exit code tells more.
const ENDING: Duration = Duration::from_millis(500);

/// Why a worker is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It does not start.
    Start(String),
    /// The device that it was given is at fault; its own words, which say what to do.
    Device(String),
    /// It starts, and cannot compute as it is told to.
    Compute(Box<WorkerHello>, String),
}

/// Starts the worker of `slot` with its real arguments, waits for its hello, has a small sequence proved, and ends it; without a
/// time limit. Cancelled, it ends the worker.
///
/// # Errors
/// Why it does not start or compute, with its own last line.
pub(super) async fn trial_of_worker(programs: &Programs, slot: &ProofSlot, proof: &Proof) -> Result<WorkerHello, Unfit> {
    let begun = begin(programs, slot, proof).await.map_err(Unfit::Start)?;
    let Begun { folder, listener, mut child, log, .. } = begun;
    let mut hello = None;
    let mut tried = tokio::select! {
        tried = attempt(&listener, child.pid(), folder.path(), &mut hello) => tried,
        _ = child.exited() => Err("it ended".into()),
    };
    let mut fault = None;
    if let Err(why) = &mut tried
        && let Ok(status) = tokio::time::timeout(ENDING, child.exited()).await
    {
        fault = status.code().and_then(Fault::of_exit_code);
        *why = format!("it ended ({status})");
    }
    child.kill().await;
    let told = log.await.unwrap_or_default();
    let says_why = |line: &&str| !line.trim().is_empty() && !line.starts_with("note: ");
    let with_last_line = |why: String| match told.lines().rfind(says_why) {
        Some(line) => format!("{why}: {}", line.trim()),
        None => why,
    };
    match (hello, tried) {
        (_, Err(why)) if fault.is_some() => Err(Unfit::Device(with_last_line(why))),
        (Some(hello), Ok(())) => Ok(hello),
        (Some(hello), Err(why)) => Err(Unfit::Compute(Box::new(hello), with_last_line(why))),
        (None, tried) => Err(Unfit::Start(with_last_line(tried.err().unwrap_or_default()))),
    }
}

struct Begun {
    folder: tempfile::TempDir,
    listener: Listener,
    child: Child,
    log: JoinHandle<String>,
    /// Children live for as long as their spawner.
    _spawner: Spawner,
}

async fn begin(programs: &Programs, slot: &ProofSlot, proof: &Proof) -> Result<Begun, String> {
    let folder = tempfile::Builder::new().prefix("grail-doctor-").tempdir().map_err(|error| error.to_string())?;
    let spawner = Spawner::start().map_err(|error| error.to_string())?;
    let listener = Listener::bind(&folder.path().join("run").join("proof.sock")).map_err(|error| error.to_string())?;
    trial::write(folder.path()).map_err(|error| error.to_string())?;
    let mut arguments: Vec<OsString> = vec!["--socket".into(), listener.path().into()];
    let (more, variables) = started_with(slot, &proof.dtype, proof.threads, proof.numerics);
    arguments.extend(more);
    let launch = Launch {
        name: "proof-worker".into(),
        program: programs.path(ChildPrograms::ProofWorker),
        arguments,
        environment: environment::for_child(std::env::vars_os(), variables),
    };
    let mut child = spawner.spawn(launch).await.map_err(|error| error.to_string())?;
    let output = child.take_output();
    let log = tokio::spawn(async move {
        let mut bytes = Vec::new();
        if let Some(output) = output {
            let _ = output.stderr.take(LOG_BYTES).read_to_end(&mut bytes).await;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    Ok(Begun { folder, listener, child, log, _spawner: spawner })
}

/// Hello, the small model, a proof. What is known of the worker is kept whatever comes of it.
async fn attempt(listener: &Listener, pid: u32, folder: &Path, hello: &mut Option<WorkerHello>) -> Result<(), String> {
    let Connection { mut inbox, mut outbox } =
        listener.accept::<FromWorker, ToWorker>(pid).await.map_err(|error| error.to_string())?;
    let mut receive = async || match inbox.receive().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err("it closed the connection".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    match receive().await? {
        FromWorker::Hello(found) => *hello = Some(found),
        _ => return Err("its first message is no hello: it is of another version".into()),
    }
    outbox.send(&ToWorker::Reload(trial::load(folder))).await.map_err(|error| error.to_string())?;
    match receive().await? {
        FromWorker::Reloaded(_) => {}
        FromWorker::ReloadRefused { reason, .. } => return Err(format!("it cannot load a small model: {reason}")),
        _ => return Err("it answers a load with something else".into()),
    }
    outbox.send(&ToWorker::Prove(trial::job())).await.map_err(|error| error.to_string())?;
    let mut proved = 0;
    while !trial::judge(&receive().await?, &mut proved)? {}
    Ok(())
}
