//! The supervisor and its children on bad days: real programs where work matters, and shell scripts in the workers' place where
//! only a death does. A script never says hello; it stands for a worker that is stuck before it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use grail_fakes::Script;
use grail_process::Identity;
use grail_tests::{Cast, Host, Running, assert_all_gone, lives, one_at_a_time, process, programs, send, tree, write_program};
use nix::sys::signal::Signal;
use serde_json::Value;

const END: Duration = Duration::from_secs(120);

/// A host whose proof workers are a shell script; its launcher is the real one.
struct Scripted {
    host: Host,
    folder: PathBuf,
}

impl Scripted {
    fn new(script: &str) -> Self {
        // Blocks of a minute: no window begins or ends while the test runs.
        let host = Host::new(60.0, 3.0);
        let folder = host.path().join("programs");
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(programs().join("grail-gen-launcher"), folder.join("grail-gen-launcher")).unwrap();
        write_program(&folder.join("grail-proof-worker"), script);
        Self { host, folder }
    }

    fn start(&self, more: &[&str]) -> Running {
        let programs = format!("programs.folder={}", self.folder.display());
        let mut arguments = vec!["run", "--set", &programs, "--set", "proof.cpu_slots=1"];
        arguments.extend(more);
        self.host.start(&arguments)
    }

    /// The process whose pid the script wrote into `name`, another one than `before`.
    fn process(&self, name: &str, before: Option<&Identity>) -> Identity {
        let path = self.host.path().join(name);
        let read = || {
            let pid = std::fs::read_to_string(&path).ok()?.trim().parse().ok()?;
            Identity::of(pid).ok().filter(|process| before != Some(process))
        };
        await_some(&format!("a new process in {name}"), read)
    }
}

fn await_some<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn worker(status: &Value) -> &Value {
    &status["children"]["proof-worker 0"]
}

fn process_of(child: &Value) -> Identity {
    process(i32::try_from(child["pid"].as_i64().unwrap()).unwrap())
}

/// The first one below a child.
fn below(child: &Value) -> Identity {
    tree(i32::try_from(child["pid"].as_i64().unwrap()).unwrap())[1].clone()
}

fn happened<'a>(status: &'a Value, event: &str) -> Vec<&'a Value> {
    status["child_events"].as_array().into_iter().flatten().filter(|happened| happened["event"] == event).collect()
}

