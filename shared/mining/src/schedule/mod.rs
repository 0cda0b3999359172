//! What is begun, and what is given up, so that a window holds as many rollouts as it can and is never late. Pure: time, and
//! what happened, are arguments; the miner and the simulator drive the same struct.
//!
//! ```text
//!                    requests in flight below the knee, proofs not behind,
//!                    and likely enough to be durable in time
//!   (index) ──────────────────────────────────────────────▶ generating ──16th completion──▶ proving ──▶ durable
//!                                                             │ hardly ever done in time
//!                                                             └──▶ given up, its requests aborted
//! ```
//!
//! Admission asks about the next group, whichever it is: whether a task is short plays no part, because a file of the quick
//! tasks only would be another distribution than the network's. Near the end it simply stops.

mod drain;
mod lengths;
mod pace;
mod places;
mod spread;

use grail_settings::{Admission, GroupsInFlight};
use std::collections::BTreeMap;

use grail_protocol::constants::{DEADLINE_SLACK_SECONDS, ROLLOUTS_PER_PROBLEM};
use grail_protocol::time_budget::{TimeBudget, TimeBudgetError};
use grail_protocol::window::window_start;

use crate::clockwork::{Clockwork, ClosingTime};
use drain::Drain;
use lengths::Lengths;
use pace::Pace;
use places::{Places, Terms};
use spread::Spread;

pub use places::{Choice, Reason, ServerLoad};

/// A group with a smaller chance of being in time is given up.
const HOPELESS: f64 = 0.1;
/// Share of a block between two looks for them.
const LOOK_SHARE: f64 = 0.1;
/// Groups that begin with a smaller chance teach no lengths: of them only the short ones would be seen.
const UNBIASED: f64 = 0.99;
/// Blocks that a group is taken to need at most, where it is asked until when a window is worth opening.
const GROUP_BLOCKS: f64 = 6.0;
/// Standard deviations of proof time that are planned for.
const PROOF_DEVIATIONS: f64 = 1.0;
/// Standard deviations of upload time that are kept free, beside twice its mean.
const UPLOAD_DEVIATIONS: f64 = 4.0;
/// Blocks that are kept free in any case: a fast uplink too has its hiccups.
const LEAST_FREE: f64 = 0.5;
/// Standard deviations of the end of an upload and of a whole one, where the one may come to nothing and the other must follow.
const ANEW_DEVIATIONS: f64 = 1.5;

/// Share of a window's groups that may come too late: none lost at all would mean that the end of the window stays unused.
const LOSS: f64 = 0.02;
/// Share of what one window teaches about the end of the next ones.
const LESSON: f64 = 0.25;
/// Most that one window teaches, in blocks; and most that is learnt in all.
const LESSON_BLOCKS: (f64, f64) = (0.5, 5.0);

/// Settings of a schedule.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Who decides.
    pub gate: Admission,
    /// Chance of being in time that a group needs to begin, above 0 and at most 1.
    pub confidence: f64,
    /// Blocks kept free at the end of a window (`GRAIL_MINER_SAFETY_BLOCKS`).
    pub safety_blocks: f64,
    /// Groups in flight.
    pub groups_in_flight: GroupsInFlight,
    /// Requests that the client sends at once.
    pub max_concurrent: usize,
    /// Proof workers.
    pub proof_workers: usize,
}

/// A group under way.
#[derive(Debug, Clone)]
struct Flight {
    begun: f64,
    /// Of the token clock when it began.
    tokens: f64,
    /// Of the load's integral when it began.
    exposure: f64,
    prompt: Option<u32>,
    /// Its length may be learnt from.
    unbiased: bool,
    /// Tokens of the completions that ended.
    lengths: Vec<u32>,
    generated: Option<f64>,
    /// Groups that were to be proved when it was generated.
    ahead: usize,
}

impl Flight {
    /// Requests of it that are in flight.
    fn requests(&self) -> usize {
        ROLLOUTS_PER_PROBLEM.saturating_sub(self.lengths.len())
    }
}

/// Tokens that a request makes as time goes by, at the pace of the load.
#[derive(Debug, Clone, Copy, Default)]
struct TokenClock {
    at: f64,
    /// Requests in flight.
    load: usize,
    tokens: f64,
    /// Integral of the load.
    exposure: f64,
}

