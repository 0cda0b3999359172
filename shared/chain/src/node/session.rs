//! One WebSocket and the task that owns it. Requests have ids and time limits; any surprise ends the session.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{SinkExt, StreamExt};
use grail_process::clock;
use grail_secrets::Address;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config};

use super::error::NodeError;
use crate::patience::Patience;
use crate::tls::client_config;

/// Notifications of one subscription that may wait; one that is not read loses its session.
const NOTIFICATIONS: usize = 256;
/// Most bytes of one notification: a header or a status has a few hundred, and they wait.
const NOTIFICATION_BYTES: usize = 128 << 10;
/// Most values of one message: each takes more memory than the two bytes that it may have in the text.
const VALUES: usize = 200_000;
/// Characters of a node's words that are kept.
const WORDS: usize = 300;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A handle to the task. The task ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    commands: mpsc::Sender<Command>,
    ended: watch::Receiver<Option<String>>,
    patience: Arc<Patience>,
    left: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Command {
    Request {
        method: &'static str,
        params: Value,
        reply: Reply,
    },
    /// A request was given up by who asked.
    GivenUp,
    /// Nothing that this node says is believed any more.
    Leave(String),
}

#[derive(Debug)]
enum Reply {
    Value(oneshot::Sender<Result<Value, NodeError>>),
    Subscription(oneshot::Sender<Result<mpsc::Receiver<Value>, NodeError>>),
}

impl Reply {
    fn is_wanted(&self) -> bool {
        match self {
            Self::Value(reply) => !reply.is_closed(),
            Self::Subscription(reply) => !reply.is_closed(),
        }
    }

    fn fail(self, error: NodeError) {
        match self {
            Self::Value(reply) => drop(reply.send(Err(error))),
            Self::Subscription(reply) => drop(reply.send(Err(error))),
        }
    }
}

impl Session {
    /// Opens a connection. The address is `ws://` or `wss://`.
    pub async fn open(endpoint: &Address, patience: Arc<Patience>) -> Result<Self, NodeError> {
        let connector =
            if endpoint.reveal().starts_with("wss://") { Connector::Rustls(client_config()?) } else { Connector::Plain };
        let mut config = WebSocketConfig::default();
        config.max_message_size = Some(patience.message_bytes);
        config.max_frame_size = Some(patience.message_bytes);
        let opening = connect_async_tls_with_config(endpoint.reveal(), Some(config), true, Some(connector));
        let (socket, _) = tokio::time::timeout(patience.connect, opening)
            .await
            .map_err(|_| {
                NodeError::Down(format!("{endpoint} did not accept a connection within {} s", patience.connect.as_secs()))
            })?
            .map_err(|error| NodeError::Down(format!("{endpoint}: {}", endpoint.clean(&error.to_string()))))?;
        let (commands, receiver) = mpsc::channel(patience.requests);
        let (ending, ended) = watch::channel(None);
        let owner = Owner {
            socket,
            patience: patience.clone(),
            pending: HashMap::new(),
            subscriptions: HashMap::new(),
            next: 1,
            given_up: 0,
        };
        tokio::spawn(async move {
            let reason = owner.run(receiver).await;
            ending.send_replace(Some(reason));
        });
        Ok(Self { commands, ended, patience, left: Arc::default() })
    }

    /// Sends a request and waits for its result.
    pub async fn request(&self, method: &'static str, params: Value) -> Result<Value, NodeError> {
        let limit =
            if method == "state_getMetadata" || method == "state_call" { self.patience.metadata } else { self.patience.request };
        let (reply, answer) = oneshot::channel();
        self.ask(method, params, Reply::Value(reply), answer, limit).await
    }

    /// Subscribes. The receiver ends with the session; each item is the `result` of one notification.
    pub async fn subscribe(&self, method: &'static str, params: Value) -> Result<mpsc::Receiver<Value>, NodeError> {
        let (reply, answer) = oneshot::channel();
        self.ask(method, params, Reply::Subscription(reply), answer, self.patience.request).await
    }

    async fn ask<T>(
        &self,
        method: &'static str,
        params: Value,
        reply: Reply,
        answer: oneshot::Receiver<Result<T, NodeError>>,
        limit: std::time::Duration,
    ) -> Result<T, NodeError> {
        let lost = || NodeError::Lost { method, reason: self.reason() };
        let exchange = async {
            self.commands.send(Command::Request { method, params, reply }).await.map_err(|_| lost())?;
            answer.await.map_err(|_| lost())?
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => {
                let _ = self.commands.try_send(Command::GivenUp);
                Err(NodeError::Late { method, seconds: limit.as_secs() })
            }
        }
    }

    /// Ends the session.
    pub fn leave(&self, why: String) {
        self.left.store(true, Ordering::Relaxed);
        // Where so much waits to be sent that this does not fit, the next answer says it again.
        let _ = self.commands.try_send(Command::Leave(why));
    }

    /// Whether it was ended because of what the node said.
    pub fn was_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Why the session ended, if it has.
    fn reason(&self) -> String {
        self.ended.borrow().clone().unwrap_or_else(|| "it was closed".into())
    }

