//! A pool of proof workers that do not compute alike, or not on what they were given.

// The lint spares test functions only, not what they share.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use grail_fakes::{Script, WorkerCue, WorkerLie};
use grail_process::Spawner;
use grail_settings::WorkerNumerics;
use grail_supervision::board::{Board, ChildStatus};
use grail_supervision::children::{ChildState, DeathClass};
use grail_supervision::gpu::Gpus;
use grail_tests::programs;
use grail_workers::plan::ProofSlot;
use grail_workers::{ChildPrograms, Programs, ProofPool, WorkerSettings};

/// A folder of programs whose proof worker is the real one, given `to` instead of the argument `from` in slot 1.
fn programs_with_a_stranger(folder: &Path, from: &str, to: &str) -> Programs {
    let real = programs().join("grail-proof-worker");
    let script = format!(
        "#!/bin/bash\ncase \" $* \" in\n*\" --slot 1 \"*) exec {real:?} \"${{@/#{from}/{to}}}\" ;;\n*) exec {real:?} \"$@\" ;;\nesac\n"
    );
    let path = folder.join("grail-proof-worker");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink(programs().join("grail-gen-launcher"), folder.join("grail-gen-launcher")).unwrap();
    Programs::find(Some(folder), &[ChildPrograms::ProofWorker]).unwrap()
}

/// Both workers once each is ready or quarantined.
async fn settled(board: &Board) -> Vec<ChildStatus> {
    let wait = async {
        loop {
            let children: Vec<_> = board.snapshot().children.into_values().collect();
            let at_rest = |child: &&ChildStatus| matches!(child.state, ChildState::Ready | ChildState::Quarantined);
            if children.iter().filter(at_rest).count() == 2 {
                return children;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap()
}

#[tokio::test]
async fn the_later_of_two_workers_that_compute_unlike_is_quarantined_with_the_fact_and_both_values() {
    let folder = tempfile::tempdir().unwrap();
    let board = Board::default();
    let settings = WorkerSettings {
        programs: programs_with_a_stranger(folder.path(), "auto", "bf16"),
        sockets: folder.path().join("run"),
        slots: (0..2).map(|slot| ProofSlot { slot, gpu: None }).collect(),
        dtype: "auto".into(),
        threads: 1,
        numerics: WorkerNumerics { precision_tuning: 2, ..WorkerNumerics::default() },
        grace: Duration::from_secs(2),
        gpus: Gpus::default(),
    };
    let pool = ProofPool::start(settings, Spawner::start().unwrap(), board.clone());
    let children = settled(&board).await;
    pool.stop().await;
    let (refused, taken): (Vec<_>, Vec<_>) = children.iter().partition(|child| child.state == ChildState::Quarantined);
    assert_eq!((refused.len(), taken.len()), (1, 1), "{children:?}");
    let why = refused[0].last_end.clone().unwrap();
    let either = ["dtype bf16 instead of f32", "dtype f32 instead of bf16"];
    assert!(either.iter().any(|words| why.contains(words)), "{why}");
}

/// A pool of one worker, `program`, on a GPU that this host does not have; its only child when it has come to rest.
async fn on_gpu_97(folder: &Path, program: &Path, spawner: Spawner) -> ChildStatus {
    symlink(program, folder.join("grail-proof-worker")).unwrap();
    let board = Board::default();
    let settings = WorkerSettings {
        programs: Programs::find(Some(folder), &[ChildPrograms::ProofWorker]).unwrap(),
        sockets: folder.join("run"),
        slots: vec![ProofSlot { slot: 0, gpu: Some("97".into()) }],
        dtype: "auto".into(),
        threads: 1,
        numerics: WorkerNumerics::default(),
        grace: Duration::from_secs(2),
        gpus: Gpus::default(),
    };
    let pool = ProofPool::start(settings, spawner, board.clone());
    tokio::time::timeout(Duration::from_secs(60), pool.none_left()).await.unwrap_or_else(|_| panic!("{:#?}", board.snapshot()));
    let child = board.snapshot().children["proof-worker 0"].clone();
    pool.stop().await;
    assert_eq!((child.state, child.ends), (ChildState::Quarantined, 1), "{child:#?}");
    assert_eq!(child.death.as_ref().map(|death| death.class), Some(DeathClass::NoGpu), "{child:#?}");
    child
}

#[tokio::test]
async fn a_worker_that_cannot_have_its_gpu_is_quarantined_at_once_and_its_record_says_why_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let child = on_gpu_97(folder.path(), &programs().join("grail-proof-worker"), Spawner::start().unwrap()).await;
    let why = child.last_end.unwrap();
    for words in ["cannot compute on the GPU that it was given (exit code 86)", "cannot be computed on: ", "LD_LIBRARY_PATH"] {
        assert!(why.contains(words), "{words:?} is not in {why}");
    }
}

#[tokio::test]
async fn a_worker_that_computes_on_the_cpu_all_the_same_never_gets_work_of_a_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let lie = WorkerCue { slot: None, life: None, job: 0, count: 1, lie: WorkerLie::ComputesOnCpu };
    let script = Script { worker: vec![lie], ..Script::default() };
    script.write(folder.path()).unwrap();
    let child = on_gpu_97(folder.path(), &programs().join("fake-worker"), Spawner::start().unwrap()).await;
    let why = child.last_end.unwrap();
    for words in ["it computes on cpu", "where GPU 97 was given to it (a fake has no GPU)", "LD_LIBRARY_PATH"] {
        assert!(why.contains(words), "{words:?} is not in {why}");
    }
    assert_eq!(child.revision, None);
}
