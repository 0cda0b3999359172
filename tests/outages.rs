//! What happens around a window while it is mined: the host is suspended, its clock is set, the chain falls silent or is
//! reorganised. Against the node of the tests, with fakes for workers and server: whatever happens, nothing late or wrong is
//! uploaded, a window that can be saved is saved, and the next one is mined. A word on the command line filters.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use axum::http::Method;
use grail_fakes::{BucketCue, BucketLie, LyingBucket, Script};
use grail_node::TestNode;
use grail_store::checkpoint::signed_bytes;
use grail_tests::set_clock::WallClock;
use grail_tests::side_by_side::{Scenario, play};
use grail_tests::{Cast, Host, Running, oracle, points, testnet, tree, workspace};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Windows of twelve seconds: eight to mine and upload in, four of slack.
const BLOCK_SECONDS: f64 = 0.4;
const LEAD: f64 = 5.0;
/// The first window with a checkpoint.
const FIRST: u64 = 30;
const HOUR: i64 = 3600;

fn main() -> ExitCode {
    // Built before any host's clock starts.
    points::supervisor();
    println!("Fakes stand in for workers and generation server, a node of the tests' own for the chain.");
    let mut scenarios = vec![
        Scenario::new("suspended-for-more-than-a-window", suspended),
        Scenario::new("clock-set-an-hour-ahead", || clock_set(HOUR)),
        Scenario::new("clock-set-an-hour-back", || clock_set(-HOUR)),
        Scenario::new("chain-stands-still", || silent(|node, still| node.faults(|faults| faults.frozen = still))),
        Scenario::new("chain-is-unreachable", || {
            silent(|node, down| {
                node.faults(|faults| faults.down = down);
                node.drop_connections();
            })
        }),
    ];
    scenarios.extend([
        Scenario::new("node-tells-absurd-heads", absurd_heads),
        Scenario::new("chain-is-reorganised-after-the-upload", reorganised),
        Scenario::new("chain-is-reorganised-between-two-runs", || {
            reorganised_between_runs(Vec::new(), "Validators would reject a window's file; it was removed")
        }),
        Scenario::new("bucket-hangs-as-the-earlier-file-goes", || {
            let hangs = BucketCue { method: Method::DELETE, path: "window-30.parquet", count: u32::MAX, lie: BucketLie::Hang };
            reorganised_between_runs(vec![hangs], "")
        }),
        Scenario::new("killed-before-the-first-block-is-final", || reorganised_while_nobody_watches(Signal::SIGKILL)),
        Scenario::new("stopped-before-the-first-block-is-final", || reorganised_while_nobody_watches(Signal::SIGTERM)),
        Scenario::new("no-checkpoint-is-ready", || skipped(|_| (), "there is no checkpoint that was ready before this window")),
        Scenario::new("checkpoint-with-a-bad-temperature", || skipped(too_hot, "generation_params.temperature")),
        Scenario::new("bucket-answers-in-the-next-window", two_at_once),
        Scenario::new("checkpoint-with-a-damaged-shard", || bad_checkpoint(damage_shard, "has sha256", mend_shard)),
        Scenario::new("checkpoint-without-a-shard", || bad_checkpoint(remove_shard, "lacks the file", mend_shard)),
        Scenario::new("checkpoint-without-its-anchor", || {
            bad_checkpoint(remove_anchor, "which is not in the bucket", restore_anchor)
        }),
        Scenario::new("checkpoint-arrives-late-from-a-bucket-that-fails", late_checkpoint),
        Scenario::new("trainers-bucket-hangs-beside-durable-groups", trainer_hangs),
        Scenario::new("checkpoint-with-a-bad-signature", unsigned_checkpoint),
        Scenario::new("supervisor-killed-in-a-reload", killed_in_a_reload),
    ]);
    play(scenarios, 8)
}

/// A host with a checkpoint on a node, and its miner.
struct TestMiner {
    host: Host,
    node: TestNode,
    miner: Running,
    _runtime: tokio::runtime::Runtime,
}

impl TestMiner {
    fn open(prepare: impl FnOnce(Host) -> Host) -> Self {
        Self::with_blocks(BLOCK_SECONDS, prepare)
    }

