//! Recorded exchanges through the real client: a node that answers as the recorded one did, asked for each line what a miner
//! would ask, and what the client makes of the answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use grail_chain::metadata::Metadata;
use grail_chain::node::{BlockHash, Endpoints, Node, NodeError};
use grail_chain::patience::Patience;
use grail_chain::storage;
use scale_value::Value as Scale;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use super::values::{bytes, hash};
use super::{beside, metadata_218};
use crate::report::{self, Case, Cases, json_lines};

/// What a recorded line is good for.
enum Line {
    /// It was replayed, with this outcome.
    Replayed(Case),
    /// It is no exchange of this client's, and why.
    Skipped(&'static str),
}

/// What the node answers.
#[derive(Default)]
struct Tape {
    /// By method and parameters, first recorded first.
    usual: BTreeMap<String, Value>,
    /// The line that is being replayed.
    now: Option<(String, Value)>,
    /// By subscription.
    notifications: BTreeMap<String, Vec<Value>>,
    without_subscriptions: bool,
}

fn name(method: &str, params: &Value) -> String {
    // The Python client writes an alias and an absent parameter as null; nodes take both for the same.
    let method = if method == "state_getStorageAt" { "state_getStorage" } else { method };
    if *params == json!([null]) { format!("{method} []") } else { format!("{method} {params}") }
}

impl Tape {
    fn of(lines: &[Value]) -> Self {
        let mut tape = Self::default();
        for line in lines {
            if let Some(method) = line["request"]["method"].as_str() {
                let name = name(method, &line["request"]["params"]);
                tape.usual.entry(name).or_insert_with(|| line["response"].clone());
            } else if let Some(subscription) = line["notification"]["params"]["subscription"].as_str() {
                tape.notifications.entry(subscription.into()).or_default().push(line["notification"].clone());
            }
        }
        tape
    }

    fn answer(&self, request: &Value) -> Vec<Value> {
        let method = request["method"].as_str().expect("a method");
        let name = name(method, &request["params"]);
        let recorded = self.now.as_ref().filter(|(now, _)| *now == name).map(|(_, answer)| answer).or(self.usual.get(&name));
        let refused = self.without_subscriptions && method.contains("_subscribe");
        let unknown = json!({"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}});
        let mut answer = recorded.filter(|_| !refused).cloned().unwrap_or(unknown);
        answer["id"] = request["id"].clone();
        let told = answer["result"].as_str().and_then(|subscription| self.notifications.get(subscription)).cloned();
        std::iter::once(answer).chain(told.into_iter().flatten()).collect()
    }
}

async fn serve(listener: TcpListener, tape: Arc<Mutex<Tape>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, tape.clone()));
    }
}

async fn connection(stream: TcpStream, tape: Arc<Mutex<Tape>>) {
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let request = serde_json::from_str(&text).expect("a client sends JSON");
        let answers = tape.lock().expect("no poison").answer(&request);
        for answer in answers {
            let _ = socket.send(Message::text(answer.to_string())).await;
        }
    }
}

/// A recorded node with the client that is connected to it.
struct Stage {
    runtime: tokio::runtime::Runtime,
    tape: Arc<Mutex<Tape>>,
    node: Node,
    metadata: Metadata,
}

impl Stage {
    fn new(path: &Path, lines: &[Value], without_subscriptions: bool) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let mut tape = Tape { without_subscriptions, ..Tape::of(lines) };
        // What opens a connection is whole in this file only.
        tape.usual.extend(
            Tape::of(&json_lines(&beside(path, "rpc.jsonl")))
                .usual
                .into_iter()
                .filter(|(name, _)| ["chain_getBlockHash [0]", "state_getRuntimeVersion []"].contains(&name.as_str())),
        );
        let metadata = report::bytes(&beside(path, "metadata_218_v14.scale.gz"));
        tape.usual.insert("state_getMetadata []".into(), json!({"result": format!("0x{}", hex::encode(metadata))}));
        let tape = Arc::new(Mutex::new(tape));
        // No block is ever made here.
        let (poll, silence) = (Duration::from_millis(50), Duration::from_secs(3600));
        let patience = Patience { tries: 1, poll, silence, ..Patience::default() };
        let node = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let endpoint = format!("ws://{}", listener.local_addr().expect("an address"));
            tokio::spawn(serve(listener, tape.clone()));
            Node::connect(Endpoints { addresses: vec![endpoint.into()], genesis: None }, patience)
        });
        Self { runtime, tape, node, metadata: metadata_218(path) }
    }

    fn ask<T>(&self, answer: impl Future<Output = Result<T, NodeError>>) -> Result<T, String> {
        let limited = async { tokio::time::timeout(Duration::from_secs(60), answer).await };
        self.runtime.block_on(limited).map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())
    }
}

