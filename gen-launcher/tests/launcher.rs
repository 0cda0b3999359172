//! The real program over its real socket, with the real server behind it.

// The lint spares test functions only, not what they share.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_link::message::{FromLauncher, ReloadCommand, Revision, ToLauncher};
use grail_link::{Connection, Listener};
use grail_process::{Child, Launch, Spawner, environment};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

struct Rig {
    child: Child,
    /// The kernel kills the child when the spawner's thread ends.
    _spawner: Spawner,
    link: Connection<FromLauncher, ToLauncher>,
    client: reqwest::Client,
    _folder: tempfile::TempDir,
}

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/grail/model-qwen2-f32")
}

fn revision(window: u64) -> Revision {
    Revision { window, weights_hash: format!("{window:032x}") }
}

impl Rig {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("run").join("g.sock")).unwrap();
        let arguments = ["--backend", "embedded", "--threads", "1", "--random-seed", "5", "--socket"].map(Into::into);
        let launch = Launch {
            name: "gen-launcher".into(),
            program: env!("CARGO_BIN_EXE_grail-gen-launcher").into(),
            arguments: arguments.into_iter().chain([listener.path().into()]).chain(more.iter().map(Into::into)).collect(),
            environment: environment::for_child(std::env::vars_os(), []),
        };
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(launch).await.unwrap();
        let mut output = child.take_output().unwrap();
        tokio::spawn(async move { tokio::io::copy(&mut output.stderr, &mut tokio::io::sink()).await });
        let link = tokio::time::timeout(LIMIT, listener.accept(child.pid())).await.unwrap().unwrap();
        let mut rig = Self { child, _spawner: spawner, link, client: reqwest::Client::new(), _folder: folder };
        assert_eq!(rig.receive().await, FromLauncher::Hello { pid: rig.child.pid(), backend: "embedded".into() });
        rig
    }

    async fn receive(&mut self) -> FromLauncher {
        tokio::time::timeout(LIMIT, self.link.inbox.receive()).await.unwrap().unwrap().unwrap()
    }

    async fn reload(&mut self, window: u64, directory: PathBuf) -> FromLauncher {
        let command = ReloadCommand { revision: revision(window), directory, manifest: Default::default() };
        self.link.outbox.send(&ToLauncher::Reload(command)).await.unwrap();
        self.receive().await
    }

    async fn serving(&mut self, window: u64) -> String {
        match self.reload(window, checkpoint()).await {
            FromLauncher::Serving { revision: served, url, context_length } => {
                assert_eq!((served, context_length), (revision(window), 512));
                url
            }
            other => panic!("want Serving, got {other:?}"),
        }
    }

    async fn generate(&self, url: &str, body: &Value) -> (u16, Value) {
        let answer = self.client.post(format!("{url}/generate")).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

#[tokio::test]
async fn serves_updates_and_refuses_and_takes_the_server_with_it() {
    let mut rig = Rig::start().await;
    let refused = rig.reload(1, "/no/such/checkpoint".into()).await;
    assert!(
        matches!(&refused, FromLauncher::ReloadRefused { reason, .. } if reason.contains("/no/such/checkpoint")),
        "{refused:?}"
    );

    let url = rig.serving(30).await;
    let body = json!({"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 6, "temperature": 0.0, "ignore_eos": true}});
    let (status, answer) = rig.generate(&url, &body).await;
    assert_eq!((status, answer["output_ids"].as_array().unwrap().len()), (200, 6));
    assert_eq!(answer["meta_info"]["weight_version"], revision(30).to_string());
    assert_eq!(answer["meta_info"]["finish_reason"], json!({"type": "length", "length": 6}));

    assert_eq!(rig.serving(60).await, url);
    let (_, again) = rig.generate(&url, &body).await;
    assert_eq!(again["output_ids"], answer["output_ids"]);
    assert_eq!(again["meta_info"]["weight_version"], revision(60).to_string());

    let refused = rig.reload(90, "/no/such/checkpoint".into()).await;
    assert!(matches!(refused, FromLauncher::ReloadRefused { .. }));
    let (_, still) = rig.generate(&url, &body).await;
    assert_eq!(still["meta_info"]["weight_version"], revision(60).to_string());
    let (status, answer) = rig.generate(&url, &json!({"input_ids": [512]})).await;
    assert_eq!(status, 400, "{answer}");

    let Rig { mut child, _spawner, link, client, .. } = rig;
    drop(link);
    let status = tokio::time::timeout(LIMIT, child.exited()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(client.get(format!("{url}/health")).send().await.is_err());
}

#[tokio::test]
async fn an_update_waits_for_what_runs_and_a_client_that_goes_frees_its_row() {
    let mut rig = Rig::start().await;
    let url = rig.serving(30).await;
    let long = json!({"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 500, "ignore_eos": true}});
    let running = async {
        let answer = rig.client.post(format!("{url}/generate")).json(&long).send().await.unwrap();
        answer.json::<Value>().await.unwrap()
    };
    let gone = rig.client.post(format!("{url}/generate")).json(&long).timeout(Duration::from_millis(50)).send();
    let update = async {
        tokio::time::sleep(Duration::from_millis(80)).await;
        let body = json!({"model_path": checkpoint(), "weight_version": "next"});
        rig.client.post(format!("{url}/update_weights_from_disk")).json(&body).send().await.unwrap().status()
    };
    let (answer, _, status) = tokio::join!(running, gone, update);
    assert_eq!(status, 200);
    assert_eq!(answer["output_ids"].as_array().unwrap().len(), 500);
    let old = revision(30).to_string();
    assert_eq!(answer["meta_info"]["weight_versions"], json!([{"version": old, "start": 0, "end": 500}]));
    let info: Value = rig.client.get(format!("{url}/server_info")).send().await.unwrap().json().await.unwrap();
    assert_eq!(info["internal_states"][0]["num_running_reqs"], 0);
    drop(rig);
}

#[tokio::test]
async fn the_launcher_fails_when_its_server_dies() {
    let mut rig = Rig::start().await;
    rig.serving(30).await;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", rig.child.pid())).unwrap();
    let children = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap());
    let server = children.flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).next().unwrap();
    kill(Pid::from_raw(server.parse().unwrap()), Signal::SIGKILL).unwrap();
    let status = tokio::time::timeout(LIMIT, rig.child.exited()).await.unwrap();
    assert_eq!(status.code(), Some(1), "{status}");
}

/// The samples of an exposition: every line is a type, or a name of the kind that was declared with a number.
fn samples(text: &str) -> std::collections::BTreeMap<String, f64> {
    let mut declared = std::collections::BTreeSet::new();
    let mut found = std::collections::BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["#", "TYPE", name, "gauge" | "counter"] => assert!(declared.insert(name.to_owned()), "{name} is declared twice"),
            [name, value] => {
                assert!(declared.contains(name), "{name} has no type");
                assert!(found.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} is told twice");
            }
            _ => panic!("{line:?} is no line of an exposition"),
        }
    }
    assert!(text.ends_with('\n'), "the last line ends");
    found
}

#[tokio::test]
async fn the_embedded_engine_tells_its_load_as_sglang_does() {
    let mut rig = Rig::start_with(&["--max-running-requests", "2"]).await;
    let url = rig.serving(30).await;
    let metrics = async || {
        let answer = rig.client.get(format!("{url}/metrics")).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4");
        samples(&answer.text().await.unwrap())
    };
    let load = async || {
        let all = metrics().await;
        (all["sglang:num_running_reqs"], all["sglang:num_queue_reqs"])
    };
    assert_eq!(load().await, (0.0, 0.0));
    let before = metrics().await["sglang:generation_tokens_total"];

    let post = async |path: &str, body: Value| {
        let answer = rig.client.post(format!("{url}/{path}")).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {answer:?}");
    };
    let body = json!({"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 400, "ignore_eos": true}});
    let requests: Vec<_> = (0..5).map(|_| tokio::spawn(rig.client.post(format!("{url}/generate")).json(&body).send())).collect();
    let end = tokio::time::Instant::now() + LIMIT;
    while load().await != (2.0, 3.0) {
        assert!(tokio::time::Instant::now() < end, "two run and three wait: {:?}", load().await);
    }
    post("abort_request", json!({"abort_all": true})).await;
    for request in requests {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
    while load().await != (0.0, 0.0) {
        assert!(tokio::time::Instant::now() < end, "nothing is left: {:?}", load().await);
    }
    let aborted = metrics().await["sglang:generation_tokens_total"];
    assert!(aborted > before, "what was sampled counts, also of what was aborted: {before} to {aborted}");
    let (status, _) =
        rig.generate(&url, &json!({"input_ids": [5], "sampling_params": {"max_new_tokens": 7, "ignore_eos": true}})).await;
    assert_eq!((status, metrics().await["sglang:generation_tokens_total"]), (200, aborted + 7.0));
}
