//! JSON-RPC over WebSocket, the methods of chain 2.

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use grail_protocol::keys::public_key_of;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_tungstenite::tungstenite::Message;

use crate::Shared;
use crate::chain::{Block, Chain, header, notify, text, version};

/// A result, or code, message and data of an error.
type Answer = Result<Value, (i64, String, Value)>;

pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        if !shared.faults().down {
            tokio::spawn(connection(stream, shared.clone()));
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let Ok(socket) = tokio_tungstenite::accept_async(stream).await else { return };
    let (mut sink, mut source) = socket.split();
    let (sender, mut outgoing) = unbounded_channel::<Value>();
    let mut dropping = shared.dropping.subscribe();
    dropping.mark_unchanged();
    loop {
        tokio::select! {
            _ = dropping.changed() => return,
            Some(message) = outgoing.recv() => {
                let garbage = std::mem::take(&mut shared.faults().garbage);
                let message = if garbage { "not JSON".to_owned() } else { message.to_string() };
                if sink.send(Message::text(message)).await.is_err() {
                    return;
                }
            }
            message = source.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let request: Value = serde_json::from_str(&text).unwrap();
                    if !take(&shared, &request, &sender) {
                        return;
                    }
                }
                Some(Ok(_)) => {}
                _ => return,
            },
        }
    }
}

/// Deals with one request; false ends the connection.
fn take(shared: &Arc<Shared>, request: &Value, connection: &UnboundedSender<Value>) -> bool {
    let method = request["method"].as_str().unwrap().to_owned();
    let delay = {
        let mut faults = shared.faults();
        *faults.requests.entry(method.clone()).or_default() += 1;
        if faults.unanswered.contains(method.as_str()) {
            return true;
        }
        faults.late.get(method.as_str()).copied()
    };
    let answer = if shared.faults().unknown.contains(method.as_str()) {
        Err((-32601, "Method not found".into(), Value::Null))
    } else {
        answer(shared, &method, &request["params"], connection)
    };
    let submitted = method.starts_with("author_submit") && answer.is_ok();
    if submitted && shared.faults().cut_after_submission {
        return false;
    }
    let reply = match answer {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }),
        Err((code, message, data)) => {
            json!({ "jsonrpc": "2.0", "id": request["id"], "error": { "code": code, "message": message, "data": data } })
        }
    };
    let (connection, shared) = (connection.clone(), shared.clone());
    match delay {
        Some(delay) => drop(tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = connection.send(reply);
        })),
        None => {
            let _ = connection.send(reply);
            if submitted {
                let dropped = shared.faults().tells_dropped;
                shared.chain().tell_last(if dropped { json!("dropped") } else { json!("ready") });
            } else if method == "state_subscribeRuntimeVersion" {
                let chain = shared.chain();
                notify(&chain.runtimes[chain.runtimes.len() - 1..], "state_runtimeVersion", &version(&chain.tip().runtime));
            }
        }
    }
    true
}

fn answer(shared: &Shared, method: &str, params: &Value, connection: &UnboundedSender<Value>) -> Answer {
    let mut chain = shared.chain();
    let (metadata, value) = {
        let faults = shared.faults();
        (faults.metadata.clone(), faults.value.clone())
    };
    Ok(match method {
        "state_getMetadata" if metadata.is_some() => json!(metadata.map(|bytes| hexed(&bytes))),
        "state_call" if metadata.is_some() => json!("0x00"),
        "state_getStorage" if value.is_some() => json!(value.map(|bytes| hexed(&bytes))),
        "chain_getBlockHash" => match params[0].as_u64() {
            Some(0) => json!(text(&shared.faults().genesis.unwrap_or(crate::chain::GENESIS))),
            Some(number) => chain.best.get(number as usize).map_or(Value::Null, |block| json!(text(&block.hash))),
            None => json!(text(&chain.tip().hash)),
        },
        "chain_getFinalizedHead" => json!(text(&chain.finalized().hash)),
        "chain_getHeader" => {
            let mut told = at(&chain, &params[0]).map_or(Value::Null, header);
            if let Some(number) = shared.faults().finalized_number
                && params[0] == json!(text(&chain.finalized().hash))
            {
                told["number"] = json!(format!("0x{number:x}"));
            }
            told
        }
        "chain_getBlock" => match at(&chain, &params[0]) {
            Some(block) => {
                let extrinsics: Vec<String> = block.extrinsics.iter().map(|bytes| hexed(bytes)).collect();
                json!({ "block": { "header": header(block), "extrinsics": extrinsics }, "justifications": null })
            }
            None => Value::Null,
        },
        "state_getRuntimeVersion" => version(&state(&chain, &params[0])?.runtime),
        "state_getMetadata" => json!(hexed(&state(&chain, &params[0])?.runtime.bytes)),
        "state_call" if params[0] == "Metadata_metadata_at_version" => {
            let version = u32::from_le_bytes(unhexed(&params[1]).try_into().unwrap());
            json!(hexed(&state(&chain, &params[2])?.runtime.at_version(version)))
        }
        "state_getStorage" => {
            let value = state(&chain, &params[1])?.storage.get(&unhexed(&params[0]));
            value.map_or(Value::Null, |bytes| json!(hexed(bytes)))
        }
        "state_queryStorageAt" => {
            let block = state(&chain, &params[1])?;
            let change = |key: &Value| json!([key, block.storage.get(&unhexed(key)).map(|bytes| hexed(bytes))]);
            let changes: Vec<Value> = params[0].as_array().unwrap().iter().map(change).collect();
            json!([{ "block": text(&block.hash), "changes": changes }])
        }
        "system_accountNextIndex" => json!(chain.next_nonce(&public_key_of(params[0].as_str().unwrap()).unwrap())),
        "author_submitAndWatchExtrinsic" => {
            let name = subscription();
            let submitted = chain.submit(unhexed(&params[0]), Some((connection.clone(), name.clone())));
            submitted.map_err(|(code, message, data)| (code, message.into(), json!(data)))?;
            json!(name)
        }
        "chain_subscribeNewHeads" | "chain_subscribeFinalizedHeads" | "state_subscribeRuntimeVersion" => {
            let name = subscription();
            let list = match method {
                "chain_subscribeNewHeads" => &mut chain.heads,
                "chain_subscribeFinalizedHeads" => &mut chain.finalized_heads,
                _ => &mut chain.runtimes,
            };
            list.push((connection.clone(), name.clone()));
            json!(name)
        }
        _ => return Err((-32601, "Method not found".into(), Value::Null)),
    })
}

fn at<'a>(chain: &'a Chain, hash: &Value) -> Option<&'a Block> {
    match hash.as_str() {
        Some(_) => chain.known.get(&<[u8; 32]>::try_from(unhexed(hash)).unwrap()),
        None => Some(chain.tip()),
    }
}

fn state<'a>(chain: &'a Chain, hash: &Value) -> Result<&'a Block, (i64, String, Value)> {
    at(chain, hash).ok_or_else(|| (4003, "Client error: UnknownBlock: State already discarded".into(), Value::Null))
}

fn subscription() -> String {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    format!("s{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

fn hexed(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

/// Strict: without `0x` it is refused, as strict nodes do.
fn unhexed(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap().strip_prefix("0x").expect("hex with 0x")).unwrap()
}
