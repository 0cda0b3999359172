//! The one thread that owns the engine. Commands are looked at between steps, so none of them interrupts one.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use grail_model::generation::{Engine, Finished, Request, RequestError, Ticket};
use grail_model::{ModelConfig, ReloadError, stop_token_ids};
use tokio::sync::oneshot;

/// How often a waiting engine looks for clients that have gone.
const IDLE_LOOK: Duration = Duration::from_millis(100);

/// What is asked of the engine thread.
pub enum Command {
    /// Complete a prompt. A dropped receiver aborts it.
    Generate {
        /// The request, its own name, and where the answer goes.
        request: Request,
        /// The client's name for it, unique among those in flight.
        rid: String,
        /// Where the completion goes.
        reply: oneshot::Sender<Result<Finished, RequestError>>,
    },
    /// Replace the weights once nothing runs (at once while paused).
    Update {
        /// The new checkpoint's directory.
        model_path: PathBuf,
        /// Its name, if the caller gives one.
        weight_version: Option<String>,
        /// End the running requests instead of waiting for them.
        abort_all: bool,
        /// Number of paused requests, or why the update failed.
        reply: oneshot::Sender<Result<usize, String>>,
    },
    /// Forget prefilled prompts; refused while requests run.
    Flush(oneshot::Sender<bool>),
    /// End one request, or all.
    Abort(Option<String>),
    /// Stop stepping; `retract` keeps the requests, else they are ended.
    Pause {
        /// Whether running requests are kept for later.
        retract: bool,
        /// Answered when nothing runs any more.
        reply: oneshot::Sender<()>,
    },
    /// Step again.
    Continue,
    /// Answered between two steps: the loop turns. `false` while paused.
    Ping(oneshot::Sender<bool>),
}

/// What `/model_info` and `/server_info` tell.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Where the weights came from.
    pub model_path: PathBuf,
    /// Their name.
    pub weight_version: String,
    /// Rows of the batch.
    pub max_running: usize,
    /// Seed of the random numbers.
    pub random_seed: u64,
}

/// Figures of the engine, as of the last step.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// Requests in the batch.
    pub running: usize,
    /// Requests that wait.
    pub queued: usize,
    /// Tokens of finished requests.
    pub tokens: u64,
}

/// The HTTP side's end.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    config: Arc<ModelConfig>,
}

struct Shared {
    facts: Mutex<Facts>,
    gauges: Mutex<Gauges>,
}

