//! `make bench`, first part: what a full window costs while it runs and when it is closed, and how fast proofs come over a
//! socket.
//!
//! Figures are the minimum and median of several rounds on this machine; the work is that of 5,000 rollouts of 1,200 tokens.
#![allow(clippy::disallowed_methods, missing_docs, reason = "a benchmark reads the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use grail_link::message::{FromWorker, SequenceProof, ToWorker};
use grail_link::{Connection, Listener};
use grail_mining::events::GroupKept;
use grail_mining::gate::Judge;
use grail_mining::spool::{FileSystem, GroupHeader, GroupRecord, Spool, UnderWay};
use grail_protocol::binding::Binding;
use grail_protocol::commitment::hash_sketches;
use grail_protocol::constants::{LAYER_INDEX, PROOF_VERSION, ROLLOUTS_PER_PROBLEM};
use grail_protocol::derivation::{challenge_text, hash_tokens};
use grail_protocol::keys::Hotkey;
use grail_protocol::row::{Commit, Commitments, ModelReference, Rollout, WindowRow};
use grail_store::window_file::{WindowMetadata, encode_group, splice};
use grail_supervision::journal::Journal;
use sha2::{Digest, Sha256};

const ROLLOUTS: usize = 5_000;
const TOKENS: usize = 1_200;
const PROMPT: usize = 200;
const WINDOW: i64 = 36_000;
const HASH: &str = "0x837511b40caa15ab18f504d83fbab6b52e443339632c0f0ea70d87bb106a79f8";

/// Numbers that are neither constant nor without structure, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

/// What workers and server deliver for one rollout.
struct Delivered {
    tokens: Vec<i32>,
    sketches: Vec<u32>,
    logprobs: Vec<f32>,
}

fn delivered() -> Vec<Delivered> {
    let mut numbers = Numbers(7);
    let sketch = |number: u64| (number % 8_000) as i64 - 4_000;
    let mut one = || Delivered {
        tokens: (0..TOKENS).map(|_| (numbers.next() % 151_936) as i32).collect(),
        sketches: (0..TOKENS).map(|_| sketch(numbers.next()).rem_euclid(2_147_483_647) as u32).collect(),
        logprobs: (0..TOKENS - PROMPT).map(|_| -((numbers.next() % 1_000_000) as f32) / 300_000.0).collect(),
    };
    (0..ROLLOUTS).map(|_| one()).collect()
}

fn row(hotkey: &Hotkey, place: usize, rollout: &Delivered) -> WindowRow {
    let randomness = &HASH[2..];
    let binding = Binding {
        tokens_hash: &hash_tokens(&rollout.tokens),
        randomness,
        model_name: "async_trainer_snapshot",
        layer_index: LAYER_INDEX,
        commitments_hash: &hash_sketches(&rollout.sketches),
    };
    let digest = binding.digest().expect("hexadecimal randomness");
    let challenge = challenge_text(HASH, place as i64);
    let mut token_logprobs = vec![0.0; PROMPT];
    token_logprobs.extend(&rollout.logprobs);
    WindowRow {
        window_start: WINDOW,
        block: WINDOW + 3,
        nonce: place as i64,
        block_hash: HASH.into(),
        randomness: randomness.into(),
        use_drand: false,
        rollout_group: (place / ROLLOUTS_PER_PROBLEM) as i64,
        rollout_index: (place % ROLLOUTS_PER_PROBLEM) as i32,
        total_in_group: ROLLOUTS_PER_PROBLEM as i32,
        checkpoint_window: WINDOW - 30,
        commit: Commit {
            tokens: rollout.tokens.clone(),
            commitments: Commitments::Sketches(rollout.sketches.clone()),
            proof_version: PROOF_VERSION.into(),
            model: ModelReference { name: "async_trainer_snapshot".into(), layer_index: LAYER_INDEX },
            signature: hex::encode(hotkey.sign(&digest)),
            beacon: serde_json::json!({ "randomness": randomness }),
            rollout: Rollout {
                total_reward: 0.5,
                advantage: 0.0,
                success: true,
                token_logprobs,
                prompt_length: PROMPT as i32,
                completion_length: (TOKENS - PROMPT) as i32,
            },
        },
        timestamp: 1.8e9,
        signature: hex::encode(hotkey.sign(challenge.as_bytes())),
        challenge,
        hotkey: hotkey.address().into(),
    }
}

fn figure(name: &str, mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!("{name:<52} min {:>8.3} s   median {median:>8.3} s", seconds[0]);
    median
}

