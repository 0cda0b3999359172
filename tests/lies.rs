//! Workers, generation server and S3 that lie, one lie or a family of lies per scenario, against the real supervisor. Whatever
//! they say: nothing bad is uploaded, no finished group is lost that could be saved, the reason is on record, and mining goes
//! on. A word on the command line filters, as in `cargo test --test lies -- worker`.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

mod doubts;
mod starts;

use std::process::ExitCode;
use std::time::Duration;

use axum::http::Method;
use grail_fakes::{BucketCue, BucketLie, LyingBucket, Script, ServerCue, ServerLie, WorkerCue, WorkerLie};
use grail_tests::side_by_side::{Scenario, play};
use grail_tests::{Cast, Host, Running, oracle, points};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Windows of twelve seconds: eight to mine and upload in, four of slack.
const BLOCK_SECONDS: f64 = 0.4;
/// Seconds from the start of the host to its first window.
const LEAD: f64 = 4.0;

fn main() -> ExitCode {
    // Built before any host's clock starts.
    points::supervisor();
    println!("Fakes stand in for workers, generation server and R2, and lie by script.");
    // The longest first, so that the others fill the time beside them.
    let mut scenarios = part_scenarios();
    scenarios.extend(doubts::scenarios());
    scenarios.extend(starts::scenarios());
    scenarios.extend(worker_scenarios());
    scenarios.extend(server_scenarios());
    scenarios.extend(bucket_scenarios());
    scenarios.push(Scenario::new("checkpoint-attacks-its-reader", checkpoint_attacks_its_reader));
    play(scenarios, 6)
}

fn script() -> Script {
    Script { job_seconds: 0.1, completion_seconds: 0.05, load_seconds: 0.1, ..Script::default() }
}

