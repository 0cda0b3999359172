//! `vectors/sglang`, the cases in which a client decides: what is sent again and after what wait, how many requests are under way
//! at once, whether a prompt fits; and the order in which weights are changed. Each goes through the supervisor's own client, or
//! the one implementation of updates, against a server that answers as the recorded one did and writes down what it is asked.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use futures::future::join_all;
use grail_engines::{Calls, Engine, UpdateError, VLLM_NAME};
use grail_fakes::{Reply, serve};
use grail_link::message::Revision;
use grail_process::clock;
use grail_workers::completions::{Completions, fits};
use grail_workers::{Replica, Replicas, Serving, Traffic};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::generation::{ids, sampling};
use crate::report::{Case, Cases};

/// Time in which as many requests come as are expected at once; only a client that sends fewer lets it pass.
const GATHER: Duration = Duration::from_secs(5);
/// Time in which one too many would come.
const LINGER: Duration = Duration::from_millis(60);

fn block_on<T>(task: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(task)
}

/// A request as it came.
#[derive(Debug, Clone)]
struct Seen {
    at: Instant,
    path: String,
    body: String,
}

/// What the server was asked, and how many requests were under way at once.
#[derive(Debug, Default)]
struct Record {
    seen: Vec<Seen>,
    in_flight: usize,
    most: usize,
}

/// A server that writes down what it is asked and answers in turn, at last always the same.
#[derive(Clone)]
struct Recorder {
    record: Arc<Mutex<Record>>,
    gathered: watch::Sender<bool>,
    url: String,
}

