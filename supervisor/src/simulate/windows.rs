//! Windows of a simulated host, mined by the schedule or by the guide's double-buffered batches.

use std::collections::BTreeMap;

use grail_mining::clockwork::Clockwork;
use grail_mining::schedule::{Rules, Schedule};
use grail_mining::window::ROLLOUT_TARGET;
use grail_protocol::constants::{DEADLINE_SLACK_SECONDS, ROLLOUTS_PER_PROBLEM, WINDOW_LENGTH};
use grail_protocol::time_budget::{DEFAULT_SAFETY_BLOCKS, TimeBudget, TimeBudgetError};
use grail_settings::{Admission, GroupsInFlight};

use super::draws::Draws;
use super::host::Host;
use super::world::{SimEvent, World};

/// Seconds of a block of the network.
const BLOCK_SECONDS: f64 = 12.0;
/// Longest pause between two looks, as the miner has it.
const TICK: f64 = 1.0;

/// Parts in which a file leaves while the window runs, as `upload.part_kib` has it.
const PART_BYTES: f64 = 5.0 * 1024.0 * 1024.0;

/// What became of one window.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Rollouts in the file, 0 where it was late.
    pub rollouts: usize,
    /// The upload came after the deadline.
    pub late: bool,
    /// Seconds that the upload was before the deadline.
    pub spare: f64,
    /// Groups that were begun and did not get into the file.
    pub lost: Lost,
    /// Mining ended because there was enough.
    pub enough: bool,
}

/// Groups that were begun and did not get into the file, by cause.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lost {
    /// Given up before the end: they would have been too late.
    pub given_up: usize,
    /// Under way at the cut-off: in the server …
    pub generating: usize,
    /// … and with the proof workers.
    pub proving: usize,
    /// With their server.
    pub server: usize,
}

impl Lost {
    /// All of them.
    pub fn all(&self) -> usize {
        self.given_up + self.generating + self.proving + self.server
    }
}

/// A window's clock: what the miner believes, and what the chain does.
struct Clock {
    clockwork: Clockwork,
    /// Seconds since the window opened at which each block came.
    blocks: Vec<f64>,
}

impl Clock {
    fn draw(host: &Host, draws: &mut Draws, window: u64) -> (Self, f64) {
        let mut at = 0.0;
        let mut blocks = vec![0.0];
        for _ in 0..WINDOW_LENGTH {
            let skipped = if draws.happens(host.jitter.skipped_block) { BLOCK_SECONDS } else { 0.0 };
            at += BLOCK_SECONDS + skipped;
            blocks.push(at + host.jitter.block_seconds * draws.normal());
        }
        let deadline = WINDOW_LENGTH as f64 * BLOCK_SECONDS - DEADLINE_SLACK_SECONDS;
        (Self { clockwork: Clockwork { window, deadline }, blocks }, at)
    }

    fn block(&self, now: f64) -> u64 {
        let come = self.blocks.partition_point(|at| *at <= now).max(1) as u64 - 1;
        self.clockwork.window + come
    }

    /// When validators stop listening.
    fn deadline(&self) -> f64 {
        self.blocks.last().copied().unwrap_or(0.0) - DEADLINE_SLACK_SECONDS
    }
}

/// A closed and uploaded file.
struct Sent {
    /// When it was there.
    at: f64,
    closing: f64,
    /// Seconds of the upload after the closing, and with what had left before.
    last: f64,
    all: f64,
}

/// Closes and uploads a file of `groups`. With `ahead`, whole parts of it leave while the window runs.
fn upload(host: &Host, draws: &mut Draws, begun: f64, groups: usize, ahead: bool) -> Sent {
    let rollouts = (groups * ROLLOUTS_PER_PROBLEM) as f64;
    let closing = 0.1 + host.upload.closing_seconds_per_rollout * rollouts;
    let bytes = host.upload.bytes_per_rollout * rollouts;
    let seconds = |bytes: f64| host.upload.seconds + bytes / host.upload.bytes_per_second;
    let not_yet = (bytes % PART_BYTES).max(bytes - begun * host.upload.bytes_per_second);
    let speed = draws.jitter(host.jitter.upload_sigma);
    let all = seconds(bytes) * speed;
    let mut last = if ahead { seconds(not_yet) * speed } else { all };
    // What comes to nothing is sent as a whole.
    while draws.happens(host.failures.upload.min(0.9)) {
        last += seconds(bytes) * draws.jitter(host.jitter.upload_sigma);
    }
    Sent { at: begun + closing + last, closing, last, all }
}

fn outcome(clock: &Clock, at: f64, groups: usize, lost: Lost) -> Outcome {
    let spare = clock.deadline() - at;
    let late = groups > 0 && spare < 0.0;
    let rollouts = if late { 0 } else { groups * ROLLOUTS_PER_PROBLEM };
    Outcome { rollouts, late, spare, lost, enough: groups * ROLLOUTS_PER_PROBLEM >= ROLLOUT_TARGET }
}

/// The schedule of `host`'s settings.
///
/// # Errors
/// For safety blocks that no schedule has; a judged host has none.
pub fn schedule(host: &Host) -> Result<Schedule, TimeBudgetError> {
    let settings = &host.schedule;
    let groups_in_flight = match settings.groups_in_flight {
        0 => GroupsInFlight::Auto,
        groups => GroupsInFlight::Fixed(groups),
    };
    let rules = Rules {
        gate: Admission::Deadline,
        confidence: settings.confidence,
        safety_blocks: settings.safety_blocks,
        groups_in_flight,
        max_concurrent: settings.max_concurrent,
        proof_workers: host.proof.workers,
    };
    Schedule::new(rules, BLOCK_SECONDS)
}