fn worker_scenarios() -> Vec<Scenario> {
    use WorkerLie::*;
    let families: [(&str, &[WorkerLie], &[&str]); 7] = [
        ("worker-dies", &[Die, HalfAFrame, DamagedFrame], &["will be restarted", "goes to another one", "checksum"]),
        (
            "worker-answers-wrong",
            &[WrongHash, WrongLength, NotANumber, MissingProof],
            &["its commitments hash differs", "sketches and", "no number of the protocol", " proofs for ", "will be restarted"],
        ),
        ("worker-floods", &[Flood], &["will be restarted"]),
        ("worker-hangs", &[Hang], &["will be restarted"]),
        ("worker-is-slow", &[Slow], &[]),
        ("worker-refuses-the-weights", &[RefuseReload], &["the script refuses the weights"]),
        ("worker-holds-other-weights", &[OtherWeights], &["it holds weights ffff"]),
    ];
    let scenario = |(name, lies, words): (&str, &'static [WorkerLie], &'static [&'static str])| {
        Scenario::new(name, move || worker_lies(lies, words))
    };
    let mut scenarios: Vec<Scenario> = families.into_iter().map(scenario).collect();
    scenarios.push(Scenario::new("worker-of-three-proves-something-else", || {
        let host = consistent_liar(3, None);
        let told = ["The fake worker lies: OtherSketches.".to_owned()];
        mined_in_spite_of_it(&host, &told, &["its groups are left out"]).map(|(_, told)| told)
    }));
    scenarios.push(Scenario::new("worker-of-two-proves-something-else", || held_back(None).map(|(_, _, told)| told)));
    scenarios.push(Scenario::new("worker-of-two-holds-damaged-weights", || {
        let (host, miner, told) = held_back(Some(1))?;
        goes_on_with_new_workers(&host, miner, &told)
    }));
    scenarios
}

/// Workers of which the last one proves something else in every job of a life, or of all its lives; each proof by itself is in
/// order.
fn consistent_liar(workers: u32, life: Option<u64>) -> Host {
    let liar = WorkerCue { slot: Some(workers - 1), life, job: 1, count: u64::MAX, lie: WorkerLie::OtherSketches };
    let script = Script { worker: vec![liar], ..script() };
    let host = Host::new(BLOCK_SECONDS, LEAD).cast(Cast::Fakes, &script).with_failpoints();
    host.set("proof.cpu_slots", &workers.to_string())
}

/// Two workers disagree: in doubt nothing is uploaded, and the reason is on record.
fn held_back(life: Option<u64>) -> Result<(Host, Running, String), String> {
    let host = consistent_liar(2, life);
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run"]);
    let ended = |status: &Value| status["finished"].as_array().is_some_and(|all| all.iter().any(|window| window["window"] == 30));
    let status = host.await_status("the end of the window", &mut miner, 120, ended);
    let finished = status["finished"].as_array().cloned().unwrap_or_default();
    let window = finished.iter().find(|window| window["window"] == 30).ok_or("window 30 is not in the status")?;
    match window["reason"].as_str() {
        Some(reason) if host.uploaded().is_empty() => {
            let told = format!("{}: {reason}", window["outcome"]);
            Ok((host, miner, told))
        }
        _ => Err(format!("{:?} was uploaded, and the status says {window:#}", host.uploaded())),
    }
}

/// Both workers were replaced: weights that were damaged in memory are whole again.
fn goes_on_with_new_workers(host: &Host, mut miner: Running, before: &str) -> Result<String, String> {
    host.await_status("a window with new workers", &mut miner, 120, uploaded);
    miner.signal(Signal::SIGTERM);
    let code = miner.finish(Duration::from_secs(120)).code;
    host.rewrite(&Script::default());
    match oracle::judge(host, &[]) {
        Ok(account) if code == 0 && (account.windows == [60] || host.stood_still()) => Ok(format!("{before}; then {account}")),
        Ok(account) => Err(format!("it ended with {code}: {account}")),
        Err(why) => Err(format!("{why}\n{}", host.log())),
    }
}

/// Worker 0 is honest, every other one tells one of the lies in its first life.
fn worker_lies(lies: &[WorkerLie], words: &[&str]) -> Result<String, String> {
    let at_load = |lie: &WorkerLie| matches!(lie, WorkerLie::RefuseReload | WorkerLie::OtherWeights);
    let cue = |(slot, lie): (u32, &WorkerLie)| WorkerCue {
        slot: Some(slot),
        life: Some(1),
        job: if at_load(lie) { 0 } else { 2 },
        count: if *lie == WorkerLie::OtherSketches { u64::MAX } else { 1 },
        lie: *lie,
    };
    let script = Script { worker: (1..).zip(lies).map(cue).collect(), ..script() };
    let host = Host::new(BLOCK_SECONDS, LEAD).cast(Cast::Fakes, &script).with_failpoints();
    let host = host.set("proof.cpu_slots", &(lies.len() + 1).to_string());
    let told: Vec<String> = lies.iter().map(|lie| format!("The fake worker lies: {lie:?}.")).collect();
    mined_in_spite_of_it(&host, &told, words).map(|(_, told)| told)
}

/// A template that takes the stack of whoever renders it: its window is skipped by name, and the next checkpoint is mined with, even
/// where its reader is killed in the middle.
fn checkpoint_attacks_its_reader() -> Result<String, String> {
    let host = Host::new(BLOCK_SECONDS, LEAD).cast(Cast::Fakes, &script()).with_failpoints();
    let hostile = host.path().join("hostile");
    std::fs::create_dir(&hostile).map_err(|error| error.to_string())?;
    for entry in std::fs::read_dir(grail_tests::workspace().join("demo/checkpoint-a")).unwrap().flatten() {
        std::fs::copy(entry.path(), hostile.join(entry.file_name())).unwrap();
    }
    let nested = std::fs::read(grail_tests::workspace().join("fuzz/corpus/checkpoint_texts/template-nested-values")).unwrap();
    std::fs::write(hostile.join("chat_template.jinja"), nested).unwrap();
    assert_eq!(host.publish(&hostile.display().to_string(), &[]).code, 0);
    let mut miner = host.start(&["run"]);
    // Before window 30 there is none that is ready.
    let refused = |status: &Value| status["finished"].as_array()?.iter().find(|window| window["window"] != 0).cloned();
    let status = host.await_status("the end of a window", &mut miner, 120, |status| refused(status).is_some());
    let ended = refused(&status).unwrap_or_default();
    let reason = ended["reason"].as_str().unwrap_or_default().to_owned();
    if ended["outcome"] != "skipped" || !reason.contains("template") || !host.uploaded().is_empty() {
        return Err(format!("{status:#}\n{}", host.log()));
    }
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let spooled = |status: &Value| status["window"]["spooled"].as_u64().unwrap_or(0) > 0;
    host.await_status("a group with the next checkpoint", &mut miner, 120, spooled);
    let readers = || host.processes().into_iter().filter(|(_, line)| line.contains("read-checkpoint")).map(|(pid, _)| pid);
    let reader = readers().next().ok_or("there is no reader")?;
    kill(Pid::from_raw(reader.pid.cast_signed()), Signal::SIGKILL).map_err(|error| error.to_string())?;
    // It is replaced at once, asked or not.
    host.await_status("another reader", &mut miner, 120, |_| readers().any(|other| other != reader));
    let status = host.await_status("a window", &mut miner, 120, uploaded);
    let failed =
        |status: &Value| ["prompt failed", "generation failed"].iter().any(|cause| status["window"]["dropped"][cause].is_u64());
    if failed(&status) {
        return Err(format!("a reader's death cost groups\n{status:#}\n{}", host.log()));
    }
    miner.signal(Signal::SIGTERM);
    let code = miner.finish(Duration::from_secs(120)).code;
    host.rewrite(&Script::default());
    match oracle::judge(&host, &[]) {
        Ok(account) if code == 0 => Ok(format!("{reason}; then {account}")),
        Ok(account) => Err(format!("it ended with {code}: {account}")),
        Err(why) => Err(format!("{why}\n{}", host.log())),
    }
}

fn server_scenarios() -> Vec<Scenario> {
    use ServerLie::*;
    vec![
        Scenario::new("server-fails-for-a-moment", || {
            let lies = [HalfAnAnswer, CutInTheMiddle, Cut, ErrorInside, Aborted, Status500];
            every_group_is_saved(server_lies(&lies, 1, &[])?)
        }),
        Scenario::new("server-gives-what-cannot-be-used", || {
            let lies = [IdOutsideVocabulary, TooShort, NoEnd, WrongWeightVersion, TooLong];
            let words = ["outside the vocabulary", "short completion", "end of sequence", "revision changed"];
            server_lies(&lies, 1, &words).map(|(_, told)| told)
        }),
        Scenario::new("server-is-slow", || server_lies(&[Slow], 16, &[]).map(|(_, told)| told)),
        Scenario::new("server-hangs-on-requests", || server_lies(&[Hang], 4, &[]).map(|(_, told)| told)),
        Scenario::new("server-dies", || every_group_is_saved(server_lies(&[Die], 1, &["will be restarted"])?)),
    ]
}

/// A second attempt, at the server's next life where it has to be, saves every group.
fn every_group_is_saved((status, told): (Value, String)) -> Result<String, String> {
    let dropped = status["window"]["dropped"].as_object().cloned().unwrap_or_default();
    match dropped.keys().find(|cause| *cause != "too late") {
        None => Ok(told),
        Some(cause) => Err(format!("a second attempt would have saved a group: {cause}\n{status:#}")),
    }
}

/// Every lie is told to `count` requests, from the fifth group on, in the server's first life.
fn server_lies(lies: &[ServerLie], count: u64, words: &[&str]) -> Result<(Value, String), String> {
    let cue = |(place, lie): (u64, &ServerLie)| ServerCue { life: Some(1), from: 70 + 24 * place, count, lie: *lie };
    let script = Script { server: (0..).zip(lies).map(cue).collect(), ..script() };
    let host = Host::new(BLOCK_SECONDS, LEAD).cast(Cast::Fakes, &script).with_failpoints();
    let told: Vec<String> = lies.iter().map(|lie| format!("The fake server lies: {lie:?}.")).collect();
    mined_in_spite_of_it(&host, &told, words)
}

/// Mines until a window is uploaded and all lies are told. The status of the uploaded window, and the oracle's account.
fn mined_in_spite_of_it(host: &Host, told: &[String], words: &[&str]) -> Result<(Value, String), String> {
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run"]);
    let mut status = Value::Null;
    for word in told.iter().map(String::as_str).chain(words.iter().copied()) {
        let what = format!("a window in spite of it, and {word:?} in the log");
        status = host.await_status(&what, &mut miner, 120, |status| uploaded(status) && host.log().contains(word));
    }
    miner.signal(Signal::SIGTERM);
    let ended = miner.finish(Duration::from_secs(120));
    // The validator's workers are fakes as well, and must not lie.
    host.rewrite(&Script::default());
    let judged = if ended.code == 0 { oracle::judge(host, &[]) } else { Err(format!("it ended with {}", ended.code)) };
    match judged {
        Ok(account) if account.uploaded >= 5 && (account.windows.contains(&30) || host.stood_still()) => {
            Ok((status, account.to_string()))
        }
        Ok(account) => Err(format!("a window that could have been mined, or most of its groups: {account}\n{}", host.log())),
        Err(why) => Err(format!("{why}\n{}", host.log())),
    }
}

fn uploaded(status: &Value) -> bool {
    status["finished"].as_array().is_some_and(|all| all.iter().any(|window| window["outcome"] == "uploaded"))
}

fn bucket_scenarios() -> Vec<Scenario> {
    use BucketLie::*;
    let (put, get, head) = (Method::PUT, Method::GET, Method::HEAD);
    // What was lied about, how often, and whether the window can be saved.
    let lies: Vec<(&str, Method, BucketLie, u32, bool)> = vec![
        ("bucket-takes-slowly", put.clone(), Slow(1500), 1, true),
        ("bucket-asks-to-slow-down", put.clone(), SlowDown, 1, true),
        ("bucket-fails-with-500", put.clone(), Status500, 1, true),
        ("bucket-cuts-the-upload", put.clone(), CutRequest, 1, true),
        ("bucket-cuts-the-answer", put.clone(), CutAnswer, 1, true),
        ("bucket-hangs", put.clone(), Hang, 1, true),
        ("bucket-says-200-and-error", put.clone(), ErrorInside, 1, true),
        ("bucket-loses-the-object", put.clone(), Lost, 1, true),
        ("bucket-stores-other-bytes", put.clone(), StoredDamaged, 1, true),
        ("bucket-loses-every-object", put.clone(), Lost, 99, false),
        ("bucket-stores-always-other-bytes", put.clone(), StoredDamaged, 99, false),
        ("bucket-is-always-too-busy", put, SlowDown, 99, false),
        ("bucket-denies-what-it-has", head, Absent, 1, true),
        ("bucket-reads-back-other-bytes", get.clone(), OtherBytes, 1, true),
        ("bucket-reads-back-half", get.clone(), Truncated, 1, true),
        ("bucket-cuts-the-read-back", get.clone(), HalfAnAnswer, 1, true),
        ("bucket-hangs-on-read-back", get, Hang, 1, true),
    ];
    let scenario = |(name, method, lie, count, saved): (&str, Method, BucketLie, u32, bool)| {
        Scenario::new(name, move || bucket_lies(BucketCue { method, path: "/grail/windows/", count, lie }, saved))
    };
    let mut scenarios: Vec<Scenario> = lies.into_iter().map(scenario).collect();
    // What must not be judged is removed at last.
    scenarios.push(Scenario::new("bucket-stores-other-bytes-and-does-not-remove-them", || {
        let cue = |method, count, lie| BucketCue { method, path: "window-30.parquet", count, lie };
        several_bucket_lies(vec![cue(Method::PUT, 99, StoredDamaged), cue(Method::DELETE, 2, Denied)], false)
    }));
    scenarios
}

/// The window's file leaves while the window runs, and the bucket does not like it.
fn part_scenarios() -> Vec<Scenario> {
    use BucketLie::*;
    let (put, post) = (Method::PUT, Method::POST);
    let cue = |method: &Method, path, count, lie| vec![BucketCue { method: method.clone(), path, count, lie }];
    // What is lied about, and whether what had left counts in the end.
    let lies: Vec<(&str, Vec<BucketCue>, bool)> = vec![
        ("parts-are-taken-the-second-time", cue(&put, "partNumber=1", 1, Status500), true),
        ("parts-are-complete-without-an-answer", cue(&post, "uploadId=", 1, CutAnswer), true),
        ("parts-are-unknown-to-the-bucket", cue(&post, "?uploads", 99, Status500), false),
        ("parts-are-refused", cue(&put, "partNumber=", 99, Status500), false),
        ("parts-come-to-nothing", cue(&post, "uploadId=", 99, Status500), true),
    ];
    let scenario = |(name, cues, ahead)| Scenario::new(name, move || part_lies(cues, ahead));
    let mut scenarios: Vec<Scenario> = lies.into_iter().map(scenario).collect();
    scenarios.push(Scenario::new("parts-of-a-run-that-was-killed", killed_with_parts));
    scenarios
}

/// A host whose groups have two hundred kilobytes each, in windows of a minute.
fn host_of_long_groups(cues: Vec<BucketCue>) -> Result<(Host, LyingBucket), String> {
    let script = Script { completion_tokens: Some(1900), ..script() };
    let host = Host::new(2.0, LEAD).cast(Cast::Fakes, &script).with_failpoints();
    let bucket = LyingBucket::start(&host.path().join("buckets"), cues).map_err(|error| error.to_string())?;
    let host = host.with_bucket(&bucket).set("shutdown.budget_seconds", "60");
    let checkpoint = grail_tests::workspace().join("demo/checkpoint-a").display().to_string();
    assert_eq!(host.run(&["publish-checkpoint", &checkpoint, "--max-tokens", "1910", "--temperature", "0.7"]).code, 0);
    Ok((host, bucket))
}

/// Parts that lie in the bucket and nobody sees.
fn parts(host: &Host) -> usize {
    let files = std::fs::read_dir(host.path().join("buckets")).unwrap();
    files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with(".upload_id-")).count()
}