    fn with_blocks(seconds: f64, prepare: impl FnOnce(Host) -> Host) -> Self {
        Self::with_checkpoint(seconds, prepare, |host| drop(testnet::publish(host, "checkpoint-a", &[])))
    }

    fn with_checkpoint(seconds: f64, prepare: impl FnOnce(Host) -> Host, publish: impl FnOnce(&Host)) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let script = Script { job_seconds: 0.3, completion_seconds: 0.1, load_seconds: 0.1, ..Script::default() };
        let host = prepare(Host::new(seconds, LEAD).cast(Cast::Fakes, &script).with_failpoints());
        let host = host.set("beacon.drand", "false");
        let (host, node) = testnet::registered(&runtime, host);
        publish(&host);
        let miner = host.start(&["run"]);
        Self { host, node, miner, _runtime: runtime }
    }

    /// The first window that has two durable groups: on a loaded machine one or two pass before.
    fn mining(&mut self) -> u64 {
        let window = |status: &Value| status["window"]["window"].as_u64().unwrap_or(0);
        let wanted = |status: &Value| window(status) >= FIRST && status["window"]["spooled"].as_u64() >= Some(2);
        window(&self.host.await_status("two durable groups", &mut self.miner, 120, wanted))
    }

    fn ended(&mut self, what: &str, wanted: impl Fn(u64, &str) -> bool) -> Value {
        self.host.await_status(what, &mut self.miner, 120, |status| {
            let finished = status["finished"].as_array().map(Vec::as_slice).unwrap_or_default();
            finished
                .iter()
                .any(|window| wanted(window["window"].as_u64().unwrap_or(0), window["outcome"].as_str().unwrap_or_default()))
        })
    }

    /// A later one will do: a machine that stands still for a second has lost a window of twelve.
    fn uploaded(&mut self, window: u64) -> Value {
        self.ended(&format!("window {window} in the bucket"), |found, outcome| found >= window && outcome == "uploaded")
    }

    fn has_file(&self, window: u64) -> bool {
        let name = format!("window-{window}.parquet");
        self.host.uploaded().iter().any(|path| path.to_string_lossy().ends_with(&name))
    }

    /// Ends it, and judges everything by the oracle. `windows` must be in the bucket.
    fn judged(self, windows: &[u64], more: &[&str]) -> Result<String, String> {
        self.miner.signal(Signal::SIGTERM);
        let code = self.miner.finish(Duration::from_secs(120)).code;
        let judged = if code == 0 { oracle::judge(&self.host, more) } else { Err(format!("it ended with {code}")) };
        match judged {
            Ok(account) if windows.iter().all(|window| account.windows.contains(window)) => Ok(account.to_string()),
            Ok(account) => Err(format!("{windows:?} should be there: {account}\n{}", self.host.log())),
            Err(why) => Err(format!("{why}\n{}", self.host.log())),
        }
    }

    /// From now on the status is that of the present run.
    fn restarted(&mut self) {
        let pid = self.miner.pid();
        self.host.await_status("the second run", &mut self.miner, 120, |status| status["pid"] == pid);
    }

    fn unsaid(&self, words: &str) -> Result<(), String> {
        if self.host.log().contains(words) { Err(format!("{words:?} is said\n{}", self.host.log())) } else { Ok(()) }
    }

    fn said(&self, words: &str) -> Result<(), String> {
        match self.host.log().matches(words).count() {
            1 => Ok(()),
            count => Err(format!("{count} times {words:?}\n{}", self.host.log())),
        }
    }
}

/// The whole family stands still for more than a window, as in a suspend.
fn suspended() -> Result<String, String> {
    let mut site = TestMiner::open(|host| host);
    let first = site.mining();
    let family = tree(site.miner.pid());
    let all = |signal| family.iter().filter(|process| !process.signal(signal).unwrap_or(false)).count();
    all(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs_f64(40.0 * BLOCK_SECONDS));
    all(Signal::SIGCONT);
    site.ended("the window that was slept through", |window, outcome| window == first && outcome == "lost");
    site.uploaded(first + 30);
    if site.has_file(first) { Err("a file came too late".into()) } else { site.judged(&[], &[]) }
}

