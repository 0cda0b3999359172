//! `doctor` against a node and a bucket with a writer's and a reader's pair: what is in order, and each thing that is not.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::path::Path;
use std::time::Duration;

use grail_fakes::{LyingBucket, MINER_BUCKET, READ_PAIR, Script, WRITE_PAIR, WorkerCue, WorkerLie};
use grail_node::{BlockClock, Setup, TestNode};
use grail_protocol::keys::Hotkey;
use grail_protocol::window::object_key;
use grail_settings::Secret;
use grail_subnet::buckets::Buckets;
use grail_subnet::chain::BucketCommitment;
use grail_tests::{Cast, Finished, Host, free_port, now, workspace, write_program};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Nobody listens there: a relay that fails at once.
const NO_RELAY: &str = "beacon.relays=http://127.0.0.1:1";
const EVERY_ROW: [&str; 28] = [
    "settings",
    "wallet",
    "chain",
    "clock",
    "registration",
    "publication",
    "trainer",
    "drand",
    "bucket write",
    "bucket read",
    "read-only pair",
    "window files",
    "checkpoint",
    "disk",
    "memory",
    "open files",
    "ports",
    "state",
    "dataset",
    "GPUs",
    "proof worker",
    "server",
    "compilers",
    "caches",
    "shared memory",
    "temporary files",
    "proxy",
    "variables",
];

fn key(uri: &str) -> [u8; 32] {
    Hotkey::from_uri(uri).unwrap().public_key()
}

/// A miner on a network: registered and published, a checkpoint in the trainer's bucket.
struct TestMiner {
    host: Host,
    node: TestNode,
    _bucket: LyingBucket,
    _runtime: tokio::runtime::Runtime,
}

impl TestMiner {
    fn start() -> Self {
        Self::with(&workspace().join("demo/checkpoint-a").display().to_string(), |_| {})
    }

    /// With a checkpoint, which may lie in the host's folder.
    fn with(checkpoint: &str, prepare: impl Fn(&Path)) -> Self {
        // Long blocks: if publishing takes a minute it is still in block 30's window.
        let host = Host::new(4.0, -2.0);
        prepare(host.path());
        let published = host.publish(&host.path().join(checkpoint).display().to_string(), &[]);
        assert_eq!(published.code, 0, "{}", published.stderr);
        let bucket = LyingBucket::start(&host.path().join("buckets"), Vec::new()).unwrap();
        let mut setup = Setup::new(&workspace().join("tests/vectors"));
        // A window after the checkpoint's is under way.
        setup.clock = Some(BlockClock { genesis: now() - 65.0, seconds: 1.0 });
        // What is published is there at once: a block made for it would be ahead of its time, which the clock's row tells.
        setup.finality_lag = 0;
        setup.members = vec![key("//Trainer"), key("//Alice")];
        setup.commitments = vec![(key("//Trainer"), Buckets::local_trainer().encode().unwrap())];
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let node = runtime.block_on(TestNode::start(setup));
        let host = host.variable("BT_CHAIN_ENDPOINT", &node.endpoint()).variable("BT_CLOSE_TIMEOUT", "60").with_bucket(&bucket);
        // A full spool's four gigabytes are more than a machine that runs tests has to have free.
        let host = host.set("spool.budget_mib", "16");
        // As the node's: a miner does not believe blocks that come faster, and would mine in the window of its start only.
        let host = host.set("chain.block_seconds", "1.0");
        let site = Self { host, node, _bucket: bucket, _runtime: runtime };
        site.publish_pair(READ_PAIR);
        site
    }

    fn publish_pair(&self, (id, secret): (&str, &str)) {
        let (account_id, access_key_id) = (MINER_BUCKET.into(), id.into());
        let commitment = BucketCommitment { account_id, access_key_id, secret_access_key: Secret::new(secret) };
        self.node.commit(&key("//Alice"), &commitment.encode().unwrap());
    }

    /// The doctor's exit code and rows, with more settings.
    fn examine(&self, more: &[&str]) -> Rows {
        let before = objects(&self.host.miner_bucket());
        let mut arguments = vec!["doctor", "--json", "--set", NO_RELAY];
        more.iter().for_each(|setting| arguments.extend(["--set", setting]));
        let finished = self.host.run(&arguments);
        let answer: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.stderr));
        for secret in [READ_PAIR.1, WRITE_PAIR.1] {
            assert!(!finished.stdout.contains(secret) && !finished.stderr.contains(secret), "{}", finished.stdout);
        }
        let rows = Rows { code: finished.code, answer };
        assert_eq!(objects(&self.host.miner_bucket()), before, "nothing of the doctor's stays in the bucket");
        rows
    }
}