impl Recorder {
    /// Holds answers back until `together` requests are under way.
    async fn start(together: usize, answer: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let recorder = Self { record: Arc::default(), gathered: watch::Sender::new(false), url };
        let (serving, answer) = (recorder.clone(), Arc::new(Mutex::new(answer)));
        tokio::spawn(serve(listener, move |request| {
            let (recorder, answer) = (serving.clone(), answer.clone());
            async move {
                let seen = recorder.came(request, together).await;
                let reply = answer.lock().unwrap_or_else(PoisonError::into_inner)(&seen);
                recorder.record().in_flight -= 1;
                reply
            }
        }));
        recorder
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn came<B>(&self, request: Request<B>, together: usize) -> Seen
    where
        B: axum::body::HttpBody<Data = axum::body::Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let at = clock::monotonic();
        let path = request.uri().path_and_query().map(|path| path.as_str().to_owned()).unwrap_or_default();
        let body = to_bytes(Body::new(request.into_body()), 1 << 20).await.unwrap_or_default();
        let seen = Seen { at, path, body: String::from_utf8_lossy(&body).into_owned() };
        let complete = {
            let mut record = self.record();
            record.seen.push(seen.clone());
            record.in_flight += 1;
            record.most = record.most.max(record.in_flight);
            record.in_flight >= together
        };
        if complete {
            self.gathered.send_replace(true);
        }
        if together > 1 {
            let mut gathered = self.gathered.subscribe();
            let _ = tokio::time::timeout(GATHER, gathered.wait_for(|gathered| *gathered)).await;
            tokio::time::sleep(LINGER).await;
        }
        seen
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Case {
    if got == want { Ok(()) } else { Err(format!("{what}: got {got:?}, want {want:?}")) }
}

/// Every case of `generate.json`.
pub fn requests(file: &Value, cases: &mut Cases) {
    let all: Vec<&Value> = file["cases"].as_array().into_iter().flatten().collect();
    let normal = all[0]["response_example"].clone();
    // Side by side: three of them wait for three seconds.
    let played = block_on(join_all(all.iter().map(|case| play(case, &normal))));
    for (case, outcome) in all.iter().zip(played) {
        cases.case(format!("{}: client", case["case"].as_str().unwrap_or_default()), || outcome);
    }
}

fn revision() -> Revision {
    Revision { window: 1200, weights_hash: "ab".into() }
}

/// The recorded answers, with the weight version that our server was given: ours believes no other.
fn answers(case: &Value, normal: &Value) -> VecDeque<(StatusCode, String)> {
    let versioned = |reply: &Value| {
        let mut reply = reply.clone();
        if reply["meta_info"].is_object() {
            reply["meta_info"]["weight_version"] = revision().to_string().into();
        }
        // The one that is no JSON is recorded as its text.
        reply.as_str().map_or_else(|| reply.to_string(), str::to_owned)
    };
    let failure = || (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": "x"}).to_string());
    let recorded = versioned(&case["response_example"]);
    match case["case"].as_str().unwrap_or_default() {
        "two_failures_then_ok" => [failure(), failure(), (StatusCode::OK, versioned(normal))].into(),
        "three_failures" => [(StatusCode::INTERNAL_SERVER_ERROR, recorded)].into(),
        _ => [(StatusCode::OK, recorded)].into(),
    }
}

async fn play(case: &Value, normal: &Value) -> Case {
    let count = |key: &str| case[key].as_u64().expect("a count");
    let params = sampling(&case["params"]);
    let prompts: Vec<Vec<u32>> = case["prompts"].as_array().into_iter().flatten().map(ids).collect();
    let mut replies = answers(case, normal);
    let recorder = Recorder::start(count("max_in_flight") as usize, move |_| {
        let (status, text) = if replies.len() > 1 { replies.pop_front() } else { replies.front().cloned() }.expect("an answer");
        Reply::text(status, "application/json", text)
    })
    .await;
    let client = Completions::new(Engine::Sglang, count("max_concurrent") as u32).map_err(|error| error.to_string())?;
    let serving =
        Serving { revision: revision(), url: recorder.url.clone().into(), context_length: count("max_model_len") as u32 };
    let (_kept, serving) = watch::channel(Some(serving));
    let replicas = Replicas::new(vec![Replica { serving, traffic: Traffic::default() }]);
    let (client, replicas, params, wanted) = (&client, &replicas, &params, &revision());
    let returned = join_all(prompts.iter().map(|prompt| async move {
        // What does not fit is not sent, and not shortened.
        if !fits(prompt.len(), params.max_new_tokens, count("max_model_len")) {
            return None;
        }
        client.complete(&replicas.home(), prompt, params, wanted).await.ok().map(|completion| completion.ids)
    }))
    .await;
    let record = recorder.record();
    judge(case, &prompts, &returned, &record)
}

fn judge(case: &Value, prompts: &[Vec<u32>], returned: &[Option<Vec<u32>>], record: &Record) -> Case {
    // An empty completion there is an error here: either way the group is dropped.
    let want: Vec<Option<Vec<u32>>> = prompts
        .iter()
        .zip(case["returned"].as_array().into_iter().flatten())
        .map(|(prompt, pair)| ids(&pair[0]).strip_prefix(&prompt[..]).map(<[u32]>::to_vec).filter(|ids| !ids.is_empty()))
        .collect();
    same("completions", returned, &want[..])?;
    let name = case["case"].as_str().unwrap_or_default();
    let seen = case["requests_seen"].as_u64().expect("a count");
    // A 200 that is no completion ends the attempts there, with an empty completion; here it is tried again like any failure.
    let ours = if name.starts_with("output_ids_") { 3 } else { seen };
    same("requests", record.seen.len() as u64, ours)?;
    if prompts.len() > 1 {
        same("requests at once", record.most as u64, case["max_in_flight"].as_u64().expect("a count"))?;
    }
    let waits: Vec<u64> = record.seen.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs()).collect();
    if prompts.len() == 1 && ours == 3 {
        // 1 s, then 2 s; a busy machine may add to them.
        same("waits are long enough", waits[0] >= 1 && waits[1] >= 2, true)?;
        let recorded = case["elapsed_s_at_least"].as_f64().expect("seconds");
        same("waits are those that were recorded", recorded > 0.0, ours == seen)?;
    }
    let Some(body) = case["first_request"]["body"].as_str() else { return Ok(()) };
    let (first, mut want) = (&record.seen[0], serde_json::from_str::<Value>(body).map_err(|error| error.to_string())?);
    // A miner never gives a seed.
    want["sampling_params"].as_object_mut().expect("sampling parameters").shift_remove("sampling_seed");
    same("path", Some(first.path.as_str()), case["first_request"]["path"].as_str())?;
    same("body", first.body.as_str(), want.to_string().as_str())
}

/// `weight_sync.json`: the reference's calls are among ours, in its order, and what it takes for a success is judged here.
pub fn weights(path: &Path, cases: &mut Cases) {
    let text = std::fs::read_to_string(path).expect("the file can be read");
    let file: Value = serde_json::from_str(&text).expect("the file is JSON");
    sglang(&file["sglang"], cases);
    vllm(&file["vllm"], cases);
}

/// What a server does when its weights are changed.
#[derive(Clone)]
struct Conduct {
    /// Path of the call that is answered otherwise, with status and body; the connection breaks without them.
    fails: Option<(&'static str, Option<(u16, &'static str)>)>,
    /// Whether the update call replaces the weights.
    replaces: bool,
}

/// An update from version `old` to `new` of a server that conducts itself so: what was asked, and what it came to.
fn updated(engine: Engine, model: &str, conduct: Conduct) -> (Vec<Seen>, Result<(), UpdateError>) {
    block_on(async {
        let mut live = "old".to_owned();
        let recorder = Recorder::start(1, move |seen| {
            let path = seen.path.split('?').next().unwrap_or_default();
            let body: Value = serde_json::from_str(&seen.body).unwrap_or_default();
            if path == "/update_weights_from_disk" && conduct.replaces {
                live = body["weight_version"].as_str().unwrap_or("default").to_owned();
            }
            match &conduct.fails {
                Some((failing, answer)) if *failing == path => match answer {
                    Some((status, text)) => {
                        Reply::text(StatusCode::from_u16(*status).expect("a status"), "application/json", *text)
                    }
                    None => Reply::Cut,
                },
                _ if path == "/model_info" => Reply::json(StatusCode::OK, &json!({"weight_version": live})),
                _ => Reply::json(StatusCode::OK, &json!({"success": true, "message": "done"})),
            }
        })
        .await;
        let calls = Calls::to(reqwest::Client::new(), engine, recorder.url.clone().into());
        let outcome = calls.update(Path::new(model), "old", "new", |_| {}).await;
        let seen = recorder.record().seen.clone();
        (seen, outcome)
    })
}

fn paths(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| seen.path.as_str()).collect()
}