#[test]
fn deaths_are_classed_with_their_last_words_and_a_refused_configuration_ends_the_supervisor_with_its_own_code() {
    let cuda = Scripted::new("echo 'INFO The proof worker starts.'; echo 'CUDA error: device-side assert triggered' >&2; exit 1");
    let mut miner = cuda.start(&[]);
    let status = cuda.host.await_status("three deaths", &mut miner, 120, |status| worker(status)["ends"].as_u64() >= Some(3));
    assert_eq!(worker(&status)["death"]["class"], "sticky_cuda", "{status:#}");
    let lines = worker(&status)["death"]["lines"].as_array().unwrap();
    assert!(lines.iter().any(|line| line.as_str().unwrap().contains("device-side assert")), "{lines:?}");
    let waits: Vec<u64> = happened(&status, "died").iter().map(|died| died["wait_ms"].as_u64().unwrap()).collect();
    assert!(waits.windows(2).all(|pair| pair[0] * 8 <= pair[1] * 5), "each wait is about twice the last one: {waits:?}");
    let family = tree(miner.pid());
    drop(miner);
    assert_all_gone(&family);

    let refusing = Scripted::new("echo \"ERROR unexpected argument '--slot'\" >&2; exit 64");
    let finished = refusing.start(&[]).finish(END);
    assert_eq!(finished.code, 76, "{}\n{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("every proof worker is quarantined"), "{}", finished.stderr);
    let status = refusing.host.status();
    assert_eq!((worker(&status)["state"].as_str(), worker(&status)["ends"].as_u64()), (Some("quarantined"), Some(1)));
    assert_eq!(worker(&status)["death"]["class"], "bad_configuration");
    assert_eq!(happened(&status, "none_left").len(), 1);
}

#[test]
fn what_a_child_leaves_behind_is_ended_in_its_life_and_by_the_next_run() {
    // The worker's own process starts a session of its own: no signal to the worker's group reaches it.
    let scripted = Scripted::new("setsid sleep 3000 & echo $! > left.new; mv left.new left; exec sleep 3000");
    let mut miner = scripted.start(&[]);
    let first = scripted.process("left", None);
    let status = scripted.host.await_status("the worker", &mut miner, 120, |status| worker(status)["pid"].is_i64());
    send(&process_of(worker(&status)), Signal::SIGKILL);
    let second = scripted.process("left", Some(&first));
    assert_all_gone(std::slice::from_ref(&first));
    let status = scripted.host.await_status("the record", &mut miner, 120, |status| !happened(status, "orphan_ended").is_empty());
    assert_eq!(happened(&status, "orphan_ended")[0]["pid"], first.pid);
    assert_eq!(worker(&status)["death"]["class"], "killed");

    // Now the supervisor itself: its children die with it, their children do not.
    let family = tree(miner.pid());
    miner.signal(Signal::SIGKILL);
    miner.finish(END);
    assert!(lives(&second), "the test wants a survivor");
    assert_all_gone(&family.into_iter().filter(|process| *process != second).collect::<Vec<_>>());
    let mut miner = scripted.start(&[]);
    let status =
        scripted.host.await_status("the survivor's end", &mut miner, 120, |status| !happened(status, "survivor").is_empty());
    let survivor = happened(&status, "survivor")[0];
    assert_eq!((survivor["pid"].as_i64(), survivor["ended"].as_bool()), (Some(second.pid.into()), Some(true)), "{survivor}");
    assert!(!lives(&second));
    let third = scripted.process("left", Some(&second));
    miner.signal(Signal::SIGTERM);
    assert_eq!(miner.finish(END).code, 0);
    assert_all_gone(&[third]);
    assert_eq!(std::fs::read_dir(scripted.host.path().join("state/children")).unwrap().count(), 0, "no record is left");
    assert!(!scripted.host.path().join("state/holder.json").exists());
}

#[test]
fn a_second_signal_hurries_and_leaves_no_child() {
    let scripted = Scripted::new("trap '' TERM INT; sleep 3000 & echo $$ > stubborn; wait; sleep 3000");
    let miner = scripted.start(&["--set", "shutdown.budget_seconds=60"]);
    scripted.process("stubborn", None);
    // Supervisor, launcher, worker and its own child.
    let family = await_some("the whole family", || Some(tree(miner.pid())).filter(|family| family.len() >= 4));
    let began = Instant::now();
    miner.signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    miner.signal(Signal::SIGTERM);
    let finished = miner.finish(END);
    let took = began.elapsed();
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(took < Duration::from_secs(30), "{took:?} of a budget of 60 s\n{}", finished.stderr);
    assert_all_gone(&family);
}

#[test]
fn a_host_without_the_drivers_library_mines_on_and_says_so_once() {
    if std::path::Path::new("/proc/driver/nvidia").exists() {
        return grail_tests::skipped("no NVIDIA library", "this host has the driver, so that nothing would be missing");
    }
    let scripted = Scripted::new("exec sleep 3000");
    let host = scripted.host.variable("CUDA_VISIBLE_DEVICES", "0");
    let programs = format!("programs.folder={}", scripted.folder.display());
    let mut miner = host.start(&["run", "--set", &programs, "--set", "proof.device=cuda", "--set", "proof.gpus=0"]);
    let status = host.await_status("the worker", &mut miner, 120, |status| {
        worker(status)["pid"].is_i64() && !happened(status, "gpus_unknown").is_empty()
    });
    assert_eq!(happened(&status, "gpus_unknown").len(), 1);
    miner.signal(Signal::SIGTERM);
    assert_eq!(miner.finish(END).code, 0);
}

/// In mid-window a worker and the generation server below the launcher are stopped by a signal, and the other worker is killed.
#[test]
fn a_stopped_process_is_noticed_within_seconds_and_its_work_goes_on_elsewhere() {
    let _turn = one_at_a_time();
    let host = Host::new(1.0, 6.0);
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run", "--windows", "1"]);
    let status = host.await_status("a finished group", &mut miner, 120, |status| {
        status["window"]["spooled"].as_u64() >= Some(1) && worker(status)["state"] == "busy"
    });
    let victim = process_of(worker(&status));
    let began = Instant::now();
    send(&victim, Signal::SIGSTOP);
    let status = host.await_status("the hang", &mut miner, 120, |status| worker(status)["ends"] == 1);
    let noticed = began.elapsed();
    assert!(noticed < Duration::from_secs(60), "{noticed:?}");
    send(&process_of(&status["children"]["proof-worker 1"]), Signal::SIGKILL);
    let death = &worker(&status)["death"];
    assert_eq!(death["class"], "hang", "{death:#}");
    let threads = death["threads"].as_array().unwrap();
    assert!(threads.iter().any(|thread| thread.as_str().unwrap().contains("state T")), "{death:#}");
    assert!(!death["lines"].as_array().unwrap().is_empty(), "{death:#}");
    let server = below(&status["children"]["generation"]);
    send(&server, Signal::SIGSTOP);
    let status = host.await_status("a new server", &mut miner, 120, |status| {
        let generation = &status["children"]["generation"];
        generation["ends"] == 1 && generation["revision"].is_string()
    });
    assert_eq!(status["children"]["generation"]["death"]["class"], "hang");
    assert_eq!(status["children"]["proof-worker 1"]["death"]["class"], "killed");
    assert!(!lives(&victim) && !lives(&server));
    let finished = miner.finish(Duration::from_secs(120));
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    assert_eq!(host.uploaded().len(), 1, "{}\n{}", finished.stdout, finished.stderr);
    let validated = host.run(&["validate", "--test-mode", "--last", "1"]);
    assert_eq!(validated.code, 0, "{}\n{}", validated.stdout, validated.stderr);
}

/// Two servers side by side: one is killed in mid-window, the other one goes on; a new checkpoint reaches both.
#[test]
fn one_dead_replica_does_not_stop_the_other_and_a_checkpoint_reaches_both() {
    let script = Script { job_seconds: 0.05, completion_seconds: 0.1, load_seconds: 0.1, ..Script::default() };
    let host = Host::new(0.5, 5.0).cast(Cast::Fakes, &script).set("generation.replicas", "2");
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run", "--windows", "2"]);
    let replica = |status: &Value, number: u32| status["children"][format!("generation {number}")].clone();
    let progress = |status: &Value, number: u32| replica(status, number)["progress"].as_u64().unwrap_or(0);
    let status = host.await_status("work of both", &mut miner, 120, |status| {
        (0..2).all(|number| progress(status, number) > 0) && status["window"]["spooled"].as_u64() >= Some(2)
    });
    assert_eq!(host.publish("checkpoint-b", &[]).code, 0);
    let (before, server) = (progress(&status, 1), below(&replica(&status, 0)));
    send(&server, Signal::SIGKILL);
    let status = host.await_status("the death, and work of the other one", &mut miner, 120, |status| {
        replica(status, 0)["ends"] == 1 && progress(status, 1) > before
    });
    assert_eq!(replica(&status, 1)["ends"], 0);
    let first = replica(&status, 1)["revision"].clone();
    host.await_status("the new checkpoint in both", &mut miner, 120, |status| {
        let revision = &status["window"]["revision"];
        *revision != first && (0..2).all(|number| replica(status, number)["revision"] == *revision)
    });
    let finished = miner.finish(END + END);
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    assert_eq!(host.uploaded().len(), 2, "{}\n{}", finished.stdout, finished.stderr);
}

/// A server that somebody else runs: the embedded engine, started by the test.
struct Stranger(std::process::Child);

impl Stranger {
    fn start(port: u16) -> Self {
        let model = grail_tests::workspace().join("demo/checkpoint-a");
        let mut command = std::process::Command::new(programs().join("grail-gen-launcher"));
        command.arg("embedded").arg("--model-path").arg(model).args([
            "--port",
            &port.to_string(),
            "--max-running-requests",
            "48",
        ]);
        let quiet = std::process::Stdio::null;
        Self(command.stdout(quiet()).stderr(quiet()).spawn().unwrap())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Servers that run elsewhere are given the weights, left out while they are away, taken back, and never ended.
#[test]
fn servers_elsewhere_are_given_weights_left_out_and_taken_back() {
    let _turn = one_at_a_time();
    let ports = [grail_tests::free_port(), grail_tests::free_port()];
    let mut servers = ports.map(Stranger::start);
    let addresses = ports.map(|port| format!("http://127.0.0.1:{port}")).join(",");
    let script = Script { job_seconds: 0.05, load_seconds: 0.1, ..Script::default() };
    let host = Host::new(1.0, 5.0).cast(Cast::RealLauncher, &script);
    let host = host.set("generation.backend", "sglang").set("generation.servers", &addresses);
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let mut miner = host.start(&["run", "--windows", "1"]);
    let server = |status: &Value, number: u32| status["children"][format!("generation server {number}")].clone();
    host.await_status("work of both", &mut miner, 120, |status| {
        (0..2).all(|number| server(status, number)["progress"].as_u64() > Some(0))
            && status["window"]["spooled"].as_u64() >= Some(1)
    });
    servers[0].0.kill().unwrap();
    let status = host.await_status("one left out", &mut miner, 120, |status| server(status, 0)["state"] == "absent");
    assert!(server(&status, 0)["last_end"].as_str().unwrap().contains("/health"), "{status:#}");
    servers[0] = Stranger::start(ports[0]);
    let status = host.await_status("it is taken back", &mut miner, 120, |status| server(status, 0)["state"] == "ready");
    assert_eq!(server(&status, 0)["revision"], status["window"]["revision"]);
    assert_eq!((server(&status, 0)["ends"].as_u64(), server(&status, 1)["ends"].as_u64()), (Some(1), Some(0)));
    assert!(status["children"]["generation"].is_null(), "no launcher was started");
    assert!(host.log().contains("left out until it answers"), "{}", host.log());
    let finished = miner.finish(END);
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    assert_eq!(host.uploaded().len(), 1, "{}\n{}", finished.stdout, finished.stderr);
    assert!(servers.iter_mut().all(|server| server.0.try_wait().unwrap().is_none()), "they are not ours to end");
}