    /// Waits for the end and tells its reason.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let _ = ended.wait_for(Option::is_some).await;
        self.reason()
    }
}

/// What the task owns.
struct Owner {
    socket: Socket,
    patience: Arc<Patience>,
    pending: HashMap<u64, (&'static str, Reply)>,
    subscriptions: HashMap<String, mpsc::Sender<Value>>,
    next: u64,
    given_up: u32,
}

impl Owner {
    /// Serves until the session must end, and tells why.
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> String {
        let mut ping = tokio::time::interval(self.patience.ping);
        ping.tick().await;
        let mut heard = clock::monotonic();
        let reason = loop {
            let outcome = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => Err("nobody uses it any more".into()),
                },
                message = self.socket.next() => {
                    heard = clock::monotonic();
                    self.message(message)
                }
                _ = ping.tick() => {
                    if heard.elapsed() >= self.patience.ping * 2 {
                        Err(format!("nothing was heard for {} s", heard.elapsed().as_secs()))
                    } else {
                        self.send(Message::Ping(Vec::new().into())).await
                    }
                }
            };
            if let Err(reason) = outcome {
                break reason;
            }
        };
        for (_, (method, reply)) in self.pending.drain() {
            reply.fail(NodeError::Lost { method, reason: reason.clone() });
        }
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), self.socket.close(None)).await;
        reason
    }

    async fn command(&mut self, command: Command) -> Result<(), String> {
        match command {
            Command::Request { method, params, reply } => {
                self.pending.retain(|_, (_, reply)| reply.is_wanted());
                if self.pending.len() >= self.patience.requests {
                    reply.fail(NodeError::Lost { method, reason: "too many requests are under way".into() });
                    return Ok(());
                }
                let id = self.next;
                self.next += 1;
                self.pending.insert(id, (method, reply));
                let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
                self.send(Message::text(request.to_string())).await
            }
            Command::GivenUp => {
                self.given_up += 1;
                if self.given_up >= self.patience.unanswered {
                    return Err(format!("{} requests in a row were not answered", self.given_up));
                }
                Ok(())
            }
            Command::Leave(why) => Err(why),
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), String> {
        let limit = self.patience.request;
        let sending = tokio::time::timeout(limit, self.socket.send(message)).await;
        sending.map_err(|_| format!("nothing could be sent for {} s", limit.as_secs()))?.map_err(|error| error.to_string())
    }

    fn message(&mut self, message: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>) -> Result<(), String> {
        match message {
            None => Err("the node closed it".into()),
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(Message::Text(text))) => {
                let separators = text.bytes().filter(|byte| *byte == b',').count();
                if separators > VALUES {
                    return Err(format!("the node sent a message of more than {VALUES} values"));
                }
                let message = serde_json::from_str(&text).map_err(|error| format!("the node sent what is not JSON: {error}"))?;
                self.json(message, text.len())
            }
            Some(Ok(Message::Close(_))) => Err("the node closed it".into()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Ok(Message::Binary(_) | Message::Frame(_))) => Err("the node sent a binary message".into()),
        }
    }

    fn json(&mut self, mut message: Value, bytes: usize) -> Result<(), String> {
        if message.get("method").is_some() {
            if bytes > NOTIFICATION_BYTES {
                return Err(format!("the node sent a notification of {bytes} bytes"));
            }
            return self.notification(&mut message["params"]);
        }
        let id = message["id"].as_u64().ok_or("the node sent what is neither answer nor notification")?;
        // An answer that nobody waits for any more is dropped.
        let Some((method, reply)) = self.pending.remove(&id) else { return Ok(()) };
        self.given_up = 0;
        if let Some(error) = message.get("error").filter(|error| !error.is_null()) {
            reply.fail(refusal(method, error));
            return Ok(());
        }
        let result = message["result"].take();
        match reply {
            Reply::Value(reply) => drop(reply.send(Ok(result))),
            Reply::Subscription(reply) => {
                let (sender, receiver) = mpsc::channel(NOTIFICATIONS);
                self.subscriptions.retain(|_, sender| !sender.is_closed());
                self.subscriptions.insert(subscription_name(&result).ok_or("a subscription has no usable id")?, sender);
                drop(reply.send(Ok(receiver)));
            }
        }
        Ok(())
    }

    fn notification(&mut self, params: &mut Value) -> Result<(), String> {
        let name = subscription_name(&params["subscription"]).ok_or("a notification has no usable subscription")?;
        let Some(sender) = self.subscriptions.get(&name) else { return Ok(()) };
        match sender.try_send(params["result"].take()) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(format!("{NOTIFICATIONS} notifications were not read")),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.subscriptions.remove(&name);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn subscription_name(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned).or_else(|| value.as_u64().map(|number| number.to_string()))
}

fn refusal(method: &'static str, error: &Value) -> NodeError {
    let code = error["code"].as_i64().unwrap_or_default();
    let data = error["data"].as_str().map(|data| format!(" ({data})")).unwrap_or_default();
    let message = format!("{}{data}", error["message"].as_str().unwrap_or("no message"));
    NodeError::Refused { method, code, message: message.chars().take(WORDS).collect() }
}
