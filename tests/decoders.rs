//! Decoders of what comes from outside, fed with hostile bytes: every file of their corpora as it is, and thousands of seeded
//! mutations of each. `fuzz/` drives the same functions over the same corpora for as long as one likes.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests may panic; the rules are for the product")]

use std::path::PathBuf;

use grail_fakes::hostile::{DECODERS, Mutator, feed};
use grail_link::encode_frame;
use grail_link::message::{
    ApplyCommand, ExamineTerms, Examined, FromLauncher, FromReader, FromWorker, ProofJob, ProofSequence, Question, ReloadCommand,
    Reloaded, Revision, SequenceProof, ToLauncher, ToReader, ToWorker, WorkerHello,
};
use grail_mining::spool::{GroupHeader, GroupRecord};
use grail_store::checkpoint::sparse::{self, SparseFormat, SparseTensor, ValueType};
use grail_supervision::journal;
use grail_tests::{programs, workspace};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Address space a decoder may add to the test's own: a length that is believed takes more and ends the test.
const HEADROOM: u64 = 4 << 30;
const SEED: u64 = 0x6772_6169_6c00_0001;

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut folders = vec![workspace().join("fuzz/corpus").join(name)];
    if name == "window_parquet" {
        let vectors = workspace().join("tests/vectors/parquet");
        folders.extend(["blockhash_1group", "drand_2groups", "empty", "reject"].map(|folder| vectors.join(folder)));
    }
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    let files = entries.map(|entry| entry.path()).filter(|path| path.extension().is_none_or(|kind| kind != "json"));
    let mut files: Vec<_> = files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    files.sort();
    assert!(!files.is_empty(), "the corpus of {name} is empty");
    files
}

fn bound_the_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let used = status.lines().find(|line| line.starts_with("VmSize")).unwrap();
    let used: u64 = used.split_whitespace().nth(1).unwrap().parse().unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, used * 1024 + HEADROOM, hard).unwrap();
}

/// A failure prints the seed's mutation, which then belongs into the corpus.
fn survives(name: &str, mutations: usize) {
    bound_the_memory();
    let corpus = corpus(name);
    for (path, bytes) in &corpus {
        let mut mutator = Mutator::new(SEED ^ path.file_name().unwrap().len() as u64);
        feed(name, bytes);
        for number in 0..mutations / corpus.len() + 1 {
            let damaged = mutator.damage(bytes);
            let fed = std::panic::catch_unwind(|| feed(name, &damaged));
            assert!(fed.is_ok(), "{name} fails at mutation {number} of {}: {}", path.display(), hex::encode(&damaged));
        }
    }
}

#[test]
fn frames_survive() {
    for (name, _) in DECODERS.iter().filter(|(name, _)| name.starts_with("frame")) {
        survives(name, 20_000);
    }
}

#[test]
fn bodies_of_deltas_survive() {
    survives("sparse_body", 4_000);
}

/// Children are started for these, so they are few.
#[test]
fn templates_and_tokenizers_survive() {
    programs();
    survives("checkpoint_texts", 12);
}

#[test]
fn window_files_survive() {
    survives("window_parquet", 1_200);
}

#[test]
fn spool_records_survive() {
    survives("spool_record", 600);
}

#[test]
fn journal_lines_survive() {
    survives("journal_line", 20_000);
}

#[test]
fn what_a_node_sends_survives() {
    // Mutations get nowhere from what is refused at once.
    for (path, bytes) in corpus("chain_metadata") {
        let traps = ["holds-itself", "compact-circle"];
        let trap = traps.iter().any(|trap| path.ends_with(trap));
        let decoded = grail_chain::metadata::Metadata::decode(&bytes).map(drop);
        assert_eq!(decoded.is_err(), trap, "{}: {decoded:?}", path.display());
    }
    survives("chain_metadata", 1_500);
    survives("chain_value", 3_000);
}

/// The corpora hold a file per message, as this build writes it: a message that changes changes the corpus. To
/// write it anew, run this test with `GRAIL_WRITE_CORPUS=1`.
#[test]
fn the_corpora_hold_every_message() {
    for (name, messages) in messages() {
        for (place, frame) in messages.into_iter().enumerate() {
            let path = workspace().join("fuzz/corpus").join(name).join(format!("message-{place}"));
            if std::env::var_os("GRAIL_WRITE_CORPUS").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &frame).unwrap();
            }
            let kept = std::fs::read(&path).unwrap_or_default();
            assert_eq!(kept, frame, "{} is of another build; see this test's comment", path.display());
        }
    }
}

