//! `fake-launcher`: stands in for `grail-gen-launcher` and its generation server. The launcher speaks the real link protocol
//! and owns the server as the real one does; the server gives random ids, and fails where its script says so.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use grail_fakes::{Act, Reply, Script, ServerLie, ServerLies, completion, serve};
use grail_link::Connection;
use grail_link::message::{FromLauncher, ToLauncher};
use grail_process::{Child, Launch, Spawner, environment};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

const BODY_LIMIT: usize = 1 << 20;
const CONTEXT_LENGTH: u32 = 2048;
/// Ports of its servers, as of the real ones: below those that the kernel gives to others in the meantime.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

fn main() -> ExitCode {
    let serves = std::env::args().nth(1).is_some_and(|first| first == "server");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime
        .context("starting")
        .and_then(|runtime| runtime.block_on(async { if serves { be_the_server().await } else { Launcher::run().await } }));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ERROR The fake launcher or server ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn argument(name: &str) -> anyhow::Result<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1).with_context(|| format!("{name} is missing"))
}

struct Launcher {
    spawner: Spawner,
    server: Option<(Child, String)>,
}

impl Launcher {
    async fn run() -> anyhow::Result<()> {
        eprintln!("INFO A fake launcher stands in for grail-gen-launcher; its server gives random ids, there is no model.");
        let socket = PathBuf::from(argument("--socket")?);
        let Connection { mut inbox, mut outbox } = Connection::<ToLauncher, FromLauncher>::connect(&socket).await?;
        outbox.send(&FromLauncher::Hello { pid: std::process::id(), backend: "embedded".into() }).await?;
        let (forward, mut commands) = tokio::sync::mpsc::channel(4);
        let reading = tokio::spawn(async move {
            while let Ok(Some(command)) = inbox.receive().await {
                if forward.send(command).await.is_err() {
                    return;
                }
            }
        });
        let mut launcher = Self { spawner: Spawner::start()?, server: None };
        let ended = tokio::select! {
            _ = reading => Ok(()),
            ended = async {
                loop {
                    let command = match &mut launcher.server {
                        None => commands.recv().await,
                        Some((server, _)) => tokio::select! {
                            command = commands.recv() => command,
                            status = server.exited() => bail!("the fake server ended by itself: {status}"),
                        },
                    };
                    match command {
                        Some(ToLauncher::Reload(command)) => {
                            let url = launcher.load(&command.directory, &command.revision.to_string()).await?;
                            let serving = FromLauncher::Serving { revision: command.revision, url, context_length: CONTEXT_LENGTH };
                            outbox.send(&serving).await?;
                        }
                        None => std::future::pending().await,
                    }
                }
            } => ended,
        };
        if let Some((server, _)) = &mut launcher.server {
            server.stop(Duration::from_secs(1)).await;
        }
        ended
    }

    /// The server's address, with these weights in it.
    async fn load(&mut self, directory: &Path, version: &str) -> anyhow::Result<String> {
        if let Some((_, url)) = &self.server {
            let update = reqwest::Client::builder().no_proxy().build()?.post(format!("{url}/update/{version}")).send();
            update.await?.error_for_status()?;
            return Ok(url.clone());
        }
        let from = PORTS.start + (std::process::id().wrapping_mul(97) % u32::from(PORTS.end - PORTS.start)) as u16;
        let address = SocketAddr::from(([127, 0, 0, 1], grail_process::ports::free(PORTS, from)?));
        let arguments: Vec<OsString> = vec![
            "server".into(),
            "--address".into(),
            address.to_string().into(),
            "--model".into(),
            directory.into(),
            "--weight-version".into(),
            version.into(),
        ];
        let program = std::env::args_os().next().context("a program has a name")?.into();
        let environment = environment::for_child(std::env::vars_os(), []);
        let mut server = self.spawner.spawn(Launch { name: "fake server".into(), program, arguments, environment }).await?;
        if let Some(output) = server.take_output() {
            tokio::spawn(async move {
                let mut lines = BufReader::new(output.stderr).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    eprintln!("{line}");
                }
            });
        }
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::select! {
                status = server.exited() => bail!("the fake server ended while it started: {status}"),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        let url = format!("http://{address}");
        self.server = Some((server, url.clone()));
        Ok(url)
    }
}

