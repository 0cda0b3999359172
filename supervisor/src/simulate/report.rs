//! What a simulation found.

use std::fmt;

use grail_mining::schedule::Choice;
use grail_mining::window::ROLLOUT_TARGET;
use grail_protocol::constants::{ROLLOUTS_PER_PROBLEM, UNIQUE_ROLLOUTS_CAP, WINDOW_LENGTH};

use super::host::Host;
use super::windows::{Lost, Outcome};
use super::world::World;

/// Sizes of batches that are shown.
const SHOWN: usize = 6;
/// Share of windows from which on something holds for all.
const MOSTLY: f64 = 0.5;

/// All windows of one way of mining.
#[derive(Debug)]
pub struct Run {
    /// Which way.
    pub name: String,
    /// Mean rollouts of a window.
    pub mean: f64,
    /// Of the lowest window in twenty.
    pub low: usize,
    /// Uploads after the deadline.
    pub late: usize,
    /// Least seconds between an upload and its deadline.
    pub least_spare: f64,
    /// Groups that were begun and lost, per window.
    pub lost: f64,
    /// Of these by cause, in the order of [`Cause::ALL`].
    pub causes: [f64; 4],
    /// Share of time in which a generation GPU had nothing to do.
    pub generation_idle: f64,
    /// Share of time in which a proof GPU had nothing to do.
    pub proof_idle: f64,
    /// Tokens made, of what the server makes at the top of its curve.
    pub of_peak: f64,
    /// Share of windows that ended because there was enough.
    pub enough: f64,
}

impl Run {
    /// Counts `outcomes`, which `world` went through.
    pub fn new(name: String, host: &Host, outcomes: Vec<Outcome>, world: &World) -> Self {
        let windows = outcomes.len() as f64;
        let seconds = windows * WINDOW_LENGTH as f64 * 12.0;
        let (generation, proofs, made) = world.worked();
        let peak = host.generation.throughput.last().map_or(1.0, |(_, rate)| *rate) * host.generation.replicas as f64;
        let mut rollouts: Vec<usize> = outcomes.iter().map(|outcome| outcome.rollouts).collect();
        rollouts.sort_unstable();
        let count = |of: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| of(outcome)).count();
        Self {
            name,
            mean: rollouts.iter().sum::<usize>() as f64 / windows,
            low: rollouts.get(rollouts.len() / 20).copied().unwrap_or(0),
            late: count(|outcome| outcome.late),
            least_spare: outcomes.iter().map(|outcome| outcome.spare).fold(f64::INFINITY, f64::min),
            lost: outcomes.iter().map(|outcome| outcome.lost.all()).sum::<usize>() as f64 / windows,
            causes: Cause::ALL
                .map(|cause| outcomes.iter().map(|outcome| cause.of(&outcome.lost)).sum::<usize>() as f64 / windows),
            generation_idle: 1.0 - generation / (seconds * host.generation.replicas as f64),
            proof_idle: 1.0 - proofs / (seconds * host.proof.workers as f64),
            of_peak: made / (seconds * peak),
            enough: count(|outcome| outcome.enough) as f64 / windows,
        }
    }
}

/// Why a group that was begun is not in the file.
#[derive(Debug, Clone, Copy)]
enum Cause {
    GivenUp,
    Generating,
    Proving,
    Server,
}

impl Cause {
    const ALL: [Self; 4] = [Self::GivenUp, Self::Generating, Self::Proving, Self::Server];

    fn of(self, lost: &Lost) -> usize {
        match self {
            Self::GivenUp => lost.given_up,
            Self::Generating => lost.generating,
            Self::Proving => lost.proving,
            Self::Server => lost.server,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::GivenUp => "given up early",
            Self::Generating => "generating at the cut-off",
            Self::Proving => "waiting for proofs at the cut-off",
            Self::Server => "with their server",
        }
    }
}

/// The schedule against batches.
#[derive(Debug)]
pub struct Summary<'a> {
    /// The host.
    pub host: &'a Host,
    /// The schedule.
    pub scheduled: Run,
    /// Batches of the best sizes, the best first.
    pub batched: Vec<Run>,
    /// Groups in flight at the end, and why.
    pub choice: Choice,
    /// Share of rollouts that each remedy would bring more.
    pub remedied: Vec<(&'static str, f64)>,
}

impl Summary<'_> {
    /// The best batch size, and what the schedule brings beside it.
    pub fn gain(&self) -> Option<(&Run, f64)> {
        let best = self.batched.first()?;
        Some((best, self.scheduled.mean / best.mean.max(1.0)))
    }
}

