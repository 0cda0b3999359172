//! Keeps one child alive, life after life. Every decision is the life cycle's; this carries them out.
//!
//! Where children depend on each other they die together: a launcher that dies takes its server with it (parent-death signal,
//! and the supervisor ends what is left as subreaper), a launcher whose server dies ends itself. So one life of the launcher is
//! one life of the server, and there is nothing to start again out of order.

use std::time::{Duration, Instant};

use grail_link::Connection;
use grail_process::{Child, clock, proc};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::death::{Cause, Death, Exit, Facts};
use super::event::ChildEvent;
use super::life::Life;
use super::life_cycle::{Event, Overdue};
use super::output::Drains;
use super::session::{self, Opening};
use crate::gpu::{Clearance, Gpus, Verdict};

/// Pause between two looks whether a GPU is free.
const CLEARANCE_LOOK: Duration = Duration::from_millis(250);
/// A process that closes its socket is about to end; its own exit tells more than our signal would.
const CLOSING_LIMIT: Duration = Duration::from_millis(500);
/// Share of the grace in which a child may end because its socket does, before it gets a signal.
const SOCKET_SHARE: f64 = 0.6;
/// Processes of a hung child whose threads are noted.
const MAX_NOTED: usize = 8;

/// A child that is kept.
pub trait Kept: Send {
    /// What it says.
    type In: DeserializeOwned + Send + 'static;
    /// What it is told.
    type Out: Send + 'static;
    /// How it is started.
    fn opening(&self) -> Opening<'_>;
    /// The GPUs that it alone uses: a start waits until nobody holds their memory, and their XIDs class its deaths.
    fn gpus(&self) -> &[String] {
        &[]
    }
    /// Time it gets to end by itself.
    fn grace(&self) -> Duration;
    /// Judges its first message.
    ///
    /// # Errors
    /// When the child cannot be used.
    fn greet(&mut self, hello: Self::In) -> Result<(), Cause>;
    /// Gives it work until it fails.
    fn serve(&mut self, link: Connection<Self::In, Self::Out>, life: &Life) -> impl Future<Output = Cause> + Send;
    /// It is about to be ended, or has ended: what it had to do is for others.
    fn failing(&mut self, _cause: &Cause, _life: &Life) {}
    /// It is gone; whatever it held is held no more.
    fn vacated(&mut self, _life: &Life) {}
}

/// Keeps a child until it is stopped or quarantined.
pub(super) async fn keep<K: Kept>(mut child: K, life: &Life, gpus: &Gpus, stop: CancellationToken) {
    life.tell(Event::Start);
    let mut vacated = None;
    loop {
        tokio::select! {
            () = life.due() => {}
            () = stop.cancelled() => {
                life.tell(Event::Stop);
                return;
            }
        }
        let death = live(&mut child, life, gpus, vacated, &stop).await;
        vacated = Some(clock::monotonic());
        child.vacated(life);
        if !life.gone(death, child.gpus()) {
            return;
        }
    }
}

/// One life, from the wait for its GPU, which the one before left at `vacated`, to its record.
async fn live<K: Kept>(child: &mut K, life: &Life, gpus: &Gpus, vacated: Option<Instant>, stop: &CancellationToken) -> Death {
    let began = clock::monotonic();
    let memory_kills = proc::out_of_memory_kills();
    let started = tokio::select! {
        started = start(child, life, gpus, vacated) => started,
        () = stop.cancelled() => Err(Cause::Stopped),
        why = life.condemned() => Err(Cause::Condemned(why)),
    };
    let (cause, exit, pid, threads, lines) = match started {
        Err(cause) => {
            life.tell(if cause == Cause::Stopped { Event::Stop } else { Event::Failing });
            child.failing(&cause, life);
            (cause, Exit::None, None, Vec::new(), Vec::new())
        }
        Ok(Started { mut process, door, drains }) => {
            let cause = attend(child, &mut process, door, life, stop).await;
            let pid = process.pid();
            let threads = if matches!(cause, Cause::Hang(_) | Cause::Late(_)) { threads_of(pid) } else { Vec::new() };
            life.tell(if cause == Cause::Stopped { Event::Stop } else { Event::Failing });
            child.failing(&cause, life);
            let (cause, exit) = end(&mut process, cause, child.grace()).await;
            life.board.child(&life.name, |shown| shown.pid = None);
            (cause, exit, Some(pid), threads, drains.last_lines().await)
        }
    };
    let xids: Vec<u32> = child.gpus().iter().flat_map(|gpu| gpus.xids_since(gpu, began)).collect();
    let facts = Facts {
        cause: &cause,
        exit,
        tail: &lines,
        xids: &xids,
        gpu_gone: child.gpus().iter().any(|gpu| gpus.is_gone(gpu)),
        memory_kills: memory_kills < proc::out_of_memory_kills(),
    };
    Death::of(&facts, pid, began.elapsed().as_secs_f64(), threads)
}

