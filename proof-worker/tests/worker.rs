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
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("run").join("w.sock")).unwrap();
        let launch = Launch {
            name: "proof-worker 3".into(),
            program: env!("CARGO_BIN_EXE_grail-proof-worker").into(),
            arguments: ["--slot", "3", "--dtype", "f32", "--threads", "1", "--socket"]
                .map(Into::into)
                .into_iter()
                .chain([listener.path().into()])
                .collect(),
            environment: environment::for_child(std::env::vars_os(), [("OMP_WAIT_POLICY".into(), "passive".into())]),
        };
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(launch).await.unwrap();
        let mut output = child.take_output().unwrap();
        tokio::spawn(async move { tokio::io::copy(&mut output.stderr, &mut tokio::io::sink()).await });
        let link = tokio::time::timeout(LIMIT, listener.accept(child.pid())).await.unwrap().unwrap();
        let mut rig = Self { child, _spawner: spawner, link, _folder: folder };
        match rig.receive().await {
            FromWorker::Hello(hello) => {
                assert_eq!((hello.pid, hello.slot, hello.dtype.as_str()), (rig.child.pid(), 3, "f32"));
            }
            other => panic!("want Hello, got {other:?}"),
        }
        rig
    }

    async fn loaded() -> Self {
        let mut rig = Self::start().await;
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