/// Mines more than a part, is told to stop with most of the window left, and brings the file into the bucket.
fn part_lies(cues: Vec<BucketCue>, ahead: bool) -> Result<String, String> {
    let (host, bucket) = host_of_long_groups(cues)?;
    let mut miner = host.start(&["run"]);
    // They are more than five megabytes.
    host.await_status("28 groups", &mut miner, 120, |status| status["window"]["spooled"].as_u64().unwrap_or(0) >= 28);
    miner.signal(Signal::SIGTERM);
    let ended = miner.finish(Duration::from_secs(120));
    let fail = |why: String| Err(format!("{why}\n{:#}\n{}", host.status(), host.log()));
    if ended.code != 0 || bucket.lies().is_empty() {
        return fail(format!("it ended with {}, and these lies were told: {:?}", ended.code, bucket.lies()));
    }
    oracle::no_process_is_left(&host)?;
    let log = host.log();
    let told = log.split_once("ahead_bytes=").and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok());
    let left = told.unwrap_or(0);
    if told.is_none() || (left > 0) != ahead || parts(&host) > 0 {
        return fail(format!("{told:?} bytes had left before, and {} parts stay", parts(&host)));
    }
    judge_the_object(&host, true).map(|told| format!("{told}, {left} bytes of it before the end")).or_else(fail)
}