fn messages() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let revision = Revision { window: 60, weights_hash: "0123456789abcdef".repeat(2) };
    let manifest = [("config.json".to_owned(), "ab".repeat(32))].into();
    let reload = ReloadCommand { revision: revision.clone(), directory: "/cache/checkpoint-60".into(), manifest };
    let apply = ApplyCommand {
        from: Revision { window: 30, weights_hash: "a".repeat(32) },
        revision: revision.clone(),
        files: vec!["/cache/changes-60.safetensors".into()],
    };
    let sequence = ProofSequence { tokens: vec![5, 300, 70_000, 2], prompt_length: 2, coefficients: [-127; 16] };
    let examine = ExamineTerms { temperature: 0.7, repetition_penalty: 1.1, eos_token_id: 2 };
    let job = ProofJob { id: 9, revision: revision.clone(), sequences: vec![sequence; 2], examine: Some(examine) };
    let proof = SequenceProof {
        job: 9,
        index: 1,
        sketches: vec![0, 250, 251, 65_536, 2_147_483_646],
        logprobs: vec![-0.5, -1e-9],
        commitments_hash: [7; 32],
        examined: Some(Examined { eos_probability: 0.9, probabilities: vec![0.25, 1.0] }),
    };
    let hello = WorkerHello {
        pid: 4_000_000,
        slot: 3,
        device: "cuda:0".into(),
        device_reason: Some("text".into()),
        device_name: "NVIDIA A100-SXM4-80GB".into(),
        driver: Some("13.0".into()),
        libtorch: "2.11.0".into(),
        dtype: "bf16".into(),
        attention: "cpu-flash".into(),
        precision_tuning: 1,
        tf32_overrides: Vec::new(),
        mode: "packed-shared".into(),
    };
    let reloaded = Reloaded {
        revision: revision.clone(),
        weights_hash: "f".repeat(32),
        vocab_size: 151_936,
        max_positions: 32_768,
        batch_bytes: Some(1 << 30),
        seconds: 1.5,
    };
    let refused = || (revision.clone(), "tensor model.norm.weight is missing".to_owned());
    let from_worker = [
        FromWorker::Hello(hello),
        FromWorker::Reloaded(reloaded),
        FromWorker::ReloadRefused { revision: refused().0, reason: refused().1 },
        FromWorker::Sequence(proof),
        FromWorker::JobDone { job: 9, seconds: 0.25, seconds_beside: 0.01 },
        FromWorker::FrameRefused { reason: "268435457 bytes; at most 268435456".into() },
        FromWorker::JobRefused { job: 9, reason: "out of memory".into() },
    ];
    let from_launcher = [
        FromLauncher::Hello { pid: 77, backend: "embedded".into() },
        FromLauncher::Serving { revision: revision.clone(), url: "http://127.0.0.1:30000".into(), context_length: 12_288 },
        FromLauncher::ReloadRefused { revision: refused().0, reason: refused().1 },
    ];
    let to_reader = ToReader { questions: vec![Question::Prompt("Why?".into()), Question::Text(vec![5, 300, 70_000, 2])] };
    let from_reader = [
        FromReader::Opened { eos_token_id: 151_645 },
        FromReader::Refused { reason: refused().1 },
        FromReader::Prompt(vec![1, 2, 70_000]),
        FromReader::Text("<SOLUTION>4</SOLUTION><|im_end|>".into()),
        FromReader::Failed { reason: refused().1 },
    ];
    let tensor = SparseTensor {
        name: "model.norm.weight".into(),
        shape: vec![3, 400],
        value_type: ValueType::Bf16,
        positions: vec![1, 2, 401, 1199],
        values: vec![1, 2, 3, 4, 5, 6, 7, 8],
    };
    let bodies = SparseFormat::ALL.map(|format| sparse::encode(std::slice::from_ref(&tensor), format)).to_vec();
    let spooled = GroupRecord {
        header: GroupHeader {
            wallet: "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY".into(),
            window: 60,
            index: 7,
            checkpoint_window: 30,
            worker: 1,
            reward_sum: 3.5,
            successes: 4,
        },
        file: std::fs::read(workspace().join("tests/vectors/parquet/blockhash_1group/window.parquet")).unwrap().into(),
    };
    let data = serde_json::json!({"window": 60, "outcome": "lost", "reason": "the deadline", "mean_reward": 0.25});
    let line = journal::Entry { seq: 7, time: 1_795_229_641.25, kind: "window_ended".into(), data };
    vec![
        ("spool_record", vec![spooled.encode().unwrap()]),
        ("journal_line", vec![journal::encode(&line).into_bytes()]),
        ("sparse_body", bodies),
        ("frame_to_reader", vec![encode_frame(&to_reader).unwrap()]),
        ("frame_from_reader", from_reader.iter().map(|message| encode_frame(message).unwrap()).collect()),
        (
            "frame_to_worker",
            [ToWorker::Reload(reload.clone()), ToWorker::Apply(apply), ToWorker::Prove(job)]
                .iter()
                .map(|message| encode_frame(message).unwrap())
                .collect(),
        ),
        ("frame_from_worker", from_worker.iter().map(|message| encode_frame(message).unwrap()).collect()),
        ("frame_to_launcher", vec![encode_frame(&ToLauncher::Reload(reload)).unwrap()]),
        ("frame_from_launcher", from_launcher.iter().map(|message| encode_frame(message).unwrap()).collect()),
    ]
}