fn objects(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { objects(&path) } else { vec![path] }).collect()
}

struct Rows {
    code: i32,
    answer: Value,
}

impl Rows {
    fn all(&self) -> &[Value] {
        self.answer["rows"].as_array().unwrap()
    }

    /// Asserts a row's verdict and that its text holds `word`; the exit code follows from all rows.
    #[track_caller]
    fn has(&self, what: &str, verdict: &str, word: &str) {
        let found = self.all().iter().filter(|row| row["what"] == what && row["verdict"] == verdict);
        let texts: Vec<String> = found.map(ToString::to_string).collect();
        assert!(
            texts.iter().any(|text| text.contains(word)),
            "no {what} that is {verdict} and says {word:?} in\n{:#}",
            self.answer
        );
        let failed = self.all().iter().filter(|row| row["verdict"] == "failed").count();
        assert_eq!((self.code, self.answer["failed"].as_u64()), (i32::from(failed > 0), Some(failed as u64)));
        for what in EVERY_ROW {
            assert!(self.all().iter().any(|row| row["what"] == what), "no {what} in\n{:#}", self.answer);
        }
    }
}

#[test]
fn a_host_in_order_passes_and_each_fault_has_its_row() {
    let site = TestMiner::start();
    let rows = site.examine(&[]);
    // How much of these a machine that runs tests has is not the matter here; a want that would stop mining is.
    let machines = |row: &Value| ["disk", "memory", "open files"].iter().any(|what| row["what"] == *what);
    let amiss = |row: &&Value| row["verdict"] == "failed" || row["verdict"] != "ok" && row["what"] != "drand" && !machines(row);
    let amiss: Vec<&Value> = rows.all().iter().filter(amiss).collect();
    assert!(amiss.is_empty() && rows.code == 0, "{amiss:#?}");
    rows.has("drand", "warning", "127.0.0.1:1");
    rows.has("registration", "ok", "UID 1 on subnet 81");
    rows.has("bucket read", "ok", "the pair published on chain");
    rows.has("window files", "ok", "");
    rows.has("checkpoint", "ok", "(FULL) for gsm8k");
    rows.has("checkpoint", "ok", "its template and tokenizer make a prompt");
    rows.has("proof worker", "ok", "libtorch 2.11");
    rows.has("proof worker", "ok", "in f32, cpu-flash attention, packed-shared, tuning 0; it proved a small sequence");
    rows.has("variables", "ok", "BT_CLOSE_TIMEOUT");
    rows.has("compilers", "ok", "not needed");

    // The chain still holds the write pair: everybody could write.
    site.publish_pair(WRITE_PAIR);
    let rows = site.examine(&["proof.dtype=f16", "proof.force_eager_attention=true"]);
    rows.has("proof worker", "ok", "in f16, eager attention, packed-shared, tuning 0; it proved a small sequence");
    rows.has("publication", "warning", "another read pair");
    rows.has("read-only pair", "failed", "may PUT and DELETE");
    rows.has("bucket read", "ok", "not on chain yet");
    site.publish_pair((READ_PAIR.0, "mistyped"));
    let rows = site.examine(&["proof.dtype=bf16", "proof.mode=exact", "proof.precision_tuning=2"]);
    rows.has("proof worker", "ok", "in bf16, eager attention, exact, tuning 2; it proved a small sequence");
    rows.has("bucket read", "warning", "may not HEAD");
    rows.has("read-only pair", "ok", "denied");
    // Configured wrong as well, it is a fault.
    let rows = site.examine(&["storage.read_secret_access_key=amistyped"]);
    rows.has("bucket read", "failed", "may not HEAD");
    site.publish_pair(READ_PAIR);

    // Somebody has laid something beside a window's file, which may still be judged.
    let window = site.node.height() / 30 * 30;
    let twin = site.host.miner_bucket().join(object_key(Hotkey::from_uri("//Alice").unwrap().address(), window) + ".gz");
    std::fs::create_dir_all(twin.parent().unwrap()).unwrap();
    std::fs::write(&twin, "not a window's file").unwrap();
    site.examine(&[]).has("window files", "failed", &format!("-window-{window}.parquet.gz"));
    std::fs::remove_file(&twin).unwrap();

    // One thing that fails stops nothing else.
    let nobody = format!("chain.endpoint=ws://127.0.0.1:{}", free_port());
    let rows = site.examine(&["storage.write_secret_access_key=mistyped", "wallet.development=", &nobody]);
    rows.has("wallet", "failed", "there is no hotkey file");
    rows.has("chain", "failed", "chain.endpoint");
    rows.has("clock", "not_asked", "");
    rows.has("publication", "not_asked", "");
    rows.has("bucket write", "failed", "the write pair may not PUT");
    rows.has("bucket read", "not_asked", "block 0");
    rows.has("window files", "not_asked", "there is no hotkey");
    rows.has("checkpoint", "not_asked", "");
    rows.has("proof worker", "ok", "");
    // Nor does a mistake in the settings.
    let mistaken = ["storage.bucket=", "wallet.development=", "wallet.cold=a/b", "generation.backend=none", "upload.part_kib=64"];
    let rows = site.examine(&mistaken);
    rows.has("settings", "failed", "generation.backend = \\\"none\\\"");
    rows.has("settings", "failed", "set 5120 or more");
    rows.has("wallet", "failed", "is not a plain name");
    rows.has("bucket write", "failed", "storage.bucket is not set");
    rows.has("chain", "ok", "");
    rows.has("trainer", "ok", "");
    rows.has("dataset", "ok", "");
    rows.has("GPUs", "not_asked", "row settings");
    rows.has("server", "not_asked", "row settings");
}