/// kill -9 while parts lie in the bucket: the next run ends that upload, and begins its own.
fn killed_with_parts() -> Result<String, String> {
    let (host, _bucket) = host_of_long_groups(vec![])?;
    let mut miner = host.start(&["run"]);
    host.await_status("a part in the bucket", &mut miner, 120, |_| parts(&host) > 0);
    miner.signal(Signal::SIGKILL);
    miner.finish(Duration::from_secs(120));
    // What the next run says, not the last words of this one.
    std::fs::remove_file(host.path().join("state/status.json")).map_err(|error| error.to_string())?;
    let mut miner = host.start(&["run"]);
    host.await_status("groups of a life before", &mut miner, 120, |status| status["window"]["spooled"].as_u64().unwrap_or(0) > 0);
    miner.signal(Signal::SIGTERM);
    let ended = miner.finish(Duration::from_secs(120));
    host.rewrite(&Script::default());
    match oracle::judge(&host, &[]) {
        Ok(account) if ended.code == 0 && account.uploaded > 0 && parts(&host) == 0 => Ok(account.to_string()),
        Ok(account) => Err(format!("it ended with {}, {} parts stay: {account}\n{}", ended.code, parts(&host), host.log())),
        Err(why) => Err(format!("{why}\n{}", host.log())),
    }
}