impl Handle {
    /// Hands a command over; `false` when the engine thread is gone, which ends the process anyway.
    pub fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// What is loaded now.
    pub fn facts(&self) -> Facts {
        self.shared.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The engine's figures.
    pub fn gauges(&self) -> Gauges {
        self.shared.gauges.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
}

struct Waiting {
    rid: String,
    reply: oneshot::Sender<Result<Finished, RequestError>>,
}

struct Update {
    model_path: PathBuf,
    weight_version: Option<String>,
    reply: oneshot::Sender<Result<usize, String>>,
}

struct Loop {
    engine: Engine,
    shared: Arc<Shared>,
    in_flight: HashMap<Ticket, Waiting>,
    /// What ended in this turn.
    answers: Vec<(Waiting, Finished)>,
    updates: VecDeque<Update>,
    /// Requests that came after an update that still waits.
    held: VecDeque<(Request, Waiting)>,
    paused: bool,
    tokens: u64,
}

/// Starts the thread. If it fails the process ends: a server without an engine must not look alive.
///
/// # Errors
/// When the operating system refuses a thread.
pub fn start(engine: Engine, facts: Facts) -> std::io::Result<Handle> {
    let (commands, inbox) = mpsc::channel();
    let config = Arc::new(engine.config().clone());
    let shared = Arc::new(Shared { facts: Mutex::new(facts), gauges: Mutex::default() });
    let turning = Loop {
        engine,
        shared: shared.clone(),
        in_flight: HashMap::new(),
        answers: Vec::new(),
        updates: VecDeque::new(),
        held: VecDeque::new(),
        paused: false,
        tokens: 0,
    };
    std::thread::Builder::new().name("engine".into()).spawn(move || {
        // A panic is caught here for the same end: libtorch calls that cannot fail by contract panic when they do.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| turning.run(&inbox)));
        let reason = ended.unwrap_or_else(|_| "the engine thread panicked".to_owned());
        tracing::error!(reason, "The embedded engine cannot go on.");
        std::process::exit(1);
    })?;
    Ok(Handle { commands, shared, config })
}

impl Loop {
    /// Turns until something breaks; returns what.
    fn run(mut self, inbox: &Receiver<Command>) -> String {
        loop {
            if let Err(error) = self.turn(inbox) {
                return error;
            }
        }
    }

    fn turn(&mut self, inbox: &Receiver<Command>) -> Result<(), String> {
        self.take_commands(inbox)?;
        self.drop_abandoned()?;
        self.update_when_possible()?;
        if !self.paused && !self.engine.is_idle() {
            let finished = self.engine.step().map_err(|error| error.to_string())?;
            finished.into_iter().for_each(|finished| self.end(finished));
        }
        let gauges =
            Gauges { running: self.engine.running(), queued: self.engine.queued() + self.held.len(), tokens: self.tokens };
        *self.shared.gauges.lock().unwrap_or_else(PoisonError::into_inner) = gauges;
        // Whoever has an answer finds it in the figures.
        self.answers.drain(..).for_each(|(waiting, finished)| _ = waiting.reply.send(Ok(finished)));
        Ok(())
    }

    /// All commands that are there; waits for one where there is nothing else to do.
    fn take_commands(&mut self, inbox: &Receiver<Command>) -> Result<(), String> {
        if self.paused || (self.engine.is_idle() && self.updates.is_empty()) {
            match inbox.recv_timeout(IDLE_LOOK) {
                Ok(command) => self.obey(command)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("the HTTP side is gone".to_owned()),
            }
        }
        while let Ok(command) = inbox.try_recv() {
            self.obey(command)?;
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Result<(), String> {
        // A receiver that is gone needs no answer, so results of `send` are dropped throughout.
        match command {
            Command::Generate { request, rid, reply } => {
                let waiting = Waiting { rid, reply };
                if self.updates.is_empty() { self.submit(request, waiting) } else { self.held.push_back((request, waiting)) }
            }
            Command::Update { model_path, weight_version, abort_all, reply } => {
                if abort_all {
                    self.abort_all();
                }
                self.updates.push_back(Update { model_path, weight_version, reply });
            }
            Command::Flush(reply) => {
                let idle = self.engine.is_idle();
                if idle {
                    self.engine.flush();
                }
                let _ = reply.send(idle);
            }
            Command::Abort(None) => self.abort_all(),
            Command::Abort(Some(rid)) => self.abort(&rid)?,
            Command::Pause { retract, reply } => {
                self.paused = true;
                if retract {
                    self.engine.retract_all()
                } else {
                    self.abort_all()
                }
                let _ = reply.send(());
            }
            Command::Continue => self.paused = false,
            Command::Ping(reply) => {
                let _ = reply.send(!self.paused);
            }
        }
        Ok(())
    }

    fn submit(&mut self, request: Request, waiting: Waiting) {
        match self.engine.submit(request) {
            Ok(ticket) => {
                self.in_flight.insert(ticket, waiting);
            }
            Err(error) => {
                let _ = waiting.reply.send(Err(error));
            }
        }
    }

    fn end(&mut self, finished: Finished) {
        self.tokens += finished.output.len() as u64;
        if let Some(waiting) = self.in_flight.remove(&finished.ticket) {
            self.answers.push((waiting, finished));
        }
    }

    fn abort_all(&mut self) {
        let aborted = self.engine.abort_all("Aborted by abort_request");
        aborted.into_iter().for_each(|finished| self.end(finished));
    }

    fn abort(&mut self, rid: &str) -> Result<(), String> {
        let ticket = self.in_flight.iter().find(|(_, waiting)| waiting.rid == rid).map(|(ticket, _)| *ticket);
        let Some(ticket) = ticket else { return Ok(()) };
        let aborted = self.engine.abort(ticket, "Aborted by abort_request").map_err(|error| error.to_string())?;
        aborted.into_iter().for_each(|finished| self.end(finished));
        Ok(())
    }

    /// Requests whose client has closed the connection.
    fn drop_abandoned(&mut self) -> Result<(), String> {
        self.held.retain(|(_, waiting)| !waiting.reply.is_closed());
        let gone: Vec<Ticket> =
            self.in_flight.iter().filter(|(_, waiting)| waiting.reply.is_closed()).map(|(ticket, _)| *ticket).collect();
        for ticket in gone {
            self.in_flight.remove(&ticket);
            self.engine.abort(ticket, "the client is gone").map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn update_when_possible(&mut self) -> Result<(), String> {
        while self.paused || self.engine.is_idle() {
            let Some(update) = self.updates.pop_front() else { break };
            let outcome = self.update(&update)?;
            let _ = update.reply.send(outcome);
        }
        if self.updates.is_empty() {
            while let Some((request, waiting)) = self.held.pop_front() {
                self.submit(request, waiting);
            }
        }
        Ok(())
    }

    /// The outer error ends the process, the inner one leaves the old weights serving.
    fn update(&mut self, update: &Update) -> Result<Result<usize, String>, String> {
        let current = self.shared.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let version = update.weight_version.clone().unwrap_or(current.weight_version);
        let stops = match stop_token_ids(&update.model_path, self.engine.config()) {
            Ok(stops) => stops,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let paused = self.engine.queued() + self.engine.running();
        match self.engine.reload(&update.model_path, stops, &version) {
            Ok(()) => {}
            Err(unfit @ ReloadError::Unfit { .. }) => return Err(unfit.to_string()),
            Err(refused) => return Ok(Err(refused.to_string())),
        }
        let mut facts = self.shared.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.model_path = update.model_path.clone();
        facts.weight_version = version;
        Ok(Ok(paused))
    }
}
