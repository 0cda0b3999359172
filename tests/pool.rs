//! Pools of real children: proof workers that do not compute alike, or not on what they were given, and launchers whose server is
//! late.

// The lint spares test functions only, not what they share.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_fakes::{Script, WorkerCue, WorkerLie};
use grail_link::message::{ReloadCommand, Revision};
use grail_process::Spawner;
use grail_settings::{Generation, Sources, WorkerNumerics};
use grail_supervision::board::{Board, ChildStatus};
use grail_supervision::children::{ChildState, DeathClass};
use grail_supervision::gpu::Gpus;
use grail_tests::{programs, workspace};
use grail_workers::plan::ProofSlot;
use grail_workers::{ChildPrograms, Generator, LauncherSettings, Programs, ProofPool, WorkerSettings};

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
        library_path: None,
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
        library_path: None,
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

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(120);

/// A `python` that has SGLang as far as the launcher's own tests need it.
fn python(folder: &Path) -> PathBuf {
    let site = folder.join("site");
    std::fs::create_dir_all(site.join("sglang")).unwrap();
    std::fs::write(site.join("sglang/launch_server.py"), include_str!("../gen-launcher/tests/stand_in.py")).unwrap();
    let facts = site.join("sglang-0.5.23.dist-info");
    std::fs::create_dir_all(&facts).unwrap();
    std::fs::write(facts.join("METADATA"), "Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.23\n").unwrap();
    let program = folder.join("python");
    let text = format!("#!/bin/sh\nPYTHONPATH='{}' SGLANG_STAND_IN='{}' exec python3 \"$@\"\n", site.display(), folder.display());
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// A launcher kept as the supervisor keeps it, its server given `server_timeout` seconds, and what it was told to load.
struct LateServer {
    generator: Generator,
    board: Board,
    revision: Revision,
    _folder: tempfile::TempDir,
}

impl LateServer {
    fn start(server_timeout: f64, wishes: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        wishes.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
        let text = "[storage]\nlocal_folder = 'bucket'\n[chain]\nnetwork = 'local'\n[wallet]\ndevelopment = '//Alice'\n";
        let file = folder.path().join("host.toml");
        std::fs::write(&file, text).unwrap();
        let loaded = grail_settings::load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
        let python = python(folder.path());
        let launcher = LauncherSettings {
            name: "generation".into(),
            programs: Programs::find(Some(programs()), &[ChildPrograms::GenLauncher]).unwrap(),
            socket: folder.path().join("run/generation.sock"),
            generation: Generation { python, server_timeout, ..loaded.settings.generation },
            gpus: vec!["0".into()],
            records: folder.path().join("children"),
            probes: folder.path().join("probes"),
            grace: Duration::from_secs(2),
            watch: Gpus::default(),
        };
        let board = Board::default();
        let (http, spawner) = (reqwest::Client::new(), Spawner::start().unwrap());
        let generator = Generator::start(vec![launcher], Vec::new(), &http, &spawner, &board);
        let revision = Revision { window: 30, weights_hash: "0".repeat(32) };
        let directory = workspace().join("tests/vectors/grail/model-qwen2-f32");
        generator.reload(ReloadCommand { revision: revision.clone(), directory, manifest: Default::default() });
        Self { generator, board, revision, _folder: folder }
    }

    async fn end(self) {
        self.generator.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_listens_late_serves_although_its_preparation_took_long_too() {
    // Together they take longer than the server alone may; each has a time of its own.
    let late = LateServer::start(20.0, &[("slow_help", "15"), ("late", "6")]);
    let serves = async {
        while late.board.snapshot().children.get("generation").is_none_or(|child| child.revision.is_none()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let served = tokio::time::timeout(LIMIT, serves).await;
    let children = late.board.snapshot().children;
    assert!(served.is_ok() && children["generation"].starts == 1, "{children:?}");
    late.end().await;
}

#[tokio::test]
async fn what_the_launcher_says_of_a_server_that_never_listens_arrives() {
    let late = LateServer::start(5.0, &[("slow_help", "2"), ("late", "3600")]);
    let refused = tokio::time::timeout(LIMIT, late.generator.refusing(&late.revision)).await;
    let children = late.board.snapshot().children;
    let why = refused.unwrap_or_else(|_| panic!("no word of it: {children:?}"));
    assert!(why.contains("did not answer within 5 s") && why.contains("Compiling kernels."), "{why}");
    late.end().await;
}
