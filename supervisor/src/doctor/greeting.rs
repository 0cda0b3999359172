//! A proof worker that is started only to hear what it is.

use std::ffi::OsString;

use grail_link::Listener;
use grail_link::message::{FromWorker, ToWorker, WorkerHello};
use grail_process::{Launch, Spawner, environment};
use tokio::io::AsyncReadExt;

use crate::children::{ChildPrograms, Programs};
use crate::plan::ProofSlot;
use crate::settings::Proof;

/// Bytes of its log that are kept for what went wrong.
const LOG_BYTES: u64 = 64 << 10;

/// Starts the worker of `slot`, waits for its hello, and ends it; without a time limit. Cancelled, it ends the worker.
///
/// # Errors
/// Why it does not start, with its own last line.
pub(super) async fn hello_of_worker(programs: &Programs, slot: &ProofSlot, proof: &Proof) -> Result<WorkerHello, String> {
    let folder = tempfile::Builder::new().prefix("grail-doctor-").tempdir().map_err(|error| error.to_string())?;
    let spawner = Spawner::start().map_err(|error| error.to_string())?;
    let listener = Listener::bind(&folder.path().join("run").join("proof.sock")).map_err(|error| error.to_string())?;
    let mut arguments: Vec<OsString> = vec!["--socket".into(), listener.path().into()];
    arguments.extend(["--slot", &slot.slot.to_string(), "--dtype", &proof.dtype].map(Into::into));
    arguments.extend(["--threads", &proof.threads.to_string()].map(Into::into));
    // An empty list hides every GPU.
    let gpus = [
        ("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()),
        ("CUDA_VISIBLE_DEVICES".into(), slot.gpu.clone().unwrap_or_default().into()),
    ];
    let launch = Launch {
        name: "proof-worker".into(),
        program: programs.path(ChildPrograms::ProofWorker),
        arguments,
        environment: environment::for_child(std::env::vars_os(), gpus),
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
    let greeted = tokio::select! {
        greeted = greeting(&listener, child.pid()) => greeted,
        status = child.exited() => Err(format!("it ended at once ({status})")),
    };
    child.kill().await;
    let told = log.await.unwrap_or_default();
    greeted.map_err(|why| match told.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => format!("{why}: {}", line.trim()),
        None => why,
    })
}

async fn greeting(listener: &Listener, pid: u32) -> Result<WorkerHello, String> {
    let mut link = listener.accept::<FromWorker, ToWorker>(pid).await.map_err(|error| error.to_string())?.inbox;
    match link.receive().await.map_err(|error| error.to_string())? {
        Some(FromWorker::Hello(hello)) => Ok(hello),
        Some(_) => Err("its first message is no hello: it is of another version".into()),
        None => Err("it closed the connection without a hello".into()),
    }
}