#[test]
fn a_host_that_cannot_work_is_told_why() {
    let site = TestMiner::with("model", |folder| {
        let model = folder.join("model");
        std::fs::create_dir(&model).unwrap();
        for entry in std::fs::read_dir(workspace().join("demo/checkpoint-a")).unwrap().flatten() {
            std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
        }
        std::fs::write(model.join("chat_template.jinja"), "{% if messages %}").unwrap();
    });
    // Every window would be skipped.
    site.examine(&[]).has("checkpoint", "failed", "chat template");
    let ready = site.host.trainer_bucket().join("grail/checkpoints");
    std::fs::rename(&ready, ready.with_file_name("elsewhere")).unwrap();
    std::fs::write(site.host.path().join("not-a-folder"), "").unwrap();
    let rows = site.examine(&[
        "generation.backend=sglang",
        "generation.sglang_python=/no/such/python",
        "environment.dataset=/no/such/file",
        "checkpoints.cache=not-a-folder/cache",
        "programs.folder=/no/such/folder",
        "storage.bucket=other",
        "chain.netuid=7",
    ]);
    rows.has("registration", "failed", "has no subnet 7");
    rows.has("trainer", "warning", "");
    rows.has("bucket read", "failed", "does not find what was just written");
    rows.has("checkpoint", "not_asked", "");
    rows.has("disk", "failed", "not-a-folder");
    rows.has("dataset", "failed", "/no/such/file");
    rows.has("GPUs", "failed", "out of range");
    rows.has("proof worker", "failed", "grail-proof-worker");
    rows.has("server", "failed", "generation.sglang_python");
    // What a host that builds this has of CUDA's compilers is not the matter here.
    assert!(rows.all().iter().any(|row| row["what"] == "compilers" && row["found"].as_str().unwrap().contains("nvcc")));
    // A worker that says hello like any other, and dies of its first proof.
    let cue = WorkerCue { slot: None, life: None, job: 1, count: 1, lie: WorkerLie::Die };
    let site = TestMiner { host: site.host.cast(Cast::Fakes, &Script { worker: vec![cue], ..Script::default() }), ..site };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("storage.local_address={}", taken.local_addr().unwrap());
    let python = stand_in(site.host.path(), "echo usage: --port");
    let sglang = ["generation.backend=sglang", "generation.device=cpu", &format!("generation.sglang_python={python}")];
    let rows = site.examine(&[&["storage.local_folder=buckets", &address][..], &sglang].concat());
    rows.has("proof worker", "failed", "and cannot prove: it ");
    rows.has("proof worker", "failed", "the script ends this life in the middle of a job");
    rows.has("ports", "failed", &taken.local_addr().unwrap().to_string());
    rows.has("checkpoint", "warning", "no checkpoint was ready");
    rows.has("server", "ok", "SGLang 0.5.23");
    // What `.env` says for children reaches them, and nothing else of it.
    stand_in(site.host.path(), "echo 'ImportError: libcudart.so.13' in $HF_HOME${HF_TOKEN}, $NCCL_DEBUG >&2; exit 1");
    std::fs::write(site.host.path().join(".env"), "HF_HOME=/hub\nHF_TOKEN=hushhush\nNCCL_DEBUG='INFO'\n").unwrap();
    let nowhere = format!("storage.endpoint=http://127.0.0.1:{}", free_port());
    let rows = site.examine(&[&sglang[..], &[&nowhere]].concat());
    rows.has("server", "failed", "ImportError: libcudart.so.13 in /hub, INFO");
    rows.has("bucket write", "failed", "gives no answer");
    rows.has("read-only pair", "not_asked", "");
    rows.has("checkpoint", "failed", "");

    // The node's block 0 is finney's: its validators, and the trainer, are not where this bucket is. They are not asked, and
    // what the settings name is not either.
    let finney = hex::decode("2f0555cc76fc2840a25a6ea3b9637146806f1f44b090c175ffde2a7e5ab36c03").unwrap().try_into().unwrap();
    site.node.faults(|faults| faults.genesis = Some(finney));
    let rows = site.examine(&["chain.netuid=7"]);
    rows.has("bucket write", "failed", "storage.account_id has 11 characters where exactly 32");
    rows.has("bucket write", "failed", "everybody knows");
    rows.has("bucket read", "not_asked", "validators do not look where the settings say");
    rows.has("read-only pair", "not_asked", "");
    rows.has("window files", "not_asked", "");
    rows.has("dataset", "failed", "is not the network's");
}

