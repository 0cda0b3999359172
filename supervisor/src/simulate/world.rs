//! A simulated host in virtual time: servers, proof workers and what breaks.

use std::collections::{BTreeMap, VecDeque};

use grail_mining::schedule::ServerLoad;
use grail_protocol::constants::ROLLOUTS_PER_PROBLEM;

use super::draws::Draws;
use super::engine::Engine;
use super::host::Host;

/// Something that happened.
#[derive(Debug)]
pub enum SimEvent {
    /// A completion of a group ended after so many tokens.
    Completed(i64, u32),
    /// A group is durable.
    Proved(i64),
    /// A group was lost with its server.
    Lost(i64),
}

/// What is drawn for a window itself, before its groups.
const OF_THE_WINDOW: u64 = u64::MAX;
/// What is drawn for its file.
const OF_THE_FILE: u64 = u64::MAX - 1;

/// A group that is generated.
#[derive(Debug)]
struct SimGroup {
    replica: usize,
    /// Seconds of its proof.
    proof: f64,
}

/// A proof worker.
#[derive(Debug, Default)]
struct Worker {
    job: Option<(i64, f64)>,
    until: f64,
    down_until: f64,
    busy: f64,
}

/// A death to come.
#[derive(Debug, Clone, Copy)]
enum Death {
    Server(usize),
    Worker(usize),
}

/// The host.
#[derive(Debug)]
pub struct World<'a> {
    host: &'a Host,
    seed: u64,
    window: u64,
    /// Seconds since the window opened.
    pub now: f64,
    engines: Vec<Engine>,
    down_until: Vec<f64>,
    workers: Vec<Worker>,
    waiting: VecDeque<(i64, f64)>,
    going: BTreeMap<i64, SimGroup>,
    deaths: Vec<(f64, Death)>,
    next_index: i64,
}

impl<'a> World<'a> {
    /// A host with everything up.
    pub fn new(host: &'a Host, seed: u64) -> Self {
        let generation = &host.generation;
        let engine = || Engine::new(generation.throughput.clone(), generation.prefill_tokens_per_second, generation.max_running);
        Self {
            host,
            seed,
            window: 0,
            now: 0.0,
            engines: (0..generation.replicas).map(|_| engine()).collect(),
            down_until: vec![0.0; generation.replicas],
            workers: (0..host.proof.workers).map(|_| Worker::default()).collect(),
            waiting: VecDeque::new(),
            going: BTreeMap::new(),
            deaths: Vec::new(),
            next_index: 0,
        }
    }

    /// A new window: nothing is under way, and what will break is drawn. Returns what is drawn of it by `clock`, of which it
    /// needs the length in seconds.
    pub fn open<C>(&mut self, window: u64, clock: impl FnOnce(&mut Draws) -> (C, f64)) -> C {
        let mut draws = Draws::of(self.seed, window, OF_THE_WINDOW);
        let (clock, length) = clock(&mut draws);
        (self.window, self.next_index) = (window, 0);
        let Self { host, engines, down_until, workers, .. } = self;
        engines.iter_mut().for_each(|engine| engine.clear(draws.jitter(host.jitter.generation_sigma)));
        down_until.iter_mut().for_each(|until| *until -= length);
        for worker in workers.iter_mut() {
            worker.job = None;
            worker.down_until -= length;
        }
        self.deaths.clear();
        for server in 0..engines.len() {
            if draws.happens(host.failures.server) {
                self.deaths.push((draws.share() * length, Death::Server(server)));
            }
        }
        for worker in 0..workers.len() {
            if draws.happens(host.failures.worker) {
                self.deaths.push((draws.share() * length, Death::Worker(worker)));
            }
        }
        self.waiting.clear();
        self.going.clear();
        self.now = host.generation.weights_seconds;
        clock
    }

    /// The draws of the window's file.
    pub fn of_the_file(&self) -> Draws {
        Draws::of(self.seed, self.window, OF_THE_FILE)
    }

    /// Whether any server answers.
    pub fn serves(&self) -> bool {
        self.down_until.iter().any(|until| *until <= self.now)
    }

    /// Begins a group with the next index, at the least loaded server. Returns its index and the tokens of its prompt.
    pub fn begin(&mut self) -> (i64, u32) {
        let index = self.next_index;
        self.next_index += 1;
        let Host { lengths, proof, jitter, .. } = self.host;
        let mut draws = Draws::of(self.seed, self.window, index.unsigned_abs());
        let prompt = (lengths.prompt * draws.jitter(lengths.prompt_sigma)).clamp(1.0, lengths.longest) as u32;
        let problem = lengths.completion * draws.jitter(lengths.group_sigma);
        let completion = |draws: &mut Draws| {
            (problem * draws.jitter(lengths.completion_sigma)).clamp(lengths.shortest, lengths.longest) as u32
        };
        let all: Vec<u32> = (0..ROLLOUTS_PER_PROBLEM).map(|_| completion(&mut draws)).collect();
        let load = |replica: &usize| {
            let (running, queued) = self.engines[*replica].load();
            (self.down_until[*replica] > self.now, running + queued)
        };
        let replica = (0..self.engines.len()).min_by_key(load).unwrap_or(0);
        self.engines[replica].add(index, f64::from(prompt), &all);
        // The prompt of a group is proved once.
        let tokens = f64::from(prompt) + all.iter().map(|length| f64::from(*length)).sum::<f64>();
        let proof = (tokens / proof.tokens_per_second + proof.group_seconds) * draws.jitter(jitter.proof_sigma);
        self.going.insert(index, SimGroup { replica, proof });
        (index, prompt)
    }