/// The host's wall clock jumps in mid-window and is set right two windows later.
fn clock_set(seconds: i64) -> Result<String, String> {
    let (mut clock, mut bucket) = (None, None);
    let mut site = TestMiner::open(|host| {
        let (host, wall) = WallClock::of(host);
        let lying = LyingBucket::start(&host.path().join("buckets"), Vec::new()).unwrap();
        let host = host.with_bucket(&lying);
        (clock, bucket) = (Some(wall), Some(lying));
        host
    });
    let clock = clock.unwrap();
    let first = site.mining();
    clock.set_ahead(seconds);
    site.uploaded(first);
    site.uploaded(first + 30);
    site.said("says that it was right before")?;
    clock.set_ahead(0);
    site.judged(&[first], &[])
}

/// The chain tells nothing from the middle of a window until its file is uploaded.
fn silent(fault: impl Fn(&TestNode, bool)) -> Result<String, String> {
    let mut site = TestMiner::open(|host| host);
    let first = site.mining();
    fault(&site.node, true);
    site.uploaded(first);
    // On a slow machine the window's end may come before five blocks are missing.
    let told = |status: &Value| {
        let age = status["chain"]["age_seconds"].as_f64().unwrap_or(0.0);
        status["chain"]["stale"] == true && age >= 5.0 * BLOCK_SECONDS
    };
    site.host.await_status("the silence in the status", &mut site.miner, 120, told);
    fault(&site.node, false);
    site.uploaded(first + 30);
    // A machine that stands still for two seconds makes a silence too: each is told once, and its end once.
    let count = |words: &str| Some(site.host.log().matches(words).count() as u64).filter(|count| *count > 0);
    let over = |status: &Value| {
        let events = |kind: &str| status["events"][kind].as_u64();
        status["chain"]["stale"] == false
            && events("chain_silent") == events("chain_answers_again")
            && count("The chain has told no new block for several block times") == events("chain_silent")
            && count("The chain tells new blocks again") == events("chain_silent")
    };
    site.host.await_status("each silence told once, and its end", &mut site.miner, 120, over);
    site.judged(&[first], &[])
}