/// The schedule; it outlives windows.
#[derive(Debug, Clone)]
pub struct Schedule {
    rules: Rules,
    budget: TimeBudget,
    closing: ClosingTime,
    /// Seconds of an upload after the window was closed.
    upload: Spread,
    /// Seconds of an upload with all that had left before.
    whole: Spread,
    /// Seconds from a group's last completion until it is durable, without waiting for a worker.
    proof: Spread,
    /// Seconds between two durable groups while every worker has one.
    proof_gap: Spread,
    /// When a group was durable last, where every worker was busy since.
    kept_at: Option<f64>,
    lengths: Lengths,
    pace: Pace,
    places: Places,
    clock: TokenClock,
    flights: BTreeMap<i64, Flight>,
    span: f64,
    begun: usize,
    /// Groups of this window that were given up.
    given_up: usize,
    /// Seconds by which groups stop to begin earlier than the measurements say, learnt from groups that came too late.
    lateness: f64,
    looked: f64,
}

impl Schedule {
    /// Knows nothing yet but the nominal block time in seconds.
    ///
    /// # Errors
    /// For a block time that is not positive, or safety blocks below zero.
    pub fn new(rules: Rules, nominal_block_seconds: f64) -> Result<Self, TimeBudgetError> {
        Ok(Self {
            rules,
            budget: TimeBudget::new(nominal_block_seconds, rules.safety_blocks)?,
            closing: ClosingTime::default(),
            upload: Spread::default(),
            whole: Spread::default(),
            proof: Spread::default(),
            proof_gap: Spread::default(),
            kept_at: None,
            lengths: Lengths::default(),
            pace: Pace::default(),
            places: Places::new(rules.groups_in_flight, rules.max_concurrent),
            clock: TokenClock::default(),
            flights: BTreeMap::new(),
            span: nominal_block_seconds * grail_protocol::constants::WINDOW_LENGTH as f64,
            begun: 0,
            given_up: 0,
            lateness: 0.0,
            looked: f64::NEG_INFINITY,
        })
    }

    /// Mining of a window begins at `now`. Nothing of an earlier one is under way any more.
    pub fn open(&mut self, clockwork: &Clockwork, now: f64) {
        self.learn_lateness();
        self.flights.clear();
        (self.begun, self.given_up, self.kept_at, self.looked) = (0, 0, None, f64::NEG_INFINITY);
        self.clock = TokenClock { at: now, ..TokenClock::default() };
        self.span = (self.cut_off(clockwork, 0) - now).max(1.0);
    }

    /// What the window before this one lost for lack of time moves the end of admission: the estimates cannot know of groups
    /// that begin later and slow down those before them, nor of proofs that are all wanted in the last seconds.
    fn learn_lateness(&mut self) {
        if self.begun == 0 {
            return;
        }
        let too_many = (self.flights.len() + self.given_up) as f64 - LOSS * self.begun as f64;
        let (most, all) = (LESSON_BLOCKS.0 * self.block_seconds(), LESSON_BLOCKS.1 * self.block_seconds());
        let lesson = (LESSON * too_many * self.span / self.begun as f64).min(most);
        self.lateness = (self.lateness + lesson).clamp(0.0, all);
    }

    /// The chain was seen at `block`.
    pub fn observe_block(&mut self, block: u64, now: f64) {
        self.budget.observe_block(block, now);
    }

    /// Moves the token clock to `now`.
    fn pass(&mut self, now: f64) {
        let passed = (now - self.clock.at).max(0.0);
        let load = self.clock.load as f64;
        self.clock.at += passed;
        self.clock.exposure += passed * load;
        if self.clock.load > 0 {
            self.clock.tokens += self.pace.seconds_per_token(load).map_or(0.0, |pace| passed / pace);
        }
    }

    /// What the server said about itself. Returns the number of groups in flight where it changes.
    pub fn server_said(&mut self, now: f64, load: ServerLoad) -> Option<Choice> {
        self.places.loaded(now, load)
    }

    /// How many groups may begin now, in a window of which `kept` rollouts are durable.
    pub fn admits(&self, clockwork: &Clockwork, block: u64, now: f64, kept: usize) -> usize {
        let places = self.places();
        if places > 0 && self.fits(clockwork, block, now, kept) { places } else { 0 }
    }

    /// Groups for which there is room: in the server, and with the proof workers.
    pub fn places(&self) -> usize {
        let proving = self.proving();
        let groups = self.places.choice().groups;
        // Where proofs are what limits, a backlog keeps every worker busy; more of it would only take memory.
        if proving >= groups + 2 * self.rules.proof_workers {
            return 0;
        }
        // A group enters when sixteen requests fit, whoever's place they take: stragglers hold up nobody. One always may.
        let free = (groups * ROLLOUTS_PER_PROBLEM).saturating_sub(self.clock.load) / ROLLOUTS_PER_PROBLEM;
        if self.flights.len() == proving { free.max(1) } else { free }
    }