async fn be_the_server() -> anyhow::Result<()> {
    let act = Act::begin(&Script::folder(), "server")?;
    let address: SocketAddr = argument("--address")?.parse()?;
    let config: Value = serde_json::from_slice(&std::fs::read(Path::new(&argument("--model")?).join("config.json"))?)?;
    let number = |key: &str| config[key].as_u64().and_then(|number| u32::try_from(number).ok()).with_context(|| key.to_owned());
    let server = Arc::new(Server {
        vocabulary: number("vocab_size")?,
        end: number("eos_token_id")?,
        version: Mutex::new(argument("--weight-version")?),
        lies: Mutex::new(ServerLies::of(&act)),
        act,
    });
    tokio::time::sleep(Script::time(server.act.script.load_seconds)).await;
    eprintln!("INFO A fake generation server stands in for SGLang at {address}.");
    let listener = tokio::net::TcpListener::bind(address).await?;
    match serve(listener, move |request| server.clone().answer(request)).await {}
}

struct Server {
    act: Act,
    vocabulary: u32,
    end: u32,
    version: Mutex<String>,
    lies: Mutex<ServerLies>,
}

impl Server {
    async fn answer(self: Arc<Self>, request: Request<hyper::body::Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        if let Some(version) = path.strip_prefix("/update/") {
            tokio::time::sleep(Script::time(self.act.script.load_seconds)).await;
            version.clone_into(&mut self.version.lock().unwrap_or_else(PoisonError::into_inner));
            return Reply::json(StatusCode::OK, &json!({"success": true}));
        }
        if path != "/generate" {
            return Reply::json(StatusCode::OK, &json!({"status": "a fake"}));
        }
        let body = to_bytes(Body::new(request.into_body()), BODY_LIMIT).await.unwrap_or_default();
        let Ok(body) = serde_json::from_slice::<Value>(&body) else {
            return Reply::json(StatusCode::BAD_REQUEST, &json!({"error": "no JSON"}));
        };
        let prompt = body["input_ids"].to_string();
        let lie = self.lies.lock().unwrap_or_else(PoisonError::into_inner).next(prompt);
        if let Some(lie) = lie {
            eprintln!("WARN The fake server lies: {lie:?}.");
        }
        tokio::time::sleep(Script::time(self.act.script.completion_seconds)).await;
        self.complete(&body, lie).await
    }

    async fn complete(&self, body: &Value, lie: Option<ServerLie>) -> Reply {
        let mut ids = completion(self.act.script.completion_tokens, self.vocabulary, self.end);
        let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut end = json!({"type": "stop", "matched": self.end});
        match lie {
            None => {}
            Some(ServerLie::Slow) => tokio::time::sleep(Duration::from_secs(3)).await,
            Some(ServerLie::IdOutsideVocabulary) => ids[3] = self.vocabulary,
            Some(ServerLie::TooLong) => {
                let asked = body["sampling_params"]["max_new_tokens"].as_u64().unwrap_or(0) as usize;
                ids.resize(asked + 1, self.end);
            }
            Some(ServerLie::TooShort) => ids.drain(..ids.len() - 8).for_each(drop),
            Some(ServerLie::NoEnd) => ids.truncate(ids.len() - 1),
            Some(ServerLie::WrongWeightVersion) => version = "0-00000000000000000000000000000000".into(),
            Some(ServerLie::Aborted) => end = json!({"type": "abort", "message": "the script aborts it"}),
            Some(ServerLie::ErrorInside) => return Reply::json(StatusCode::OK, &json!({"error": {"message": "out of memory"}})),
            Some(ServerLie::Status500) => {
                return Reply::json(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": "the script says 500"}));
            }
            Some(ServerLie::Cut) => return Reply::Cut,
            Some(ServerLie::Hang) => return Reply::Hang,
            Some(ServerLie::Die) => std::process::exit(1),
            Some(ServerLie::HalfAnAnswer | ServerLie::CutInTheMiddle) => {}
        }
        let answer = json!({
            "text": "",
            "output_ids": ids,
            "meta_info": {"id": "fake", "finish_reason": end, "completion_tokens": ids.len(), "weight_version": version},
        });
        let text = Bytes::from(answer.to_string());
        match lie {
            Some(ServerLie::HalfAnAnswer) => Reply::text(StatusCode::OK, "application/json", text.slice(..text.len() / 2)),
            Some(ServerLie::CutInTheMiddle) => Reply::Half(StatusCode::OK, HeaderMap::new(), text),
            _ => Reply::text(StatusCode::OK, "application/json", text),
        }
    }
}