/// A node tells heads that no clock allows, in the middle of a window and after it: nothing of the present window is removed, and the
/// next ones are mined.
fn absurd_heads() -> Result<String, String> {
    let mut site = TestMiner::with_blocks(0.6, |host| host);
    let groups = |site: &TestMiner, window: u64| {
        let folder = std::fs::read_dir(site.host.path().join(format!("state/spool/{window}"))).into_iter().flatten().flatten();
        folder.filter(|entry| entry.file_name().to_string_lossy().starts_with("group-")).count()
    };
    let doubts = |site: &TestMiner| site.host.log().matches("A head is not believed").count();
    // The next true head comes a moment later, so it is told until it was seen.
    let tell = |site: &TestMiner, head: u64| {
        let (before, end) = (doubts(site), std::time::Instant::now() + Duration::from_secs(60));
        while doubts(site) == before {
            assert!(std::time::Instant::now() < end, "head {head} was not doubted\n{}", site.host.log());
            site.node.tell_head(head);
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let mined = |status: &Value| status["window"]["phase"] == "mining" && status["window"]["spooled"].as_u64() >= Some(2);
    let mut struck = 0;
    // A window may end by itself at that moment; then the next one is struck.
    for head in (40..48).map(|bit| 1 << bit) {
        let status = site.host.await_status("two durable groups", &mut site.miner, 120, mined);
        struck = status["window"]["window"].as_u64().unwrap_or(0);
        let before = groups(&site, struck);
        tell(&site, head);
        let kept = groups(&site, struck);
        if site.node.height() < struck + 29 {
            if kept < before {
                return Err(format!("{before} groups, then {kept}\n{}", site.host.log()));
            }
            break;
        }
    }
    site.ended("a window with absurd heads", |window, outcome| window >= struck && outcome == "uploaded");
    tell(&site, u64::MAX);
    let told_in = site.node.height() / 30 * 30;
    site.ended("a window after them", |window, outcome| window > told_in && outcome == "uploaded");
    let folders = std::fs::read_dir(site.host.path().join("state/spool")).unwrap().flatten();
    match folders.map(|entry| entry.file_name()).find(|name| name.len() > 6) {
        Some(absurd) => Err(format!("the window {absurd:?} was opened\n{}", site.host.log())),
        None => site.judged(&[], &[]),
    }
}

/// The window's first block is replaced while the file lies in the bucket and finality stands still.
fn reorganised() -> Result<String, String> {
    let mut site = TestMiner::open(|host| host);
    let first = site.mining();
    site.node.hold_finality_back(1000);
    let first = newest_upload(&site.uploaded(first));
    if !site.has_file(first) {
        return Err("the file is not there to begin with".into());
    }
    // A number that no block can have is no finality.
    site.node.faults(|faults| faults.finalized_number = Some(1 << 40));
    let doubted = |_: &Value| site.host.log().contains("Finality is not believed");
    site.host.await_status("finality doubted", &mut site.miner, 120, doubted);
    site.node.faults(|faults| faults.finalized_number = None);
    site.node.fork(site.node.height() + 1 - first);
    let status = site.ended("the file withdrawn", |window, outcome| window == first && outcome == "withdrawn");
    if site.has_file(first) || status["events"]["file_withdrawn"] != 1 {
        return Err(format!("what every validator rejects is still there: {status:#}"));
    }
    site.uploaded(first + 30);
    site.node.hold_finality_back(1);
    site.judged(&[], &[])
}

/// A file is uploaded by a run that is told to stop, then the window's first block is replaced, and another run follows in time:
/// it mines the window anew, whatever becomes of the removal of the earlier file beside it. `told` is what it says of that.
fn reorganised_between_runs(lies: Vec<BucketCue>, told: &str) -> Result<String, String> {
    let mut bucket = None;
    let mut site = TestMiner::with_blocks(1.2, |host| {
        let lying = LyingBucket::start(&host.path().join("buckets"), lies.clone()).unwrap();
        let host = host.with_bucket(&lying);
        bucket = Some(lying);
        host
    });
    site.mining();
    site.miner.signal(Signal::SIGTERM);
    let code = site.miner.finish(Duration::from_secs(120)).code;
    if code != 0 || site.host.uploaded().len() != 1 {
        return Err(format!("it ended with {code}, with {:?}", site.host.uploaded()));
    }
    site.node.fork(site.node.height() + 1 - FIRST);
    site.miner = site.host.start(&["run"]);
    site.restarted();
    site.ended("the window mined anew", |window, outcome| window == FIRST && outcome == "uploaded");
    match bucket.as_ref().map(|bucket| bucket.lies().len()) {
        Some(1..) if !lies.is_empty() => site.unsaid("Validators would reject a window's file; it was removed")?,
        Some(0) if lies.is_empty() => site.said(told)?,
        lied => return Err(format!("{lied:?} lies of the bucket")),
    }
    site.judged(&[FIRST], &[])
}

/// A run ends between the upload and the finality of the window's first block, the block is replaced, and the next run starts in
/// a later window: it withdraws the file beside the mining.
fn reorganised_while_nobody_watches(end: Signal) -> Result<String, String> {
    let mut site = TestMiner::open(|host| host);
    let first = site.mining();
    site.node.hold_finality_back(1000);
    let first = newest_upload(&site.uploaded(first));
    if !site.has_file(first) {
        return Err("the file is not there to begin with".into());
    }
    site.miner.signal(end);
    let ended = site.miner.finish(Duration::from_secs(120));
    let says = ended.stderr.contains("the next start goes on watching their files");
    if says != (end == Signal::SIGTERM) {
        return Err(format!("code {}, says what the next start has to do: {says}\n{}", ended.code, ended.stderr));
    }
    while site.node.height() < first + 30 {
        std::thread::sleep(Duration::from_millis(100));
    }
    site.node.fork(site.node.height() + 1 - first);
    site.node.hold_finality_back(1);
    site.miner = site.host.start(&["run"]);
    site.restarted();
    let status = site.ended("the file withdrawn", |window, outcome| window == first && outcome == "withdrawn");
    if site.has_file(first) || status["events"]["file_withdrawn"] != 1 {
        return Err(format!("what every validator rejects is still there: {status:#}"));
    }
    let spool = site.host.path().join(format!("state/spool/{first}"));
    site.ended("a window after it", |window, outcome| window > first + 30 && outcome == "uploaded");
    if spool.exists() { Err("the withdrawn file's record is still there".into()) } else { site.judged(&[], &[]) }
}

/// A window that cannot be mined is skipped in time and uploads nothing, and the next one, for which there is a good checkpoint,
/// is mined from its beginning.
fn skipped(publish: impl Fn(&Host), why: &str) -> Result<String, String> {
    let mut site = TestMiner::with_checkpoint(BLOCK_SECONDS, |host| host, publish);
    // It is tried again while a group would be in time, and never into the next window; a machine that is loaded or stands still
    // makes one of them late, and the next one is looked at.
    let mut first = FIRST;
    let reason = loop {
        let status = site.ended("the window skipped", |window, outcome| window == first && outcome == "skipped");
        let (height, reason) = (site.node.height(), of_window(&status, first)["reason"].as_str().unwrap_or_default().to_owned());
        if reason.contains(why) && height < first + 30 {
            break reason;
        }
        if first >= FIRST + 90 {
            return Err(format!("window {first} was skipped in block {height}, because: {reason}"));
        }
        first += 30;
    };
    testnet::publish(&site.host, "checkpoint-b", &[]);
    let status = site.uploaded(first + 30);
    let newest = status["finished"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
    if site.has_file(first) || newest["checkpoint_window"].as_u64() < Some(first) {
        return Err(format!("{:?}, {status:#}", site.host.uploaded()));
    }
    let told = site.host.run(&["explain", &first.to_string()]);
    if told.code != 0 || !told.stdout.contains(&format!("outcome   skipped: {}", &reason[..60])) {
        return Err(format!("explain says: {}", told.stdout));
    }
    site.judged(&[], &[])
}

/// A checkpoint whose metadata asks, duly signed, for what the protocol does not allow.
fn too_hot(host: &Host) {
    testnet::publish(host, "checkpoint-a", &[]);
    let full = checkpoints(host).join("checkpoint-0/FULL");
    let text = std::fs::read(full.join("metadata.json")).unwrap();
    let mut document: Value = serde_json::from_slice(&text).unwrap();
    document["generation_params"]["temperature"] = 9.5.into();
    let document = document.to_string();
    let trainer = grail_protocol::keys::Hotkey::from_uri("//Trainer").unwrap();
    let signature = trainer.sign(&signed_bytes("metadata.json", document.as_bytes()).unwrap());
    std::fs::write(full.join("metadata.json"), document).unwrap();
    std::fs::write(full.join("manifest.sig"), hex::encode(signature)).unwrap();
}

/// The bucket takes the first window's file in time and says so in the middle of the second one.
fn two_at_once() -> Result<String, String> {
    let mut bucket = None;
    let mut site = TestMiner::open(|host| {
        let lying = LyingBucket::start(&host.path().join("buckets"), Vec::new()).unwrap();
        let host = host.with_bucket(&lying);
        bucket = Some(lying);
        host
    });
    let first = site.mining();
    let path = format!("window-{first}.parquet").leak();
    bucket.as_ref().unwrap().lie(vec![BucketCue { method: Method::HEAD, path, count: 1, lie: BucketLie::Slow(14_000) }]);
    let mines_the_second =
        |status: &Value| status["window"]["window"] == first + 30 && status["window"]["spooled"].as_u64() >= Some(1);
    let status = site.host.await_status("the second window mined", &mut site.miner, 120, mines_the_second);
    let told = status["finished"].as_array().is_some_and(|all| all.iter().any(|window| window["window"] == first));
    let spool = site.host.path().join(format!("state/spool/{first}/sending.record"));
    if told || !spool.exists() {
        return Err(format!("the first file is not under way any more: {status:#}"));
    }
    site.ended("the first file", |window, outcome| window == first && outcome == "uploaded");
    site.ended("the second file", |window, outcome| window == first + 30 && outcome == "uploaded");
    site.judged(&[first, first + 30], &[])
}

fn of_window(status: &Value, window: u64) -> Value {
    let finished = status["finished"].as_array().map(Vec::as_slice).unwrap_or_default();
    finished.iter().find(|finished| finished["window"] == window).cloned().unwrap_or_default()
}

/// The newest window that was uploaded.
fn newest_upload(status: &Value) -> u64 {
    let finished = status["finished"].as_array().map(Vec::as_slice).unwrap_or_default();
    finished.iter().rfind(|window| window["outcome"] == "uploaded").and_then(|window| window["window"].as_u64()).unwrap_or(0)
}

/// The window of the newest checkpoint that was published.
fn newest_checkpoint(host: &Host) -> u64 {
    let names = std::fs::read_dir(checkpoints(host)).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| name.to_str()?.strip_prefix("checkpoint-")?.parse().ok()).max().unwrap()
}

fn newest_full(host: &Host) -> PathBuf {
    checkpoints(host).join(format!("checkpoint-{}/FULL", newest_checkpoint(host)))
}

fn checkpoints(host: &Host) -> PathBuf {
    host.trainer_bucket().join("grail/checkpoints")
}

fn shard(host: &Host) -> PathBuf {
    newest_full(host).join("model.safetensors")
}

fn damage_shard(host: &Host) {
    testnet::publish(host, "checkpoint-b", &[]);
    let mut bytes = std::fs::read(shard(host)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(shard(host), bytes).unwrap();
}

fn mend_shard(host: &Host) {
    std::fs::copy(workspace().join("demo/checkpoint-b/model.safetensors"), shard(host)).unwrap();
}

fn remove_shard(host: &Host) {
    testnet::publish(host, "checkpoint-b", &[]);
    std::fs::remove_file(shard(host)).unwrap();
}

/// A difference against a checkpoint that nobody has.
fn remove_anchor(host: &Host) {
    testnet::publish(host, "checkpoint-b", &[]);
    let (anchor, before) = (newest_checkpoint(host), workspace().join("demo/checkpoint-b"));
    let next = (anchor + 30).to_string();
    testnet::publish(host, "checkpoint-a", &["--window", &next, "--delta-from", before.to_str().unwrap()]);
    let delta = checkpoints(host).join(format!("checkpoint-{next}"));
    // As if both had been ready in time for the next window.
    std::fs::rename(delta.join(format!("READY-{next}")), delta.join(format!("READY-{anchor}"))).unwrap();
    std::fs::rename(checkpoints(host).join(format!("checkpoint-{anchor}")), host.path().join("anchor")).unwrap();
}

fn restore_anchor(host: &Host) {
    let anchor = newest_checkpoint(host) - 30;
    std::fs::rename(host.path().join("anchor"), checkpoints(host).join(format!("checkpoint-{anchor}"))).unwrap();
}

/// With a newest checkpoint that cannot be used nothing is mined, least of all with the one before; it is said, nothing is downloaded
/// in vain again and again, and as soon as it is sound it is mined with.
fn bad_checkpoint(publish: fn(&Host), why: &str, mend: fn(&Host)) -> Result<String, String> {
    let mut site = TestMiner::open(|host| host);
    let first = site.mining();
    publish(&site.host);
    let bad = newest_checkpoint(&site.host);
    let told = |status: &Value| status["window"]["waits_for"].as_str().is_some_and(|told| told.contains(why));
    site.host.await_status("the reason in the status", &mut site.miner, 120, told);
    site.ended("a window skipped", |window, outcome| window > first && outcome == "skipped");
    mend(&site.host);
    let later = |status: &Value| {
        let finished = status["finished"].as_array().cloned().unwrap_or_default();
        finished.into_iter().filter(|window| window["window"].as_u64() > Some(first) && window["outcome"] == "uploaded")
    };
    let status = site.host.await_status("a later window", &mut site.miner, 120, |status| later(status).next().is_some());
    if let Some(wrong) = later(&status).find(|window| window["checkpoint_window"] == 0) {
        return Err(format!("the one before was mined with: {wrong:#}\n{}", site.host.log()));
    }
    let downloads = site.host.log().matches(&format!("Files of a checkpoint are downloaded. checkpoint={bad}")).count();
    if downloads > 2 {
        return Err(format!("downloaded {downloads} times\n{}", site.host.log()));
    }
    site.judged(&[], &[])
}

/// At a window's opening the trainer's bucket fails as often as a request is repeated, and then a file of the only checkpoint has not
/// arrived yet: the window is mined all the same.
fn late_checkpoint() -> Result<String, String> {
    let shard = |host: &Host| checkpoints(host).join("checkpoint-0/FULL/model.safetensors");
    let mut bucket = None;
    let mut site = TestMiner::with_checkpoint(
        1.2,
        |host| {
            let failing = BucketCue { method: Method::GET, path: "list-type=2", count: 4, lie: BucketLie::Status500 };
            let lying = LyingBucket::start(&host.path().join("buckets"), vec![failing]).unwrap();
            let host = host.with_bucket(&lying);
            bucket = Some(lying);
            host
        },
        |host| {
            testnet::publish(host, "checkpoint-a", &[]);
            std::fs::rename(shard(host), host.path().join("late")).unwrap();
        },
    );
    let lacks = |status: &Value| status["window"]["waits_for"].as_str().is_some_and(|told| told.contains("lacks the file"));
    site.host.await_status("a file is missing", &mut site.miner, 120, lacks);
    std::fs::rename(site.host.path().join("late"), shard(&site.host)).unwrap();
    let status = site.ended("the window", |window, _| window == FIRST);
    let lies = bucket.as_ref().map(|bucket| bucket.lies().len());
    if of_window(&status, FIRST)["outcome"] != "uploaded" || lies != Some(4) {
        return Err(format!("{lies:?} lies, {:#}\n{}", of_window(&status, FIRST), site.host.log()));
    }
    site.judged(&[FIRST], &[])
}

/// A run is killed, and the next one finds its groups durable, its own bucket well, and the trainer's without an answer.
fn trainer_hangs() -> Result<String, String> {
    let mut bucket = None;
    let mut site = TestMiner::with_blocks(1.2, |host| {
        let lying = LyingBucket::start(&host.path().join("buckets"), Vec::new()).unwrap();
        let host = host.with_bucket(&lying);
        bucket = Some(lying);
        host
    });
    let bucket = bucket.unwrap();
    site.mining();
    site.miner.signal(Signal::SIGKILL);
    let _ = site.miner.finish(Duration::from_secs(60));
    bucket.lie(vec![BucketCue { method: Method::GET, path: "list-type=2", count: u32::MAX, lie: BucketLie::Hang }]);
    site.miner = site.host.start(&["run"]);
    site.restarted();
    let status = site.ended("the window", |window, _| window == FIRST);
    if of_window(&status, FIRST)["outcome"] != "uploaded" || bucket.lies().is_empty() {
        return Err(format!("{:?}, {:#}\n{}", bucket.lies(), of_window(&status, FIRST), site.host.log()));
    }
    bucket.lie(Vec::new());
    site.judged(&[FIRST], &[])
}

/// The network's readers do not look at signatures, so validators go on with what this one cannot verify: nothing is uploaded
/// rather than something of the checkpoint before.
fn unsigned_checkpoint() -> Result<String, String> {
    let mut site = TestMiner::open(|host| host);
    let first = site.mining();
    testnet::publish(&site.host, "checkpoint-b", &[]);
    std::fs::write(newest_full(&site.host).join("manifest.sig"), "00".repeat(64)).unwrap();
    site.ended("the window skipped", |window, outcome| window > first && outcome == "skipped");
    if !site.host.log().contains("manifest.sig is not a signature") {
        return Err(site.host.log());
    }
    site.miner.signal(Signal::SIGTERM);
    let code = site.miner.finish(Duration::from_secs(120)).code;
    match oracle::no_process_is_left(&site.host) {
        Ok(()) if code == 0 && site.host.uploaded().len() == 1 => Ok("skipped, with the reason".into()),
        outcome => Err(format!("it ended with {code}, {outcome:?}, {:?}", site.host.uploaded())),
    }
}

/// Killed while the workers take a new checkpoint: the next start loads it, and the window is mined with it.
fn killed_in_a_reload() -> Result<String, String> {
    let mut site = TestMiner::open(|host| host);
    let first = site.mining();
    testnet::publish(&site.host, "checkpoint-b", &[]);
    points::arm(&site.host, "reloading");
    points::await_reached(&site.host, "reloading", Duration::from_secs(60))?;
    site.miner.signal(Signal::SIGKILL);
    let _ = site.miner.finish(Duration::from_secs(60));
    oracle::no_process_is_left(&site.host)?;
    points::release(&site.host, "reloading");
    site.miner = site.host.start(&["run"]);
    let status = site.uploaded(first + 30);
    let newest = status["finished"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
    if newest["checkpoint_window"] != newest_checkpoint(&site.host) {
        return Err(format!("it goes on with another checkpoint: {newest:#}"));
    }
    site.judged(&[first], &[])
}