    /// Whether a group that begins now is likely enough to be durable in time.
    pub fn fits(&self, clockwork: &Clockwork, block: u64, now: f64, kept: usize) -> bool {
        let planned = kept + (self.flights.len() + 1) * ROLLOUTS_PER_PROBLEM;
        if window_start(block) != clockwork.window {
            return false;
        }
        match self.chance(clockwork, now, planned) {
            // One group a window is always tried, so that a host that was slow once can show that it is not.
            Some(chance) => chance >= self.rules.confidence || (self.begun == 0 && now < self.cut_off(clockwork, planned)),
            None => clockwork.admits(&self.budget, &self.closing, planned, block, now),
        }
    }

    /// Groups that are generated and not durable yet.
    fn proving(&self) -> usize {
        self.flights.values().filter(|flight| flight.generated.is_some()).count()
    }

    /// Chance that a group which begins at `now` is durable in time; `None` where the reference's gate decides, by choice or
    /// because too little is known.
    fn chance(&self, clockwork: &Clockwork, now: f64, planned: usize) -> Option<f64> {
        if self.rules.gate == Admission::Reference || !self.lengths.known() {
            return None;
        }
        let safety = self.rules.safety_blocks * self.budget.block_seconds() + self.lateness;
        let left = self.cut_off(clockwork, planned).min(clockwork.deadline - safety) - now;
        let ahead = self.proof_gap.at(0.0).unwrap_or(0.0) * (self.flights.len() + 1) as f64;
        if ahead > left {
            return Some(0.0);
        }
        let left = left - self.proof.at(PROOF_DEVIATIONS)?;
        let drain = Drain::of(&self.lengths, &self.pace, (self.clock.load + ROLLOUTS_PER_PROBLEM) as f64)?;
        Some(self.lengths.share_within(drain.tokens_within(left)))
    }

    /// A group begins: its sixteen requests are sent.
    pub fn begin(&mut self, index: i64, clockwork: &Clockwork, now: f64, kept: usize) {
        self.pass(now);
        let planned = kept + (self.flights.len() + 1) * ROLLOUTS_PER_PROBLEM;
        let unbiased = self.chance(clockwork, now, planned).is_none_or(|chance| chance >= UNBIASED);
        let TokenClock { tokens, exposure, .. } = self.clock;
        let lengths = Vec::with_capacity(ROLLOUTS_PER_PROBLEM);
        self.begun += 1;
        self.clock.load += ROLLOUTS_PER_PROBLEM;
        self.flights
            .insert(index, Flight { begun: now, tokens, exposure, prompt: None, unbiased, lengths, generated: None, ahead: 0 });
    }

    /// The group's prompt is known.
    pub fn prompted(&mut self, index: i64, tokens: u32) {
        if let Some(flight) = self.flights.get_mut(&index) {
            flight.prompt = Some(tokens);
        }
    }

    /// A completion of the group ended after `tokens`. Returns the number of groups in flight where it changes.
    pub fn completed(&mut self, index: i64, now: f64, tokens: u32) -> Option<Choice> {
        self.pass(now);
        let proving = self.proving();
        let flight = self.flights.get_mut(&index).filter(|flight| flight.requests() > 0)?;
        flight.lengths.push(tokens);
        self.clock.load -= 1;
        let seconds = now - flight.begun;
        self.pace.observe((self.clock.exposure - flight.exposure) / seconds, f64::from(tokens), seconds);
        if flight.requests() > 0 {
            return None;
        }
        (flight.generated, flight.ahead) = (Some(now), proving);
        if flight.unbiased {
            self.lengths.observe(flight.prompt.unwrap_or(0), &flight.lengths);
        }
        let terms = Terms { span: self.span, confidence: self.rules.confidence, proof_gap: self.proof_gap.at(0.0) };
        self.places.reconsider(now, terms, &self.pace, &self.lengths)
    }

    /// Whether the group's sixteen completions have ended.
    pub fn is_generated(&self, index: i64) -> bool {
        self.flights.get(&index).is_some_and(|flight| flight.generated.is_some())
    }

    /// The group is durable.
    pub fn kept(&mut self, index: i64, now: f64) {
        let Some(flight) = self.leave(index, now) else { return };
        self.budget.observe_kept_group(now - flight.begun);
        let workers = self.rules.proof_workers.max(1);
        if let Some(generated) = flight.generated {
            // What was ahead of it took its part of the time.
            self.proof.observe((now - generated) / (1.0 + (flight.ahead / workers) as f64));
        }
        if let Some(before) = self.kept_at {
            self.proof_gap.observe(now - before);
        }
        self.kept_at = (self.proving() >= workers).then_some(now);
    }