impl Summary<'_> {
    /// What limits is whatever brings most when it is made better.
    pub fn limiting(&self) -> Option<(&'static str, f64)> {
        if self.scheduled.enough > MOSTLY {
            return None;
        }
        self.remedied.iter().copied().max_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    fn limits(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((name, _)) = self.limiting() else {
            let share = 100.0 * self.scheduled.enough;
            return writeln!(formatter, "what limits: nothing; {share:.0} % of the windows end early, with enough rollouts");
        };
        let all = self.remedied.iter().map(|(name, more)| format!("{name} {:+.1} %", 100.0 * more));
        writeln!(formatter, "what limits: {name}")?;
        writeln!(formatter, "  rollouts with one thing better: {}", all.collect::<Vec<_>>().join(", "))
    }

    /// The settings, where they reach the cap with a tenth to spare.
    fn reaching(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scheduled.mean < ROLLOUT_TARGET as f64 {
            return writeln!(formatter, "{ROLLOUT_TARGET} (the cap and a tenth) are not reached with these settings");
        }
        let Host { generation, proof, .. } = self.host;
        let first_proof_gpu = generation.replicas * generation.gpus;
        let gpus: Vec<usize> = (first_proof_gpu..first_proof_gpu + proof.workers).collect();
        writeln!(
            formatter,
            "{ROLLOUT_TARGET} (the cap and a tenth) are reached, under the assumptions above, with\n  generation.tensor_parallel = {}\n  \
             generation.replicas = {}\n  generation.max_running = {}\n  generation.groups_in_flight = {}\n  proof.gpus = {gpus:?}",
            generation.gpus, generation.replicas, generation.max_running, self.choice.groups,
        )
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Host { name, generation, lengths, proof, schedule, .. } = self.host;
        writeln!(formatter, "{name}")?;
        writeln!(
            formatter,
            "  {} server(s) of {} GPU(s); one makes (requests: tokens/s) {}",
            generation.replicas,
            generation.gpus,
            generation.throughput.iter().map(|(load, rate)| format!("{load:.0}: {rate:.0}")).collect::<Vec<_>>().join(", "),
        )?;
        writeln!(
            formatter,
            "  completions log-normal, mean {:.0}, sigma {} between and {} within groups, at most {:.0}; prompts of {:.0}",
            lengths.completion, lengths.group_sigma, lengths.completion_sigma, lengths.longest, lengths.prompt,
        )?;
        writeln!(formatter, "  {} proof worker(s), {:.0} tokens/s each", proof.workers, proof.tokens_per_second)?;
        writeln!(formatter, "  confidence {}, safety blocks {}", schedule.confidence, schedule.safety_blocks)?;
        writeln!(formatter, "\n{:<26} rollouts per window    late  spare s  lost groups   idle GPU share   of peak", "")?;
        writeln!(formatter, "{:<26}     mean    lowest 5%   uploads  least   per window  generation proof  tokens", "")?;
        for run in std::iter::once(&self.scheduled).chain(self.batched.iter().take(SHOWN)) {
            writeln!(
                formatter,
                "{:<26} {:>8.0} {:>12} {:>9} {:>6.1} {:>12.1} {:>10.1}% {:>5.1}% {:>6.1}%",
                run.name,
                run.mean,
                run.low,
                run.late,
                run.least_spare,
                run.lost,
                100.0 * run.generation_idle,
                100.0 * run.proof_idle,
                100.0 * run.of_peak,
            )?;
        }
        let Choice { groups, reason } = self.choice;
        writeln!(formatter, "\ngroups in flight: {groups} ({} requests); {reason}", groups * ROLLOUTS_PER_PROBLEM)?;
        if let Some((best, gain)) = self.gain() {
            writeln!(formatter, "against the best batches ({}): {:+.1} %", best.name, 100.0 * (gain - 1.0))?;
        }
        let cap = self.scheduled.mean / UNIQUE_ROLLOUTS_CAP as f64;
        writeln!(formatter, "against the cap of {UNIQUE_ROLLOUTS_CAP}: {:.0} %", 100.0 * cap)?;
        let causes = Cause::ALL.iter().zip(self.scheduled.causes).map(|(cause, groups)| format!("{groups:.1} {}", cause.name()));
        writeln!(formatter, "groups lost per window: {}", causes.collect::<Vec<_>>().join(", "))?;
        self.limits(formatter)?;
        self.reaching(formatter)
    }
}
