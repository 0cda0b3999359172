//! The launcher alone with a real server: updates, refusals, deaths.

use std::time::{Duration, Instant};

use grail_engines::{End, Engine};
use grail_tests::{assert_all_gone, lives, process, send, tree};
use nix::sys::signal::Signal;

use crate::damaged;
use crate::rig::{Installed, Rig, checkpoint, complete, embedded_greedy, greedy, named, prompts, revision};

/// Updates that are made one after another with requests under way.
const UPDATES: u64 = 12;
/// Tokens that a request of the load asks for.
const LOAD_TOKENS: u64 = 1500;
/// The demo's end of sequence.
const EOS: u32 = 2;
/// A server's death must be noticed within this time.
pub const NOTICED: f64 = 3.0;

/// Plays an asynchronous drill.
pub fn run<F>(drill: impl FnOnce() -> F + Send + 'static) -> impl FnOnce() -> Result<String, String> + Send + 'static
where
    F: Future<Output = String>,
{
    move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        Ok(runtime.block_on(drill()))
    }
}

/// Weights change under load, are refused, and are changed from outside; the launcher always knows what the server holds.
pub async fn updates(server: Installed) -> String {
    let want = embedded_greedy(&["checkpoint-a", "checkpoint-b"]).await;
    let mut rig = Rig::installed(server, &[]).await;
    let (url, started) = rig.serving(0, &checkpoint("checkpoint-a")).await;
    assert_eq!(greedy(rig.engine, &url).await, want[0], "greedy ids differ from the embedded engine's");

    let mut seconds = Vec::new();
    for update in 1..=UPDATES {
        let (directory, wanted) = [("checkpoint-a", &want[0]), ("checkpoint-b", &want[1])][update as usize % 2];
        let under_way = load(rig.engine, &url);
        // Some are being sampled, some wait, one has just ended.
        tokio::time::sleep(Duration::from_millis(150 * (update % 4))).await;
        let _ = complete(rig.engine, &url, &prompts()[0], 1).await;
        seconds.push(rig.serving(update, &checkpoint(directory)).await.1);
        // What follows must know nothing of the older weights, nor of their cache: the prompts are the same.
        assert_eq!(&greedy(rig.engine, &url).await, wanted, "after update {update}");
        for answer in under_way {
            crossed(answer.await.unwrap(), update, rig.engine);
        }
    }
    refusals(&mut rig, &url, &want[0]).await;
    paused_from_outside(&mut rig, &url).await;
    let ended = closed_with_a_request_under_way(rig, &url).await;
    let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
    let longest = seconds.iter().copied().fold(0.0, f64::max);
    format!("start {started:.0} s; {UPDATES} updates: mean {mean:.2} s, longest {longest:.2} s; stop under load {ended:.1} s")
}

type Answer = tokio::task::JoinHandle<Result<grail_engines::Reply, grail_engines::ReplyError>>;

/// Requests that run longer than the test lets them, more than the server works on at once.
fn load(engine: Engine, url: &str) -> Vec<Answer> {
    (0..40)
        .map(|place| {
            let (url, prompt) = (url.to_owned(), prompts()[place % 4].clone());
            tokio::spawn(async move { complete(engine, &url, &prompt, LOAD_TOKENS).await })
        })
        .collect()
}

/// A completion of [`load`] that went on to its end.
fn whole(reply: &grail_engines::Reply) -> bool {
    match reply.end {
        End::Stop => reply.ids.last() == Some(&EOS),
        End::Length => reply.ids.len() as u64 == LOAD_TOKENS,
    }
}

/// A request that was under way in an update says with which weights it was sampled, be it one or both.
fn crossed(answer: Result<grail_engines::Reply, grail_engines::ReplyError>, update: u64, engine: Engine) {
    let Ok(reply) = answer else { return };
    // The supervisor drops what names the older ones. vLLM names none: it aborts what runs before it changes weights.
    let known = [update - 1, update].map(|update| revision(update).to_string());
    let named = reply.weight_versions.iter().all(|version| known.contains(version));
    let told = reply.weight_versions.is_empty() == (engine == Engine::Vllm);
    assert!(named && told, "{:?}, and the update was from {} to {}", reply.weight_versions, known[0], known[1]);
}

async fn refusals(rig: &mut Rig, url: &str, want: &[Vec<u32>]) {
    let folder = tempfile::tempdir().unwrap();
    for (what, directory, word) in damaged::all(folder.path()) {
        let reason = rig.refused(100, &directory).await;
        assert!(reason.contains(word), "{what}: {reason}");
        assert_eq!(greedy(rig.engine, url).await, want, "after {what} the old weights serve on");
    }
}