/// Replays every line.
pub fn run(path: &Path, lines: &[Value], cases: &mut Cases) {
    let stage = Stage::new(path, lines, false);
    let polled = Stage::new(path, lines, true);
    for (number, line) in lines.iter().enumerate() {
        let title = line.get("case").or(line.get("note")).and_then(Value::as_str).unwrap_or_default();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| replay(&stage, &polled, line)));
        match outcome.unwrap_or_else(|_| Line::Replayed(Err("panicked".into()))) {
            Line::Replayed(case) => cases.case(format!("line {}: {title}", number + 1), || case),
            Line::Skipped(why) => cases.skip(why),
        }
    }
}

fn replay(stage: &Stage, polled: &Stage, line: &Value) -> Line {
    let Some(method) = line["request"]["method"].as_str() else { return beside_requests(stage, line) };
    let (params, result) = (&line["request"]["params"], &line["response"]["result"]);
    stage.tape.lock().expect("no poison").now = Some((name(method, params), line["response"].clone()));
    let node = &stage.node;
    let first_hash = || hash(&params[0]);
    let case = match method {
        "state_getRuntimeVersion" if params[0].is_string() => stage
            .ask(node.runtime_of(&first_hash()))
            .and_then(|runtime| same(u64::from(runtime.spec_version), result["specVersion"].as_u64())),
        "state_getRuntimeVersion" => stage
            .ask(node.fresh_runtime())
            .and_then(|runtime| same(u64::from(runtime.transaction_version), result["transactionVersion"].as_u64())),
        "chain_getBlockHash" if params[0].is_u64() => {
            let number = params[0].as_u64().expect("a number");
            stage.ask(node.block_hash(number)).and_then(|got| same(got, Some(hash_or_none(result))))
        }
        "chain_getFinalizedHead" => stage.ask(node.finalized()).and_then(|(got, _)| same(got, Some(hash(result)))),
        "chain_getHeader" if params[0].is_string() => stage.ask(node.header(&first_hash())).and_then(|header| {
            let header = header.ok_or("no header")?;
            same((header.number, header.parent), Some((number_of(result), hash(&result["parentHash"]))))
        }),
        // Where nothing is subscribed to, the head is asked for.
        "chain_getHeader" => head(polled, line),
        "state_getStorage" | "state_getStorageAt" => stored(stage, params, &line["response"]),
        "system_accountNextIndex" => stage
            .ask(node.next_nonce(params[0].as_str().expect("an address")))
            .and_then(|nonce| same(u64::from(nonce), result.as_u64())),
        "author_submitExtrinsic" if line["response"]["error"].is_object() => refused(stage, params, &line["response"]),
        "author_submitAndWatchExtrinsic" => watched(stage, params, result),
        "chain_getBlock" => stage.ask(node.extrinsics(&first_hash())).and_then(|got| {
            let listed = result["block"]["extrinsics"].as_array().expect("extrinsics");
            same(got, Some(listed.iter().map(bytes).collect()))
        }),
        "chain_subscribeNewHeads" => stage.ask(node.head()).map(drop),
        "state_subscribeRuntimeVersion" => stage.ask(node.identity()).map(drop),
        "state_queryStorageAt" => return Line::Skipped("every value of it is decoded below, as a commitment"),
        other => return Line::Skipped(why_not(other)),
    };
    Line::Replayed(case)
}

/// Notifications, and what the Python client returned.
fn beside_requests(stage: &Stage, line: &Value) -> Line {
    let told = &line["notification"]["params"]["result"];
    match line["notification"]["method"].as_str() {
        Some("chain_newHead") => {
            Line::Replayed(stage.ask(stage.node.head()).and_then(|head| same(head.number, Some(number_of(told)))))
        }
        Some("state_runtimeVersion") => Line::Replayed(
            stage
                .ask(stage.node.identity())
                .and_then(|(_, _, runtime)| same(u64::from(runtime.spec_version), told["specVersion"].as_u64())),
        ),
        Some("author_extrinsicUpdate") => Line::Skipped("told in order to the submission above, which is checked there"),
        Some(_) => Line::Skipped("a subscription that this client does not make"),
        None => Line::Skipped("what the Python client returned; the answers behind it are checked"),
    }
}

fn why_not(method: &str) -> &'static str {
    match method {
        "chain_getBlockHash" | "chain_getHead" => "an alias or a list; this client asks for one number, and for the header",
        "author_submitExtrinsic" => "submitted without watching; bytes and hash are checked in extrinsics.json",
        "state_call" => "a runtime call; this client makes none but for metadata, and reads the nonce with the pool",
        "state_getKeysPaged" => "keys of a whole map; a miner reads two commitments, by key",
        "state_getMetadata" => "replaced by a pointer to the metadata file, which opens the connection here",
        method if method.contains("nsubscribe") || method.contains("unwatch") => "this client ends its connection instead",
        "chain_subscribeFinalizedHeads" => "finality is asked for when it matters",
        "system_properties" | "system_chain" | "rpc_methods" => "a node's own description, which identifies nothing",
        _ => "this client does not ask that",
    }
}