fn bucket_lies(cue: BucketCue, saved: bool) -> Result<String, String> {
    several_bucket_lies(vec![cue], saved)
}

/// Mines two groups, is told to stop with most of the window left, and uploads them through a bucket that lies.
fn several_bucket_lies(cues: Vec<BucketCue>, saved: bool) -> Result<String, String> {
    let host = Host::new(1.0, LEAD).cast(Cast::Fakes, &script());
    let lies: Vec<BucketLie> = cues.iter().map(|cue| cue.lie).collect();
    let bucket = LyingBucket::start(&host.path().join("buckets"), cues).map_err(|error| error.to_string())?;
    let host = host.with_bucket(&bucket).set("upload.timeout_seconds", "3").set("shutdown.budget_seconds", "60");
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run"]);
    host.await_status("two durable groups", &mut miner, 120, |status| status["window"]["spooled"].as_u64().unwrap_or(0) >= 2);
    miner.signal(Signal::SIGTERM);
    let ended = miner.finish(Duration::from_secs(120));
    let fail = |why: String| Err(format!("{why}\n{:#}\n{}", host.status(), host.log()));
    if ended.code != 0 || lies.iter().any(|lie| bucket.lies().iter().all(|(told, _)| told != lie)) {
        return fail(format!("it ended with {}, and these lies were told: {:?}", ended.code, bucket.lies()));
    }
    oracle::no_process_is_left(&host)?;
    judge_the_object(&host, saved).or_else(fail)
}

/// What lies in the bucket is what the supervisor says: the very file it made, or nothing and the reason.
fn judge_the_object(host: &Host, saved: bool) -> Result<String, String> {
    let status = host.status();
    let finished = status["finished"].as_array().cloned().unwrap_or_default();
    let window = finished.iter().rev().find(|window| window["window"] == 30).ok_or("window 30 is not in the status")?;
    let objects = host.uploaded();
    match (window["outcome"].as_str(), objects.as_slice()) {
        (Some("uploaded"), [object]) => {
            let copy = host.path().join("state/windows").join(object.file_name().unwrap_or_default());
            let same = std::fs::read(object).ok() == std::fs::read(copy).ok();
            let rollouts = &window["rollouts"];
            if same {
                Ok(format!("uploaded, {rollouts} rollouts"))
            } else {
                Err("it said uploaded, and other bytes lie there".into())
            }
        }
        (Some("uploaded"), objects) => Err(format!("it said uploaded, and these objects are there: {objects:?}")),
        (Some(outcome), []) if !saved && window["reason"].is_string() => Ok(format!("{outcome}: {}", window["reason"])),
        (outcome, objects) => Err(format!("{outcome:?} with {objects:?}, reason {}", window["reason"])),
    }
}