/// A server that is paused answers no health probe for long; nobody may take that for its end.
async fn paused_from_outside(rig: &mut Rig, url: &str) {
    let (path, ready) = match rig.engine {
        Engine::Sglang => ("/pause_generation", "/ready"),
        Engine::Vllm => ("/pause?mode=abort", "/is_paused"),
    };
    let client = reqwest::Client::new();
    let paused = client.post(format!("{url}{path}")).json(&serde_json::json!({"mode": "abort"})).send().await.unwrap();
    assert!(paused.status().is_success(), "{paused:?}");
    let state = client.get(format!("{url}{ready}")).send().await.unwrap();
    if rig.engine == Engine::Sglang {
        assert_eq!(state.status(), 503, "paused");
    }
    let waiting = tokio::spawn({
        let (engine, url) = (rig.engine, url.to_owned());
        async move { complete(engine, &url, &prompts()[0], 4).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(lives(&process(rig.child.pid().cast_signed())), "{}", rig.text());
    rig.serving(UPDATES + 1, &checkpoint("checkpoint-a")).await;
    // It waited, or was aborted by the update; in no case is it stuck.
    let _ = tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the request ends").unwrap();
    assert_eq!(complete(rig.engine, url, &prompts()[0], 4).await.unwrap().ids.len(), 4);
}

/// The supervisor closes the socket in the middle of a long request, on which a server would wait without limit.
async fn closed_with_a_request_under_way(mut rig: Rig, url: &str) -> f64 {
    let family = tree(rig.child.pid().cast_signed());
    assert!(family.len() >= 4, "launcher, server and its own: {family:?}");
    let under_way = load(rig.engine, url);
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(rig.link.take());
    let (code, seconds) = rig.ended(Duration::from_secs(20)).await;
    assert_eq!(code, Some(0), "{}", rig.text());
    assert_all_gone(&family);
    under_way.into_iter().for_each(|answer| answer.abort());
    seconds
}

/// A process of the server is killed in each life; the launcher notices and takes everything with it.
pub async fn deaths(server: Installed) -> String {
    let mut told = Vec::new();
    // The first of the vital ones dies in the windows' scenario.
    for victim in [server.vital()[1], "python"] {
        let mut rig = Rig::installed(server, &[]).await;
        let (url, _) = rig.serving(0, &checkpoint("checkpoint-a")).await;
        let launcher = rig.child.pid().cast_signed();
        let family = tree(launcher);
        let under_way = load(rig.engine, &url);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let victim_process = named(launcher, victim)[0].clone();
        let began = Instant::now();
        send(&victim_process, Signal::SIGKILL);
        let (code, _) = rig.ended(Duration::from_secs(60)).await;
        let seconds = began.elapsed().as_secs_f64();
        assert_eq!(code, Some(1), "whatever the server's own exit code was\n{}", rig.text());
        assert!(seconds < NOTICED, "the death of {victim} was noticed after {seconds:.1} s\n{}", rig.text());
        assert!(rig.text().contains("the generation server is gone"), "{}", rig.text());
        assert_all_gone(&family);
        let mut broken = 0;
        for answer in under_way {
            // One that had come to its end before is whole; nothing is completed by a dead server.
            match answer.await.unwrap() {
                Ok(reply) => assert!(whole(&reply), "{} ids, {:?}, last {:?}", reply.ids.len(), reply.end, reply.ids.last()),
                Err(_) => broken += 1,
            }
        }
        assert!(broken > 0, "something was under way when {victim} died");
        told.push(format!("{victim} {seconds:.2} s"));
    }
    format!("from death to the launcher's end with everything gone: {}", told.join(", "))
}

/// More requests than the server takes: they are refused at once, and never look like completions.
pub async fn queue_full(server: Installed) -> String {
    let mut rig = Rig::installed(server, &["--max-running-requests", "1", "--max-queued-requests", "2"]).await;
    let (url, _) = rig.serving(0, &checkpoint("checkpoint-a")).await;
    let answers: Vec<_> = (0..12)
        .map(|_| {
            let (engine, url) = (rig.engine, url.clone());
            tokio::spawn(async move { complete(engine, &url, &prompts()[1], 200).await })
        })
        .collect();
    let (mut whole, mut refused) = (0, Vec::new());
    for answer in answers {
        match answer.await.unwrap() {
            Ok(reply) => {
                assert!(reply.ids.len() == 200 || reply.end == End::Stop, "{reply:?}");
                whole += 1;
            }
            Err(error) => refused.push(error.to_string()),
        }
    }
    assert!(whole >= 1 && !refused.is_empty(), "{whole} completions, {refused:?}");
    assert!(refused.iter().all(|reason| reason.contains("queue is full")), "{refused:?}");
    // An id outside the vocabulary kills it. The supervisor never sends one (groups.rs); the launcher notices the death.
    let family = tree(rig.child.pid().cast_signed());
    let began = Instant::now();
    let _ = complete(rig.engine, &url, &[5, 100_000], 4).await;
    let (code, _) = rig.ended(Duration::from_secs(60)).await;
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(code, Some(1));
    assert_all_gone(&family);
    assert!(seconds < NOTICED, "{seconds:.1} s\n{}", rig.text());
    format!("{whole} of 12 served, {} refused; a bad id ends it, noticed in {seconds:.2} s", refused.len())
}
