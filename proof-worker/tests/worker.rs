//! The real program over its real socket.

// The lint spares test functions only, not what they share.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_link::Connection;
use grail_link::Listener;
use grail_link::message::{ExamineTerms, FromWorker, ProofJob, ProofSequence, ReloadCommand, Revision, SequenceProof, ToWorker};
use grail_model::Checkpoint;
use grail_process::{Child, Launch, Spawner, clock, environment};
use grail_protocol::commitment;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

const LIMIT: Duration = Duration::from_secs(60);

struct Rig {
    child: Child,
    /// The kernel kills the child when the spawner's thread ends.
    _spawner: Spawner,
    link: Connection<FromWorker, ToWorker>,
    _folder: tempfile::TempDir,
}

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/grail/model-qwen2-f32")
}

fn revision(window: u64) -> Revision {
    Revision { window, weights_hash: Checkpoint::open(&checkpoint()).unwrap().weights_hash().unwrap() }
}

fn reload(window: u64, directory: PathBuf) -> ToWorker {
    ToWorker::Reload(ReloadCommand { revision: revision(window), directory, manifest: Default::default() })
}

fn sequence(length: u32, prompt_length: u32) -> ProofSequence {
    let tokens = (0..length).map(|position| (position * 37 + length) % 512).collect();
    ProofSequence { tokens, prompt_length, coefficients: std::array::from_fn(|index| index as i8 * 8 - 60) }
}

fn job(id: u64, sequences: Vec<ProofSequence>) -> ProofJob {
    ProofJob { id, revision: revision(30), sequences, examine: None }
}

impl Rig {
    async fn start() -> Self {
        Self::start_in("exact").await
    }

    async fn start_in(mode: &str) -> Self {
        Self::start_with(mode, "sdpa").await
    }