    /// The group is dropped. `short` tells that it was for a completion of fewer than 32 tokens, whose time the reference counts.
    pub fn dropped(&mut self, index: i64, now: f64, short: bool) {
        if let Some(flight) = self.leave(index, now).filter(|_| short) {
            self.budget.observe_dropped_group(now - flight.begun);
        }
    }

    fn leave(&mut self, index: i64, now: f64) -> Option<Flight> {
        self.pass(now);
        let flight = self.flights.remove(&index)?;
        self.clock.load = self.clock.load.saturating_sub(flight.requests());
        Some(flight)
    }

    /// Groups that hardly ever are done in time and are given up, so that the others get on faster.
    pub fn hopeless(&mut self, clockwork: &Clockwork, now: f64, kept: usize) -> Vec<i64> {
        if self.rules.gate == Admission::Reference || now - self.looked < LOOK_SHARE * self.block_seconds() {
            return Vec::new();
        }
        self.looked = now;
        self.pass(now);
        let planned = kept + self.flights.len() * ROLLOUTS_PER_PROBLEM;
        let Some(left) = self.proof.at(0.0).map(|proof| self.cut_off(clockwork, planned) - now - proof) else {
            return Vec::new();
        };
        let Some(drain) = Drain::of(&self.lengths, &self.pace, self.clock.load as f64) else { return Vec::new() };
        let reach = drain.tokens_within(left);
        if reach >= self.lengths.longest_at(1.0) {
            return Vec::new();
        }
        let chance = |flight: &Flight| {
            self.lengths.share_ending(flight.prompt, self.clock.tokens - flight.tokens, flight.requests(), reach)
        };
        let generating = self.flights.iter().filter(|(_, flight)| flight.generated.is_none());
        let hopeless = generating.filter(|(_, flight)| chance(flight).is_some_and(|chance| chance < HOPELESS));
        let hopeless: Vec<i64> = hopeless.map(|(index, _)| *index).collect();
        self.given_up += hopeless.len();
        hopeless
    }

    /// When the window's file is begun, whatever is still under way: what is left is for closing a file of `rollouts`, for
    /// uploading it twice over, and for the upload's spread. Where most of it leaves before, the second time is all of it. Never
    /// less than half a block.
    pub fn cut_off(&self, clockwork: &Clockwork, rollouts: usize) -> f64 {
        let plain = clockwork.cut_off(&self.budget, &self.closing, rollouts);
        if self.rules.gate == Admission::Reference {
            return plain;
        }
        let anew = self.upload.at(ANEW_DEVIATIONS).zip(self.whole.at(ANEW_DEVIATIONS)).map_or(0.0, |(end, whole)| end + whole);
        let closed = clockwork.deadline - self.closing.expected(rollouts);
        let free = anew.max(LEAST_FREE * self.block_seconds());
        (plain - self.upload.deviations(UPLOAD_DEVIATIONS)).min(closed - free)
    }

    /// Until when a window is worth opening of which `kept` rollouts are durable: a first group that begins later is hardly ever
    /// durable in time.
    pub fn useful_until(&self, clockwork: &Clockwork, kept: usize) -> f64 {
        let (budget, block) = (&self.budget, self.budget.block_seconds());
        let group = budget.generation_seconds().min(GROUP_BLOCKS * block);
        let by_cut_off = self.cut_off(clockwork, kept + ROLLOUTS_PER_PROBLEM) - group;
        if self.rules.gate != Admission::Reference && self.lengths.known() {
            return by_cut_off;
        }
        // The reference's gate decides as long as little is known.
        by_cut_off.min(clockwork.deadline + DEADLINE_SLACK_SECONDS - budget.needed_blocks() as f64 * block)
    }

    /// A file of `rollouts` was put together in `seconds`.
    pub fn closed(&mut self, rollouts: usize, seconds: f64) {
        self.closing.observe(rollouts, seconds);
    }

    /// A file was uploaded and read back `seconds` after it was closed; with what had left before, it took `whole` seconds.
    pub fn uploaded(&mut self, seconds: f64, whole: f64) {
        self.upload.observe(seconds);
        self.whole.observe(whole);
        self.budget.observe_upload(seconds);
    }

    /// Seconds that closing a file of `rollouts` takes.
    pub fn closing_seconds(&self, rollouts: usize) -> f64 {
        self.closing.expected(rollouts)
    }

    /// Seconds that an upload takes.
    pub fn upload_seconds(&self) -> f64 {
        self.budget.upload_seconds()
    }

    /// Seconds of a block.
    pub fn block_seconds(&self) -> f64 {
        self.budget.block_seconds()
    }

    /// How many groups are in flight, and why.
    pub fn choice(&self) -> Choice {
        self.places.choice()
    }
}

#[cfg(test)]
mod tests;