struct Started {
    process: Child,
    door: session::ChildSocket,
    drains: Drains,
}

async fn start<K: Kept>(child: &K, life: &Life, gpus: &Gpus, vacated: Option<Instant>) -> Result<Started, Cause> {
    for gpu in child.gpus() {
        clear(gpu, life, gpus, vacated).await?;
    }
    let (door, mut process) = session::spawn(child.opening(), &life.name).await?;
    let drains = Drains::start(&life.name, child.gpus(), process.take_output());
    life.tell(Event::Spawned);
    life.board.child(&life.name, |shown| {
        shown.pid = Some(process.pid());
        shown.starts += 1;
    });
    if let Some(error) = process.take_unrecorded() {
        life.board.event(ChildEvent::Unrecorded { child: life.name.clone(), error: error.to_string() });
    }
    Ok(Started { process, door, drains })
}

/// Waits until nobody holds the GPU, or says who does.
async fn clear(gpu: &str, life: &Life, gpus: &Gpus, vacated: Option<Instant>) -> Result<(), Cause> {
    let began = clock::monotonic();
    let clearance = Clearance::new(Duration::ZERO, Clearance::LIMIT);
    let mut told = false;
    loop {
        match clearance.judge(began.elapsed(), gpu, &gpus.look(gpu, vacated)) {
            Verdict::Free => return Ok(()),
            Verdict::Held(holder) => return Err(Cause::GpuHeld(holder)),
            Verdict::Wait(holder) if !told => {
                told = true;
                life.board.event(ChildEvent::GpuAwaited { child: life.name.clone(), holder });
            }
            Verdict::Wait(_) | Verdict::Blind => {}
        }
        tokio::time::sleep(CLEARANCE_LOOK).await;
    }
}

/// The living part: hello, work, and everything that can end it.
async fn attend<K: Kept>(
    child: &mut K,
    process: &mut Child,
    door: session::ChildSocket,
    life: &Life,
    stop: &CancellationToken,
) -> Cause {
    let pid = process.pid();
    let began = clock::monotonic();
    let serving = async {
        let (link, hello) = match session::hello(&door, pid).await {
            Ok(greeted) => greeted,
            Err(cause) => return cause,
        };
        // Nobody else may connect.
        drop(door);
        if let Err(cause) = child.greet(hello) {
            return cause;
        }
        life.tell(Event::Hello);
        let hello_ms = began.elapsed().as_millis() as u64;
        life.board.event(ChildEvent::Started { child: life.name.clone(), pid, hello_ms });
        child.serve(link, life).await
    };
    tokio::select! {
        cause = serving => cause,
        _ = process.exited() => Cause::Exited,
        overdue = life.watch(pid) => match overdue {
            Overdue::Hello(_) => Cause::Late(overdue.to_string()),
            _ => Cause::Hang(overdue.to_string()),
        },
        () = stop.cancelled() => Cause::Stopped,
        why = life.condemned() => Cause::Condemned(why),
        why = life.doubted() => Cause::WrongProof(why),
    }
}

/// What the threads of a child and of everything below it are doing.
fn threads_of(pid: u32) -> Vec<String> {
    let tree = proc::tree(pid).unwrap_or_else(|_| vec![pid]);
    tree.into_iter().take(MAX_NOTED).flat_map(proc::threads).collect()
}

/// Ends the process with everything in its group. A closed link turns out to be the process's end, where that follows at once.
async fn end(process: &mut Child, cause: Cause, grace: Duration) -> (Cause, Exit) {
    let patience = match cause {
        Cause::Exited => Duration::ZERO,
        // It does not run: no grace would help.
        Cause::Hang(_) | Cause::Late(_) => return (cause, exit_of(process.kill().await)),
        Cause::Closed => CLOSING_LIMIT,
        // Its link is closed by now; a child ends when its socket does.
        _ => grace.mul_f64(SOCKET_SHARE),
    };
    match tokio::time::timeout(patience, process.exited()).await {
        Ok(status) if cause == Cause::Closed => (Cause::Exited, exit_of(Some(status))),
        Ok(status) => (cause, exit_of(Some(status))),
        Err(_) => (cause, exit_of(process.stop(grace.mul_f64(1.0 - SOCKET_SHARE)).await)),
    }
}

fn exit_of(status: Option<std::process::ExitStatus>) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match status {
        None => Exit::Stuck,
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Stuck,
        },
    }
}