    async fn start_with(mode: &str, attention: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("run").join("w.sock")).unwrap();
        let launch = Launch {
            name: "proof-worker 3".into(),
            program: env!("CARGO_BIN_EXE_grail-proof-worker").into(),
            arguments: ["--slot", "3", "--mode", mode, "--attention", attention, "--dtype", "f32", "--threads", "1", "--socket"]
                .map(Into::into)
                .into_iter()
                .chain([listener.path().into()])
                .collect(),
            environment: environment::for_child(std::env::vars_os(), [("OMP_WAIT_POLICY".into(), "passive".into())]),
        };
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(launch).await.unwrap();
        let output = child.take_output().unwrap();
        tokio::spawn(relay(output.stderr));
        let link = tokio::time::timeout(LIMIT, listener.accept(child.pid())).await.unwrap().unwrap();
        let mut rig = Self { child, _spawner: spawner, link, _folder: folder };
        match rig.receive().await {
            FromWorker::Hello(hello) => {
                assert_eq!((hello.pid, hello.slot, hello.dtype.as_str()), (rig.child.pid(), 3, "f32"));
                assert_eq!(hello.mode, mode);
            }
            other => panic!("want Hello, got {other:?}"),
        }
        rig
    }

    async fn loaded() -> Self {
        Self::loaded_in("exact").await
    }

    async fn loaded_in(mode: &str) -> Self {
        let mut rig = Self::start_in(mode).await;
        match rig.ask(reload(30, checkpoint())).await {
            FromWorker::Reloaded(reloaded) => {
                assert_eq!(reloaded.weights_hash, reloaded.revision.weights_hash);
                assert_eq!((reloaded.vocab_size, reloaded.max_positions), (512, 512));
            }
            other => panic!("want Reloaded, got {other:?}"),
        }
        rig
    }

    async fn receive(&mut self) -> FromWorker {
        tokio::time::timeout(LIMIT, self.link.inbox.receive()).await.unwrap().unwrap().unwrap()
    }

    async fn ask(&mut self, command: ToWorker) -> FromWorker {
        self.link.outbox.send(&command).await.unwrap();
        self.receive().await
    }

    async fn proofs(&mut self, job: ProofJob) -> Vec<SequenceProof> {
        self.link.outbox.send(&ToWorker::Prove(job)).await.unwrap();
        let mut proofs = Vec::new();
        loop {
            match self.receive().await {
                FromWorker::Sequence(proof) => proofs.push(proof),
                FromWorker::JobDone { .. } => return proofs,
                other => panic!("want Sequence or JobDone, got {other:?}"),
            }
        }
    }

    async fn refusal(&mut self, job: ProofJob) -> String {
        match self.ask(ToWorker::Prove(job)).await {
            FromWorker::JobRefused { reason, .. } => reason,
            other => panic!("want JobRefused, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn proves_and_examines_in_order_with_the_hash_the_parent_computes() {
    let mut rig = Rig::loaded().await;
    let sequences: Vec<_> = (0..18).map(|index| sequence(40 + index, 8)).collect();
    let mut terms = job(7, sequences);
    terms.examine = Some(ExamineTerms { temperature: 0.7, repetition_penalty: 1.1, eos_token_id: 2 });
    let proofs = rig.proofs(terms).await;
    assert_eq!(proofs.len(), 18);
    for (index, proof) in proofs.iter().enumerate() {
        assert_eq!((proof.job, proof.index as usize, proof.sketches.len()), (7, index, 40 + index));
        assert_eq!(proof.commitments_hash, commitment::hash_sketches(&proof.sketches));
        let examined = proof.examined.as_ref().unwrap();
        assert_eq!((proof.logprobs.len(), examined.probabilities.len()), (32 + index, 32 + index));
        assert!((0.0..=1.0).contains(&examined.eos_probability));
    }
}

#[tokio::test]
async fn refuses_bad_jobs_and_reloads_with_a_reason_and_lives() {
    let mut rig = Rig::start().await;
    assert!(rig.refusal(job(1, vec![sequence(40, 8)])).await.contains("no weights are resident"));
    match rig.ask(reload(30, "/no/such/checkpoint".into())).await {
        FromWorker::ReloadRefused { reason, .. } => assert!(reason.contains("/no/such/checkpoint"), "{reason}"),
        other => panic!("want ReloadRefused, got {other:?}"),
    }
    assert!(matches!(rig.ask(reload(30, checkpoint())).await, FromWorker::Reloaded(_)));
    let mut stray = sequence(40, 8);
    stray.tokens[9] = 512;
    let mut other = job(2, vec![sequence(40, 8)]);
    other.revision.window = 60;
    let cases = [
        (job(2, vec![sequence(40, 8), stray]), "token 512 at position 9"),
        (job(2, vec![sequence(40, 40)]), "completion is empty"),
        (job(2, vec![sequence(40, 41)]), "prompt of 41"),
        (job(2, vec![sequence(513, 8)]), "513 tokens"),
        (other, "is resident"),
    ];
    for (bad, word) in cases {
        let reason = rig.refusal(bad).await;
        assert!(reason.contains(word), "want {word:?}, got {reason:?}");
    }
    assert!(matches!(rig.ask(reload(31, "/no/such/checkpoint".into())).await, FromWorker::ReloadRefused { .. }));
    assert_eq!(rig.proofs(job(3, vec![sequence(40, 8)])).await.len(), 1);
}

#[tokio::test]
async fn an_interrupt_changes_nothing_and_the_end_of_the_socket_ends_the_worker_in_mid_computation() {
    let mut rig = Rig::loaded().await;
    rig.child.signal_group(Signal::SIGINT);
    assert_eq!(rig.proofs(job(1, vec![sequence(40, 8)])).await.len(), 1);
    let long: Vec<_> = (0..4000).map(|_| sequence(500, 8)).collect();
    rig.link.outbox.send(&ToWorker::Prove(job(2, long))).await.unwrap();
    assert!(matches!(rig.receive().await, FromWorker::Sequence(_)));
    let Rig { mut child, _spawner, link, .. } = rig;
    let closed = clock::monotonic();
    drop(link);
    let status = tokio::time::timeout(LIMIT, child.exited()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(closed.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn every_mode_answers_one_proof_per_sequence_in_order_and_all_agree() {
    // Two groups with a prompt each, more sequences than the reference's chunk.
    let group = |prompt: u32| {
        (0..14u32).map(move |row| {
            let tokens = (0..12).map(|p| (p * prompt) % 512).chain((0..20 + row * 9).map(|p| (p * 37 + row) % 512)).collect();
            ProofSequence { tokens, ..sequence(12, 12) }
        })
    };
    let sequences: Vec<ProofSequence> = group(5).chain(group(11)).collect();
    let mut exact: Vec<SequenceProof> = Vec::new();
    for mode in ["exact", "packed", "packed-shared"] {
        let mut rig = Rig::loaded_in(mode).await;
        let mut asked = job(1, sequences.clone());
        asked.examine = Some(ExamineTerms { temperature: 0.7, repetition_penalty: 1.1, eos_token_id: 2 });
        let proofs = rig.proofs(asked).await;
        assert!(proofs.iter().map(|proof| proof.index).eq(0..sequences.len() as u32), "{mode}");
        if exact.is_empty() {
            exact = proofs;
            continue;
        }
        for (want, got) in exact.iter().zip(&proofs) {
            let near = |(one, other): (&f32, &f32)| (one - other).abs() < 1e-3;
            let far = want.sketches.iter().zip(&got.sketches).filter(|(one, other)| one != other).count();
            assert!(far * 50 <= want.sketches.len(), "{mode}: {far} of {} sketches differ", want.sketches.len());
            assert!(want.logprobs.iter().zip(&got.logprobs).all(near), "{mode}");
            let (want, got) = (want.examined.as_ref().unwrap(), got.examined.as_ref().unwrap());
            assert!(want.probabilities.iter().zip(&got.probabilities).all(near), "{mode}");
        }
    }
}

/// A one-layer model whose batches take far more memory than its weights, and its checkpoint's hash.
fn wide_model(directory: &Path) -> Revision {
    model(directory, 512, 512)
}

fn model(directory: &Path, vocabulary: u32, hidden: u32) -> Revision {
    let config = serde_json::json!({
        "model_type": "qwen2", "hidden_act": "silu", "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 1024,
        "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 512,
        "tie_word_embeddings": true,
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let config = grail_model::ModelConfig::read(directory).unwrap();
    let options = (grail_model::Kind::Float, grail_model::Device::Cpu);
    let tensors = grail_model::Model::layout(&config).into_iter();
    let tensors: Vec<_> = tensors.map(|(name, shape)| (name, grail_model::Tensor::ones(shape, options) * 0.01)).collect();
    grail_model::Tensor::write_safetensors(&tensors, directory.join("model.safetensors")).unwrap();
    Revision { window: 30, weights_hash: Checkpoint::open(directory).unwrap().weights_hash().unwrap() }
}

fn mebibytes(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn a_batch_keeps_to_its_predicted_memory_and_one_that_has_too_little_is_computed_in_parts() {
    let mut wide = Wide::load("sdpa").await;
    // The address space ends before a whole batch has its place; parts of it have theirs. More is left than the 64 MiB that the C
    // library asks for at once, because what it gets instead falls to pieces.
    let limit = (mebibytes(wide.rig.child.pid(), "VmSize:") + wide.predicted / 2) << 20;
    prlimit(wide.rig.child.pid(), &limit.to_string());
    wide.prove(1).await;
    prlimit(wide.rig.child.pid(), "unlimited");
    // Eight good batches, and the budget is what it was.
    wide.keeps_to_its_prediction(8).await;
}

#[tokio::test]
async fn masks_and_scores_of_eager_attention_are_in_the_predicted_memory() {
    let mut wide = Wide::load("eager").await;
    wide.keeps_to_its_prediction(2).await;
}

/// A worker with [`wide_model`], and what it says a batch takes, in MiB.
struct Wide {
    rig: Rig,
    revision: Revision,
    predicted: u64,
    _directory: tempfile::TempDir,
}

impl Wide {
    async fn load(attention: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let revision = wide_model(directory.path());
        let mut rig = Rig::start_with("packed", attention).await;
        let path = directory.path().into();
        let command = ReloadCommand { revision: revision.clone(), directory: path, manifest: Default::default() };
        let FromWorker::Reloaded(reloaded) = rig.ask(ToWorker::Reload(command)).await else { panic!("want Reloaded") };
        Self { rig, revision, predicted: reloaded.batch_bytes.unwrap() >> 20, _directory: directory }
    }

    async fn prove(&mut self, id: u64) {
        let sequences = (0..16).map(|row| sequence(512, 8 + row)).collect();
        let asked = ProofJob { revision: self.revision.clone(), ..job(id, sequences) };
        assert_eq!(self.rig.proofs(asked).await.len(), 16);
    }

    async fn keeps_to_its_prediction(&mut self, jobs: u64) {
        let pid = self.rig.child.pid();
        let before = mebibytes(pid, "VmRSS:");
        for id in 0..jobs {
            self.prove(2 + id).await;
        }
        let (most, predicted) = (mebibytes(pid, "VmHWM:"), self.predicted);
        // What is freed between two operations does not always have the form that the next one needs.
        let scattered = predicted / 4;
        assert!(most <= before + predicted + scattered, "{most} MiB were taken, {before} before, {predicted} predicted");
    }
}

#[tokio::test]
async fn the_exact_mode_computes_in_parts_what_has_too_little_memory() {
    let directory = tempfile::tempdir().unwrap();
    let revision = wide_model(directory.path());
    let mut rig = Rig::start_in("exact").await;
    let command = ReloadCommand { revision: revision.clone(), directory: directory.path().into(), manifest: Default::default() };
    assert!(matches!(rig.ask(ToWorker::Reload(command)).await, FromWorker::Reloaded(_)));
    let sequences: Vec<_> = (0..16).map(|row| sequence(512, 8 + row)).collect();
    let asked = |id| ProofJob { revision: revision.clone(), ..job(id, sequences.clone()) };
    // Room for about half of sixteen sequences, which take 260 MiB; the C library asks for 64 MiB more than it needs.
    let limit = (mebibytes(rig.child.pid(), "VmSize:") + 144) << 20;
    prlimit(rig.child.pid(), &limit.to_string());
    assert_eq!(rig.proofs(asked(1)).await.len(), 16);
    prlimit(rig.child.pid(), "unlimited");
    assert_eq!(rig.proofs(asked(2)).await.len(), 16);
    let peak = mebibytes(rig.child.pid(), "VmPeak:");
    assert!(peak > limit >> 20, "a whole batch takes {peak} MiB, and would have had its place in {} MiB", limit >> 20);
}

/// What a load lacks in memory is no fault of the checkpoint's: the worker says so by its exit code, and refuses nothing.
#[tokio::test]
async fn a_load_that_runs_out_of_memory_ends_the_process_as_that_and_refuses_no_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let revision = large_model(directory.path());
    let mut rig = Rig::start().await;
    let limit = (mebibytes(rig.child.pid(), "VmSize:") + 48) << 20;
    prlimit(rig.child.pid(), &limit.to_string());
    let command = ReloadCommand { revision, directory: directory.path().into(), manifest: Default::default() };
    rig.link.outbox.send(&ToWorker::Reload(command)).await.unwrap();
    let answer = tokio::time::timeout(LIMIT, rig.link.inbox.receive()).await.unwrap();
    assert!(matches!(answer, Ok(None) | Err(_)), "{answer:?}");
    let status = tokio::time::timeout(LIMIT, rig.child.exited()).await.unwrap();
    assert_eq!(status.code(), Some(81), "{status}");
}

/// A model whose embedding alone is 96 MiB.
fn large_model(directory: &Path) -> Revision {
    model(directory, 98_304, 256)
}

#[allow(clippy::disallowed_methods, reason = "a tool of the test, not a child of the program")]
fn prlimit(pid: u32, bytes: &str) {
    let status =
        std::process::Command::new("prlimit").arg("--pid").arg(pid.to_string()).arg(format!("--as={bytes}:unlimited")).status();
    assert!(status.unwrap().success());
}

/// Passes the worker's words on to whoever reads the test's.
async fn relay(pipe: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        eprintln!("{line}");
    }
}