fn same<T: PartialEq + std::fmt::Debug>(got: T, want: Option<T>) -> Case {
    if want.as_ref() == Some(&got) { Ok(()) } else { Err(format!("got {}, want {}", report::brief(&got), report::brief(&want))) }
}

fn hash_or_none(value: &Value) -> Option<BlockHash> {
    value.is_string().then(|| hash(value))
}

fn number_of(header: &Value) -> u64 {
    let text = header["number"].as_str().expect("a number").trim_start_matches("0x");
    u64::from_str_radix(text, 16).expect("hex")
}

/// The client arrives at the recorded head sooner or later.
fn head(polled: &Stage, line: &Value) -> Case {
    polled.tape.lock().expect("no poison").now = Some(("chain_getHeader []".into(), line["response"].clone()));
    let wanted = number_of(&line["response"]["result"]);
    let arrives = async {
        loop {
            match polled.node.head().await {
                Ok(head) if head.number == wanted => return Ok(()),
                Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => return Err(error),
            }
        }
    };
    polled.ask(arrives)
}

/// A read gives the recorded bytes, and the metadata decodes them.
fn stored(stage: &Stage, params: &Value, response: &Value) -> Case {
    let result = &response["result"];
    let (key, wanted) = (bytes(&params[0]), result.is_string().then(|| bytes(result)));
    // This client names a block with every read, where the Python client leaves it out.
    let at = hash_or_none(&params[1]).unwrap_or([0; 32]);
    let asked = json!([params[0], format!("0x{}", hex::encode(at))]);
    stage.tape.lock().expect("no poison").now = Some((name("state_getStorage", &asked), response.clone()));
    let got = stage.ask(stage.node.storage_bytes(&key, &at))?;
    same(&got, Some(&wanted))?;
    let Some(value) = got else { return Ok(()) };
    let zero = [Scale::u128(0), Scale::u128(0)];
    let account = [Scale::u128(0), Scale::from_bytes([0; 32])];
    let turned = [Scale::from_bytes([0; 32]), Scale::u128(0)];
    let items: [(&str, &str, &[Scale<()>]); 12] = [
        ("Timestamp", "Now", &[]),
        ("System", "Number", &[]),
        ("System", "Events", &[]),
        ("System", "Account", &account[1..]),
        ("SubtensorModule", "NetworksAdded", &zero[..1]),
        ("SubtensorModule", "SubnetworkN", &zero[..1]),
        ("SubtensorModule", "Uids", &account),
        ("SubtensorModule", "Keys", &zero),
        ("SubtensorModule", "IsNetworkMember", &turned),
        ("Commitments", "CommitmentOf", &account),
        ("Commitments", "LastCommitment", &account),
        ("System", "BlockHash", &zero[..1]),
    ];
    for (pallet, item, arguments) in items {
        let prefix = storage::key(&stage.metadata, pallet, item, arguments).map_err(|error| error.to_string())?;
        if key.get(..32) == prefix.get(..32) {
            return storage::value(&stage.metadata, pallet, item, &value).map(drop).map_err(|error| format!("{item}: {error}"));
        }
    }
    Err("no item that is known has this key".into())
}

/// What the pool refuses, the client calls refused, with the code.
fn refused(stage: &Stage, params: &Value, response: &Value) -> Case {
    let watching = name("author_submitAndWatchExtrinsic", params);
    stage.tape.lock().expect("no poison").now = Some((watching, response.clone()));
    match stage.runtime.block_on(stage.node.submit_and_watch(&bytes(&params[0]))) {
        Err(NodeError::Refused { code, .. }) => same(code, response["error"]["code"].as_i64()),
        other => Err(format!("got {:?}", other.map(drop))),
    }
}

/// Every status of a submission arrives, in order.
fn watched(stage: &Stage, params: &Value, subscription: &Value) -> Case {
    let id = subscription.as_str().expect("a subscription");
    let recorded = stage.tape.lock().expect("no poison").notifications.get(id).cloned().unwrap_or_default();
    let mut statuses = stage.ask(stage.node.submit_and_watch(&bytes(&params[0])))?;
    for notification in &recorded {
        let status = async { tokio::time::timeout(Duration::from_secs(60), statuses.recv()).await };
        let got = stage.runtime.block_on(status);
        same(got.map_err(|_| "a status is missing")?, Some(Some(notification["params"]["result"].clone())))?;
    }
    if recorded.is_empty() { Err("no status was recorded".into()) } else { Ok(()) }
}
