//! The keeper with scripts in the workers' place and a scripted GPU.

use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use grail_link::message::Revision;
use grail_process::Spawner;
use grail_settings::WorkerNumerics;
use grail_supervision::board::{Board, ChildStatus};
use grail_supervision::children::{ChildEvent, ChildState, DeathClass};
use grail_supervision::gpu::{GpuProcess, GpuReading, Gpus, Sensor, SensorError};

use crate::plan::ProofSlot;
use crate::{Programs, ProofError, ProofPool, WorkerSettings};

const LIMIT: Duration = Duration::from_secs(30);

/// A GPU that holds what it is told to hold, and reports the XIDs it is told to report.
struct Scripted {
    used: Receiver<u64>,
    xids: Receiver<u32>,
    now: u64,
}

impl Sensor for Scripted {
    fn read(&mut self, _gpu: &str) -> Result<GpuReading, SensorError> {
        self.now = self.used.try_iter().last().unwrap_or(self.now);
        let processes = vec![GpuProcess { pid: 4242, program: "python".into(), bytes: Some(self.now) }];
        Ok(GpuReading { memory_used: self.now, memory_total: 80 << 30, processes, ..GpuReading::default() })
    }

    fn xids(&mut self, _wait: Duration) -> Result<Vec<(String, u32)>, SensorError> {
        std::thread::sleep(Duration::from_millis(10));
        Ok(self.xids.try_iter().map(|xid| ("7".to_owned(), xid)).collect())
    }
}

/// A pool of one worker on GPU 7 whose memory is `used`.
fn pool(folder: &Path, script: &str, used: u64) -> (ProofPool, Board, Sender<u64>, Sender<u32>) {
    pool_with(folder, script, used, |_| ())
}

/// The same; `hold` does something with the thread for small things on the disk before anything is started.
fn pool_with(
    folder: &Path,
    script: &str,
    used: u64,
    hold: impl FnOnce(&Spawner),
) -> (ProofPool, Board, Sender<u64>, Sender<u32>) {
    let worker = folder.join("grail-proof-worker");
    std::fs::write(&worker, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&worker, std::fs::Permissions::from_mode(0o755)).unwrap();
    let board = Board::default();
    let ((fill, level), (report, reported)) = (channel(), channel());
    let sensor = Scripted { used: level, xids: reported, now: used };
    let settings = WorkerSettings {
        programs: Programs::find(Some(folder), &[]).unwrap(),
        sockets: folder.join("run"),
        slots: vec![ProofSlot { slot: 0, gpu: Some("7".into()) }],
        dtype: "auto".into(),
        threads: 1,
        numerics: WorkerNumerics::default(),
        library_path: None,
        grace: Duration::from_millis(100),
        gpus: Gpus::watch(vec!["7".into()], board.clone(), || Ok(sensor)).unwrap(),
    };
    // The first look must come before the first start.
    while board.snapshot().gpus.is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let spawner = Spawner::start().unwrap();
    hold(&spawner);
    (ProofPool::start(settings, spawner, board.clone()), board, fill, report)
}

async fn until(board: &Board, what: &str, wanted: impl Fn(&ChildStatus, &VecDeque<ChildEvent>) -> bool) -> ChildStatus {
    let look = async {
        loop {
            let status = board.snapshot();
            if let Some(child) = status.children.get("proof-worker 0").filter(|child| wanted(child, &status.child_events)) {
                return child.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.unwrap_or_else(|_| panic!("{what}: {:#?}", board.snapshot()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_waits_for_the_memory_of_its_gpu_and_the_holder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (pool, board, fill, _report) = pool(folder.path(), "exec sleep 600", 71 << 30);
    let named = |events: &VecDeque<ChildEvent>| {
        events.iter().any(|event| matches!(event, ChildEvent::GpuAwaited { holder, .. } if holder.contains("python (pid 4242)")))
    };
    let waiting = until(&board, "the holder", |_, events| named(events)).await;
    assert_eq!((waiting.starts, waiting.pid), (0, None));
    fill.send(1 << 20).unwrap();
    until(&board, "a start", |child, _| child.starts == 1 && child.pid.is_some()).await;
    pool.stop().await;
    assert_eq!(board.snapshot().children["proof-worker 0"].state, ChildState::Absent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_start_waits_is_no_death() {
    let folder = tempfile::tempdir().unwrap();
    let (pool, board, _fill, _report) = pool(folder.path(), "exec sleep 600", 71 << 30);
    until(&board, "the wait", |_, events| events.iter().any(|event| matches!(event, ChildEvent::GpuAwaited { .. }))).await;
    pool.stop().await;
    let child = board.snapshot().children["proof-worker 0"].clone();
    assert_eq!((child.state, child.ends, child.starts), (ChildState::Absent, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_fell_off_the_bus_is_quarantined_at_the_first_death_and_waiters_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (pool, board, _fill, report) = pool(folder.path(), "exec sleep 600", 0);
    until(&board, "a start", |child, _| child.pid.is_some()).await;
    report.send(79).unwrap();
    until(&board, "the XID", |_, events| {
        events.iter().any(|event| matches!(event, ChildEvent::GpuNote { note, .. } if note.contains("XID 79")))
    })
    .await;
    let pid = board.snapshot().children["proof-worker 0"].pid.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL).unwrap();
    let child = until(&board, "quarantine", |child, _| child.state == ChildState::Quarantined).await;
    assert_eq!((child.ends, child.death.unwrap().class), (1, DeathClass::GpuLost));
    tokio::time::timeout(LIMIT, pool.none_left()).await.unwrap();
    let lost = pool.prove(Revision { window: 0, weights_hash: String::new() }, Vec::new(), None).await;
    assert!(matches!(lost, Err(ProofError::Lost(why)) if why.contains("quarantined")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condemned_worker_is_taken_out_of_service() {
    let folder = tempfile::tempdir().unwrap();
    let (pool, board, _fill, _report) = pool(folder.path(), "exec sleep 600", 0);
    until(&board, "a start", |child, _| child.pid.is_some()).await;
    assert!(!pool.quarantine(0, "it differs"), "the last one stays");
    pool.lives[0].1.condemn("three workers disagree with it".into());
    let child = until(&board, "quarantine", |child, _| child.state == ChildState::Quarantined).await;
    assert_eq!(child.death.as_ref().unwrap().class, DeathClass::Condemned);
    assert!(child.last_end.unwrap().contains("three workers disagree"));
    assert_eq!(child.pid, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_is_no_fault_of_the_child() {
    let folder = tempfile::tempdir().unwrap();
    let (let_go, held) = channel::<()>();
    let hangs = |spawner: &Spawner| {
        spawner.aside().offer(move || held.recv().unwrap_or_default());
    };
    let (pool, board, _fill, _report) = pool_with(folder.path(), "exec sleep 600", 0, hangs);
    let end = tokio::time::Instant::now() + Duration::from_secs(120);
    // The first waits for the disk, the others no more: eight of them would have been a quarantine within a minute.
    let tried = loop {
        let child = board.snapshot().children["proof-worker 0"].clone();
        assert!(child.state != ChildState::Quarantined && tokio::time::Instant::now() < end, "{child:#?}");
        if child.ends >= 3 {
            break child;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((tried.starts, tried.death.as_ref().map(|death| death.class)), (0, Some(DeathClass::HostDisk)));
    let_go.send(()).unwrap();
    until(&board, "a start once the disk is back", |child, _| child.starts == 1 && child.pid.is_some()).await;
    pool.stop().await;
}