    /// Abandons a group that is generated.
    pub fn abort(&mut self, index: i64) {
        if let Some(going) = self.going.remove(&index) {
            self.engines[going.replica].abort(index);
        }
    }

    /// Groups that are generated, and groups that are with the proof workers.
    pub fn under_way(&self) -> (usize, usize) {
        let proving = self.workers.iter().filter(|worker| worker.job.is_some()).count();
        (self.going.len(), self.waiting.len() + proving)
    }

    /// What the servers say about themselves.
    pub fn server_load(&self) -> ServerLoad {
        let (running, queued) =
            self.engines.iter().map(Engine::load).fold((0, 0), |(a, b), (running, queued)| (a + running, b + queued));
        let most = self.host.generation.max_running * self.engines.len();
        let full = running as f64 / most as f64;
        ServerLoad { running: running as f64, queued: queued as f64, cache_use: if queued > 0 { full } else { full.min(0.9) } }
    }

    /// A group's completions go to the proof workers.
    pub fn prove(&mut self, index: i64) {
        let Some(SimGroup { proof, .. }) = self.going.remove(&index) else { return };
        self.waiting.push_back((index, proof));
        self.hand_out();
    }

    fn hand_out(&mut self) {
        let now = self.now;
        for worker in self.workers.iter_mut().filter(|worker| worker.job.is_none() && worker.down_until <= now) {
            let Some((index, seconds)) = self.waiting.pop_front() else { break };
            worker.job = Some((index, seconds));
            worker.until = now + seconds;
        }
    }

    /// Lets time pass until something happens, at most until `limit`.
    pub fn step(&mut self, limit: f64) -> Vec<SimEvent> {
        let down = |until: f64, now: f64| (until - now).max(0.0);
        let generation =
            (0..self.engines.len()).filter_map(|at| Some(self.engines[at].next()? + down(self.down_until[at], self.now)));
        let proofs = self.workers.iter().filter(|worker| worker.job.is_some()).map(|worker| worker.until - self.now);
        let up = self.workers.iter().map(|worker| worker.down_until - self.now).filter(|seconds| *seconds > 0.0);
        let deaths = self.deaths.iter().map(|(at, _)| at - self.now);
        let seconds = generation.chain(proofs).chain(up).chain(deaths).fold(limit - self.now, f64::min).max(0.0);
        let before = self.now;
        self.now += seconds;
        let mut happenings = Vec::new();
        for at in 0..self.engines.len() {
            let worked = (seconds - down(self.down_until[at], before)).max(0.0);
            let ended = self.engines[at].pass(worked);
            happenings.extend(ended.into_iter().map(|(group, tokens)| SimEvent::Completed(group, tokens)));
        }
        happenings.extend(self.proved(seconds));
        happenings.extend(self.break_things());
        self.hand_out();
        happenings
    }

    fn proved(&mut self, seconds: f64) -> Vec<SimEvent> {
        let now = self.now;
        let mut done = Vec::new();
        for worker in self.workers.iter_mut().filter(|worker| worker.job.is_some()) {
            worker.busy += seconds;
            if worker.until <= now + 1e-9 {
                done.extend(worker.job.take().map(|(index, _)| SimEvent::Proved(index)));
            }
        }
        done
    }

    fn break_things(&mut self) -> Vec<SimEvent> {
        let now = self.now;
        let due: Vec<Death> = self.deaths.extract_if(.., |(at, _)| *at <= now + 1e-9).map(|(_, death)| death).collect();
        let mut lost = Vec::new();
        for death in due {
            match death {
                Death::Server(server) => {
                    for index in self.engines[server].groups() {
                        self.going.remove(&index);
                        lost.push(SimEvent::Lost(index));
                    }
                    self.engines[server].clear(1.0);
                    self.down_until[server] = now + self.host.failures.server_seconds;
                }
                Death::Worker(worker) => {
                    let worker = &mut self.workers[worker];
                    worker.down_until = now + self.host.failures.worker_seconds;
                    // Another worker does it again.
                    if let Some(job) = worker.job.take() {
                        self.waiting.push_front(job);
                    }
                }
            }
        }
        lost
    }

    /// Seconds that servers and workers worked, and tokens that were made, since the beginning.
    pub fn worked(&self) -> (f64, f64, f64) {
        let generation = self.engines.iter().map(|engine| engine.busy).sum();
        let proofs = self.workers.iter().map(|worker| worker.busy).sum();
        (generation, proofs, self.engines.iter().map(|engine| engine.made).sum())
    }
}