/// The reference's requests: path and body.
fn recorded(of: &Value) -> Vec<(&str, &str)> {
    let requests = of["requests"].as_array().into_iter().flatten();
    requests.map(|request| (request["path"].as_str().expect("a path"), request["body"].as_str().expect("a body"))).collect()
}

fn sglang(file: &Value, cases: &mut Cases) {
    let wanted = recorded(file);
    let mut body: Value = serde_json::from_str(wanted[0].1).expect("a body");
    let model = body["model_path"].as_str().expect("a path").to_owned();
    let honest = Conduct { fails: None, replaces: true };
    let (seen, outcome) = updated(Engine::Sglang, &model, honest);
    cases.equal("sglang: outcome", outcome, Ok(()));
    // The reference sends the update alone: it waits for whatever runs, and may leave an older cache over new weights.
    let safe =
        ["/pause_generation", "/abort_request", wanted[0].0, "/model_info", "/flush_cache?timeout=60", "/continue_generation"];
    cases.equal("sglang: calls, the reference's among them", paths(&seen), safe.to_vec());
    // And names no version, so that nobody can tell weights apart.
    body["weight_version"] = "new".into();
    let ours = seen.get(2).map(|seen| seen.body.clone()).unwrap_or_default();
    cases.equal("sglang: body, with a version", serde_json::from_str(&ours).unwrap_or(Value::Null), body);

    let update = "/update_weights_from_disk";
    let fails = |path, answer, replaces| updated(Engine::Sglang, &model, Conduct { fails: Some((path, answer)), replaces });
    let refused = r#"{"success": false, "message": "no weights there", "num_paused_requests": 0}"#;
    assert_eq!(file["on_http_400"], "HTTPStatusError", "the reference gives the window up");
    let (seen, outcome) = fails(update, Some((400, refused)), false);
    cases.equal("sglang: 400 and the old version is a refusal", kind(&outcome), "refused");
    cases.equal("sglang: after a refusal the old weights serve on", paths(&seen).last().copied(), Some("/continue_generation"));
    let (seen, outcome) = fails(update, Some((400, refused)), true);
    cases.equal("sglang: 400 and the new version is an update", outcome, Ok(()));
    cases.equal("sglang: whose cache is flushed", paths(&seen).contains(&"/flush_cache?timeout=60"), true);
    // The reference does not read the flag and goes on mining with weights that it does not have.
    assert_eq!(file["on_http_200_success_false"], "returned (success flag is not read)");
    let (_, outcome) = fails(update, Some((200, refused)), false);
    cases.equal("sglang: 200 with success false is a refusal", kind(&outcome), "refused");

    for (name, path, answer, replaces) in [
        ("no answer to the update", update, None, false),
        ("success with the old version", update, Some((200, r#"{"success": true}"#)), false),
        ("a cache that is not flushed", "/flush_cache", Some((400, "running requests")), true),
        ("no pause", "/pause_generation", Some((500, "x")), true),
    ] {
        let (seen, outcome) = fails(path, answer, replaces);
        cases.equal(format!("sglang: {name}: nobody knows"), kind(&outcome), "unknown");
        cases.equal(format!("sglang: {name}: it stays paused"), paths(&seen).contains(&"/continue_generation"), false);
    }
}

fn vllm(file: &Value, cases: &mut Cases) {
    let wanted = recorded(file);
    let link = file["symlink"]["path"].as_str().expect("a path");
    let (seen, outcome) = updated(Engine::Vllm, link, Conduct { fails: None, replaces: true });
    cases.equal("vllm: outcome", outcome, Ok(()));
    // The reference sleeps and wakes, which aborts what runs and, on a GPU, drops the weights; a pause aborts as well. It lets
    // requests in again before the weights are there.
    let safe = ["/pause?mode=abort", "/collective_rpc", "/reset_prefix_cache", "/resume"];
    cases.equal("vllm: calls", paths(&seen), safe.to_vec());
    let common: Vec<&str> = wanted.iter().map(|(path, _)| *path).filter(|path| safe.contains(path)).collect();
    cases.equal("vllm: the reference's in its order", common, safe[1..3].to_vec());
    // Without a path the server reloads the last one that it was given, whatever that was.
    let mut body: Value = serde_json::from_str(wanted[2].1).expect("a body");
    body["kwargs"] = json!({"weights_path": link});
    let ours = seen.get(1).map(|seen| seen.body.clone()).unwrap_or_default();
    cases.equal("vllm: body, with a path", serde_json::from_str(&ours).unwrap_or(Value::Null), body);
    let named = Path::new(link).file_name().and_then(|name| name.to_str());
    cases.equal("vllm: the link's name", Some(VLLM_NAME), named);

    for path in ["/pause", "/collective_rpc", "/reset_prefix_cache"] {
        let conduct =
            Conduct { fails: Some((path, Some((500, r#"{"error": {"message": "shape mismatch"}}"#)))), replaces: false };
        let (seen, outcome) = updated(Engine::Vllm, link, conduct);
        cases.equal(format!("vllm: {path} fails: nobody knows"), kind(&outcome), "unknown");
        cases.equal(format!("vllm: {path} fails: it stays paused"), paths(&seen).contains(&"/resume"), false);
    }
}

fn kind(outcome: &Result<(), UpdateError>) -> &'static str {
    match outcome {
        Ok(()) => "updated",
        Err(UpdateError::Refused(_)) => "refused",
        Err(UpdateError::Unknown(_)) => "unknown",
    }
}