fn mine_and_close_a_window() {
    let hotkey = Hotkey::from_uri("//Alice").expect("a development key");
    let delivered = delivered();
    let judge = Judge {
        hotkey: hotkey.address().into(),
        scheme: hotkey.scheme(),
        window: WINDOW as u64,
        block_hash: HASH.into(),
        checkpoint_window: WINDOW as u64 - 30,
        vocab_size: 151_936,
        max_positions: 32_768,
    };
    let metadata = WindowMetadata { wallet: hotkey.address().into(), window_start: WINDOW, timestamp: 1.8e9 };
    let folder = tempfile::tempdir_in(".").expect("a folder on the disk of this project");
    let (spool, _) =
        Spool::open(Arc::new(FileSystem), folder.path(), hotkey.address(), WINDOW as u64, &UnderWay::default(), u64::MAX)
            .expect("a spool");
    println!("While the window runs, per group of 16 rollouts of 1,200 tokens:");
    let (mut signing, mut encoding, mut judging, mut spooling) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut files, mut judged) = (Vec::new(), Vec::new());
    for (index, group) in delivered.chunks_exact(ROLLOUTS_PER_PROBLEM).enumerate() {
        let first = index * ROLLOUTS_PER_PROBLEM;
        let rows: Vec<WindowRow> = timed(&mut signing, || {
            group.iter().enumerate().map(|(place, rollout)| row(&hotkey, first + place, rollout)).collect()
        });
        let file: Bytes = timed(&mut encoding, || encode_group(&metadata, &rows).expect("rows are encoded")).into();
        judged.push(timed(&mut judging, || judge.judge_group(&file).expect("the group passes the gate")));
        let record = GroupRecord { header: header(&hotkey, index as i64), file };
        timed(&mut spooling, || spool.put(&record).expect("the disk takes the group"));
        files.push(record.file);
    }
    let sums = [&signing, &encoding, &judging, &spooling].map(|seconds| seconds.iter().sum::<f64>());
    figure("sign and hash", signing);
    figure("encode", encoding);
    figure("read back and judge", judging);
    figure("spool: write, flush, rename, flush the folder", spooling);
    println!("{:<52} {:>12.3} s", "all of that for 312 groups, on one core", sums.iter().sum::<f64>());
    println!("After the cut-off, for 312 groups (aim: well under 1 s):");
    let (mut splicing, mut gate, mut hashing, mut size) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..5 {
        let file: Bytes = timed(&mut splicing, || splice(&metadata, &files).expect("the file is put together")).into();
        timed(&mut gate, || judge.judge_file(&file, &judged).expect("the file passes the gate"));
        timed(&mut hashing, || Sha256::digest(&file));
        size = file.len();
    }
    let side_by_side = gate.iter().zip(&hashing).map(|(gate, hash)| gate.max(*hash));
    let total = splicing.iter().zip(side_by_side).map(|(one, other)| one + other).collect();
    figure("put the file together", splicing);
    figure("the gate on the whole file", gate);
    figure("beside it: hash it for the upload", hashing);
    figure("closing", total);
    println!("{:<52} {:>12.1} MiB", "the file", size as f64 / 1_048_576.0);
}

fn header(hotkey: &Hotkey, index: i64) -> GroupHeader {
    GroupHeader {
        wallet: hotkey.address().into(),
        window: WINDOW as u64,
        index,
        checkpoint_window: WINDOW as u64 - 30,
        worker: 0,
        reward_sum: 8.0,
        successes: 16,
    }
}

fn timed<T>(seconds: &mut Vec<f64>, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    seconds.push(begun.elapsed().as_secs_f64());
    done
}

fn write_the_journal() {
    let folder = tempfile::tempdir_in(".").expect("a folder on the disk of this project");
    let journal = Journal::open(folder.path());
    let event = |group| GroupKept { window: WINDOW as u64, group, worker: 3, durable: true, seconds: 41.25 };
    let mut seconds = Vec::new();
    for group in 0..2_000 {
        timed(&mut seconds, || journal.record(&event(group)));
    }
    journal.flush(Duration::from_secs(60));
    let bytes = std::fs::metadata(folder.path().join("journal.jsonl")).expect("a journal").len();
    let total: f64 = seconds.iter().sum();
    println!("{:<52} {:>12.1} µs", "a journal record costs its caller", 1e6 * total / 2_000.0);
    println!("{:<52} {:>12} bytes", "and takes on disk", bytes / 2_000);
}

fn proofs_over_a_socket() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let seconds: Vec<f64> = (0..5).map(|_| runtime.block_on(one_window_of_proofs()).as_secs_f64()).collect();
    let median = figure("5,000 proofs of 1,200 tokens over a Unix socket", seconds);
    println!("{:<52} {:.0} per second", "", ROLLOUTS as f64 / median);
}

async fn one_window_of_proofs() -> Duration {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = Listener::bind(&folder.path().join("run/bench.sock")).expect("a socket");
    let path = listener.path().to_owned();
    let worker = tokio::spawn(async move {
        let mut link: Connection<ToWorker, FromWorker> = Connection::connect(&path).await.expect("a connection");
        let sketches: Vec<u32> = (0..TOKENS as u32).map(|place| place.wrapping_mul(2_654_435_761) % 2_147_483_647).collect();
        let proof = |index: u32| SequenceProof {
            job: 0,
            index,
            sketches: sketches.clone(),
            logprobs: vec![-0.25; TOKENS - PROMPT],
            commitments_hash: [1; 32],
            examined: None,
        };
        for index in 0..ROLLOUTS as u32 {
            link.outbox.send(&FromWorker::Sequence(proof(index))).await.expect("a proof is sent");
        }
    });
    let mut link: Connection<FromWorker, ToWorker> = listener.accept(std::process::id()).await.expect("a worker");
    let begun = Instant::now();
    let mut received = 0;
    while link.inbox.receive().await.expect("a proof").is_some() {
        received += 1;
    }
    assert_eq!(received, ROLLOUTS);
    worker.await.expect("the worker ends");
    begun.elapsed()
}

fn main() {
    mine_and_close_a_window();
    write_the_journal();
    proofs_over_a_socket();
}