/// A Python that has SGLang installed, and does this when it is started.
fn stand_in(folder: &Path, start: &str) -> String {
    let path = folder.join("python");
    write_program(&path, &format!("if [ \"$1\" = -c ]; then echo sglang 0.5.23; else {start}; fi"));
    path.display().to_string()
}

/// In every place where a secret can stand: each command's output, the log at its most talkative, status, journal and incident. The
/// longest of these tests, and the first by its name, so that the others run beside it.
#[test]
fn a_command_shows_no_secret_in_any_output() {
    const CANARY: &str = "c4n4ry";
    let site = TestMiner::start();
    // The node and the bucket answer under whatever path.
    let endpoint = format!("{}/v1/{CANARY}-chain-0001?key={CANARY}-chain-0002", site.node.endpoint());
    let nobody = format!("http://user:{CANARY}-user-0003@127.0.0.1:{}/{CANARY}-path-0004", free_port());
    let TestMiner { host, node: _node, _bucket, _runtime } = site;
    let settings = host.path().join("host.toml");
    let text = std::fs::read_to_string(&settings).unwrap() + &format!("[beacon]\nrelays = '{nobody}'\n");
    let text =
        text.replace("[generation]\n", &format!("[generation]\nextra_arguments = '--api-key {CANARY}-word-0005 --x {nobody}'\n"));
    std::fs::write(&settings, &text).unwrap();
    let host = host
        .cast(Cast::Fakes, &Script { completion_seconds: 0.2, job_seconds: 0.1, ..Script::default() })
        .variable("BT_CHAIN_ENDPOINT", &endpoint)
        .variable("HF_TOKEN", &format!("{CANARY}-variable-0006"));
    // Where it counts as if it had been exported.
    let log = "debug,hyper=trace,hyper_util=trace,reqwest=trace,grail_chain=trace,s3s=info";
    let dot_env = format!("export RUST_LOG={log}\nHF_HOME=/hub\nWANDB_API_KEY={CANARY}-dotenv-0007\n");
    std::fs::write(host.path().join(".env"), dot_env).unwrap();
    let (local, sglang) = ("chain.endpoint=", ["--set", "generation.backend=sglang", "--set", "generation.device=cpu"]);
    let ended = |finished: Finished, code: i32| {
        assert_eq!(finished.code, code, "{}\n{}", finished.stdout, finished.stderr);
        finished.stdout + &finished.stderr
    };
    ended(host.run(&["check"]), 0);
    let explained = ended(host.run(&["config", "explain"]), 0);
    assert!(
        explained.contains("ws://127.0.0.1") && explained.contains("/…") && explained.contains("--api-key (hidden)"),
        "{explained}"
    );
    let planned = ended(host.run(&[&["plan"], &sglang[..]].concat()), 0);
    assert!(planned.contains("--api-key (hidden) --x http://127.0.0.1:"), "{planned}");
    for form in [&["doctor"][..], &["doctor", "--json"]] {
        let told = host.run(form).stdout;
        assert!(told.contains("http://127.0.0.1:") && told.contains("it proved a small sequence"), "{told}");
    }
    let mut miner = host.start(&["run"]);
    host.await_status("a finished group", &mut miner, 120, |status| status["window"]["spooled"].as_u64() >= Some(1));
    for (child, line) in host.processes() {
        let Ok(environment) = std::fs::read(format!("/proc/{}/environ", child.pid)) else { continue };
        let environment = String::from_utf8_lossy(&environment);
        assert!(child.pid.cast_signed() == miner.pid() || environment.contains("\0HF_HOME=/hub\0"), "{line}: {environment}");
        assert!(!environment.contains("dotenv-0007"), "{line}: {environment}");
    }
    miner.signal(Signal::SIGTERM);
    let mined = ended(miner.finish(Duration::from_secs(120)), 0);
    assert!(mined.contains("Connected to a node of the chain") && mined.contains("no drand relay"), "{mined}");
    assert!(mined.contains("DEBUG"), "{mined}");
    ended(host.run(&["status"]), 0);
    ended(host.run(&["explain"]), 0);
    ended(host.run(&["simulate", "--windows", "1"]), 0);
    host.run(&["validate", "--test-mode", "--last", "1"]);
    host.publish("checkpoint-b", &["--set", local]);
    ended(host.run(&["incident", "--output", "incident.tar.gz"]), 0);
    let packed = std::fs::File::open(host.path().join("incident.tar.gz")).unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(packed)).unpack(host.path().join("incident")).unwrap();
    // And everything that is refused, with servers that run elsewhere, a chain and a bucket that do not answer.
    let elsewhere = text.replace("max_model_length", &format!("servers = '{nobody}'\nmax_model_length"));
    std::fs::write(&settings, elsewhere.replace("relays = ", "relays = 7 # ")).unwrap();
    ended(host.run(&[&["run"], &sglang[..]].concat()), 64);
    std::fs::write(&settings, elsewhere).unwrap();
    ended(host.run(&[&["plan"], &sglang[..]].concat()), 0);
    ended(host.run(&["run"]), 64);
    let unreachable = host.variable("BT_CHAIN_ENDPOINT", &nobody.replace("http", "ws")).variable("R2_ENDPOINT_URL", &nobody);
    let told = unreachable.run(&[&["doctor"], &sglang[..]].concat()).stdout;
    assert!(told.contains("ws://127.0.0.1:") && told.contains("no node answers"), "{told}");
    let told = shown(unreachable.path());
    assert!(told.len() > 30 && told.iter().any(|(name, _)| name.ends_with("journal.jsonl")), "{told:?}");
    for (name, bytes) in &told {
        let text = String::from_utf8_lossy(bytes);
        for secret in [CANARY, READ_PAIR.1, WRITE_PAIR.1] {
            let line = text.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{name} shows {secret}: {}", line.unwrap_or_default());
        }
    }
}

/// Every file below a folder that somebody may be shown, the settings and the buckets themselves apart.
fn shown(folder: &Path) -> Vec<(String, Vec<u8>)> {
    // The local chain's file stands for the chain, on which the read pair is published.
    let own = [".env", "host.toml", "buckets", "cache", "programs", "incident.tar.gz", "chain.json"];
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let entries = entries.filter(|entry| own.iter().all(|own| entry.file_name() != *own));
    let read = |entry: std::fs::DirEntry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => shown(&entry.path()),
        kind if kind.is_file() => vec![(entry.path().display().to_string(), std::fs::read(entry.path()).unwrap())],
        _ => Vec::new(),
    };
    entries.flat_map(read).collect()
}