/// One window as the miner mines it.
pub fn scheduled(host: &Host, world: &mut World, schedule: &mut Schedule, window: u64) -> Outcome {
    let clock = world.open(window, |draws| Clock::draw(host, draws, window));
    schedule.open(&clock.clockwork, world.now);
    let (mut kept, mut under_way, mut lost) = (0_usize, 0_usize, Lost::default());
    loop {
        let (now, rollouts) = (world.now, kept * ROLLOUTS_PER_PROBLEM);
        let block = clock.block(now);
        schedule.observe_block(block, now);
        schedule.server_said(now, world.server_load());
        for index in schedule.hopeless(&clock.clockwork, now, rollouts) {
            world.abort(index);
            schedule.dropped(index, now, false);
            (lost.given_up, under_way) = (lost.given_up + 1, under_way - 1);
        }
        let open = rollouts < ROLLOUT_TARGET && world.serves();
        let places = if open { schedule.admits(&clock.clockwork, block, now, rollouts) } else { 0 };
        for _ in 0..places {
            let (index, prompt) = world.begin();
            schedule.begin(index, &clock.clockwork, now, rollouts);
            schedule.prompted(index, prompt);
            under_way += 1;
        }
        let cut_off = schedule.cut_off(&clock.clockwork, rollouts + under_way.max(1) * ROLLOUTS_PER_PROBLEM);
        if now >= cut_off || (under_way == 0 && rollouts >= ROLLOUT_TARGET) {
            break;
        }
        for happening in world.step((now + TICK).min(cut_off)) {
            let now = world.now;
            match happening {
                SimEvent::Completed(index, tokens) => {
                    schedule.completed(index, now, tokens);
                    if schedule.is_generated(index) {
                        world.prove(index);
                    }
                }
                SimEvent::Proved(index) => {
                    schedule.kept(index, now);
                    (kept, under_way) = (kept + 1, under_way - 1);
                }
                SimEvent::Lost(index) => {
                    schedule.dropped(index, now, false);
                    (lost.server, under_way) = (lost.server + 1, under_way - 1);
                }
            }
        }
    }
    (lost.generating, lost.proving) = world.under_way();
    let ended = world.now;
    let Sent { at, closing, last, all } = upload(host, &mut world.of_the_file(), ended, kept, true);
    schedule.closed(kept * ROLLOUTS_PER_PROBLEM, closing);
    schedule.uploaded(last, all);
    outcome(&clock, at, kept, lost)
}

/// What the guide's loop remembers between windows.
#[derive(Debug, Clone)]
pub struct Batches {
    budget: TimeBudget,
    /// Only for when the file is begun.
    schedule: Schedule,
    size: usize,
}

impl Batches {
    /// Batches of `size` groups, under the reference's gate; their file is begun when the schedule's would be.
    ///
    /// # Errors
    /// For safety blocks that no schedule has; a judged host has none.
    pub fn new(host: &Host, size: usize) -> Result<Self, TimeBudgetError> {
        Ok(Self { budget: TimeBudget::new(BLOCK_SECONDS, DEFAULT_SAFETY_BLOCKS)?, schedule: schedule(host)?, size })
    }
}

/// One window in double-buffered batches: a batch is collected when its last completion is there, and proved while the next
/// one is generated. What is proved before the cut-off counts, which is kinder than the guide's loop.
pub fn batched(host: &Host, world: &mut World, batches: &mut Batches, window: u64) -> Outcome {
    let clock = world.open(window, |draws| Clock::draw(host, draws, window));
    let (mut kept, mut lost, mut since) = (0_usize, Lost::default(), 0.0);
    // Requests in flight of each group of the batch.
    let mut generating: BTreeMap<i64, usize> = BTreeMap::new();
    let mut proving = 0_usize;
    loop {
        let (now, rollouts) = (world.now, kept * ROLLOUTS_PER_PROBLEM);
        let block = clock.block(now);
        batches.budget.observe_block(block, now);
        let enough = (kept + proving) * ROLLOUTS_PER_PROBLEM >= ROLLOUT_TARGET;
        if generating.is_empty() && !enough && world.serves() && batches.budget.admits(block, window) {
            generating = (0..batches.size).map(|_| (world.begin().0, ROLLOUTS_PER_PROBLEM)).collect();
            since = now;
        }
        let planned = rollouts + (generating.len() + proving).max(1) * ROLLOUTS_PER_PROBLEM;
        let cut_off = batches.schedule.cut_off(&clock.clockwork, planned);
        if now >= cut_off || (enough && proving == 0 && generating.is_empty()) {
            break;
        }
        for happening in world.step((now + TICK).min(cut_off)) {
            match happening {
                SimEvent::Completed(index, _) => {
                    generating.entry(index).and_modify(|left| *left -= 1);
                }
                SimEvent::Proved(_) => (kept, proving) = (kept + 1, proving - 1),
                SimEvent::Lost(index) => {
                    generating.remove(&index);
                    lost.server += 1;
                }
            }
        }
        if !generating.is_empty() && generating.values().all(|left| *left == 0) {
            batches.budget.observe_kept_group(world.now - since);
            for index in std::mem::take(&mut generating).into_keys() {
                world.prove(index);
                proving += 1;
            }
        }
    }
    (lost.generating, lost.proving) = world.under_way();
    let ended = world.now;
    let Sent { at, closing, last, all } = upload(host, &mut world.of_the_file(), ended, kept, false);
    batches.schedule.closed(kept * ROLLOUTS_PER_PROBLEM, closing);
    batches.schedule.uploaded(last, all);
    batches.budget.observe_upload(last);
    outcome(&clock, at, kept, lost)
}
