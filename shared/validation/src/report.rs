//! What a validation says: a table for people, the network's verdict line for programs.

use grail_protocol::validation::verdict::WindowMetrics;
use serde_json::{Value, json};

/// How a window was judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was found that a validator rejects.
    Accepted,
    /// A validator rejects the file, and bans its miner for 14 windows.
    Rejected {
        /// The reference's `failure_reason`, where it gives one.
        reason: Option<String>,
        /// What was found.
        why: String,
    },
    /// A validator treats the window as one without a file.
    NoFile(String),
}

/// One window, judged.
#[derive(Debug, Clone)]
pub struct Judged {
    /// First block.
    pub window: u64,
    /// UID of the hotkey.
    pub uid: usize,
    /// The hotkey's address.
    pub hotkey: String,
    /// Verdict.
    pub outcome: Outcome,
    /// Rollouts of the file.
    pub total: usize,
    /// Tokens of the file.
    pub tokens: usize,
    /// Rollouts looked at.
    pub checked: usize,
    /// Rollouts that passed every hard check.
    pub valid: usize,
    /// What the window is worth.
    pub metrics: WindowMetrics,
    /// Distances of all opened sketches.
    pub distances: Vec<u32>,
    /// Median importance deviation of each rollout.
    pub deviations: Vec<f64>,
    /// Rollouts that fail the distribution check.
    pub unlikely: usize,
    /// Rollouts whose reward cannot be judged here: their claim stands.
    pub unjudged: usize,
    /// Wall time.
    pub seconds: f64,
    /// Nominal seconds of a block.
    pub block_seconds: f64,
}

impl Judged {
    /// A window that was not judged yet.
    pub fn new(window: u64, uid: usize, hotkey: &str, block_seconds: f64) -> Self {
        Self {
            window,
            uid,
            hotkey: hotkey.into(),
            outcome: Outcome::Accepted,
            total: 0,
            tokens: 0,
            checked: 0,
            valid: 0,
            metrics: WindowMetrics::default(),
            distances: Vec::new(),
            deviations: Vec::new(),
            unlikely: 0,
            unjudged: 0,
            seconds: 0.0,
            block_seconds,
        }
    }

    fn success_rate(&self) -> f64 {
        let rate = 100.0 * self.metrics.successful as f64 / self.valid.max(1) as f64;
        (rate * 10.0).round() / 10.0
    }

    /// The network's verdict line (grail-validation 12), with what was measured added.
    fn json(&self) -> Value {
        let (reason, why) = match &self.outcome {
            Outcome::Accepted => (None, None),
            Outcome::Rejected { reason, why } => (reason.clone(), Some(why.clone())),
            Outcome::NoFile(why) => (None, Some(why.clone())),
        };
        json!({
            "event": "verdict",
            "window": self.window,
            "uid": self.uid,
            "hotkey_short": self.hotkey.chars().take(8).collect::<String>(),
            "found_file": !matches!(self.outcome, Outcome::NoFile(_)),
            "valid_count": self.valid,
            "checked_count": self.checked,
            "total_inferences": self.total,
            "estimated_unique": self.metrics.estimated_unique,
            "estimated_successful": self.metrics.estimated_successful,
            "success_rate": self.success_rate(),
            "failure_flag": u8::from(matches!(self.outcome, Outcome::Rejected { .. })),
            "failure_reason": reason,
            "why": why,
            "prompt_mismatch_count": self.metrics.prompt_mismatch,
            "tokens": self.tokens,
            "sketch_distance_median": median(&self.distances),
            "sketch_distance_max": self.distances.iter().max(),
            "logprob_deviation_max": self.deviations.iter().copied().fold(None, |most: Option<f64>, next| Some(most.map_or(next, |most| most.max(next)))),
            "unlikely_rollouts": self.unlikely,
            "rewards_not_judged": self.unjudged,
            "validation_sec": (self.seconds * 100.0).round() / 100.0,
            "validation_blocks": (self.seconds / self.block_seconds).ceil(),
        })
    }

    fn line(&self) -> String {
        let verdict = match &self.outcome {
            Outcome::Accepted => "accepted".to_owned(),
            Outcome::Rejected { reason, why } => format!("REJECTED {} {why}", reason.as_deref().unwrap_or("")),
            Outcome::NoFile(why) => format!("NO FILE {why}"),
        };
        let verdict = match self.unjudged {
            0 => verdict,
            unjudged => format!("{verdict}; {unjudged} rewards were not judged: symbolic form not covered"),
        };
        let deviation = self.deviations.iter().copied().fold(0.0, f64::max);
        format!(
            "{:>8} {:>9} {:>9} {:>9} {:>8.1} % {:>8} {:>8} {:>11.2e} {:>6}/{:<6} {verdict}",
            self.window,
            self.total,
            self.checked,
            self.tokens,
            self.success_rate(),
            median(&self.distances).unwrap_or(0),
            self.distances.iter().max().copied().unwrap_or(0),
            deviation,
            self.unlikely,
            self.checked,
        )
    }
}

/// Every window, for standard output.
pub fn text(judged: &[Judged], as_json: bool) -> String {
    if as_json {
        return judged.iter().map(|window| format!("{}\n", window.json())).collect();
    }
    let mut text = format!(
        "{:>8} {:>9} {:>9} {:>9} {:>10} {:>17} {:>11} {:>13} verdict\n",
        "window", "rollouts", "checked", "tokens", "success", "sketch distance", "log-prob", "unlikely"
    );
    text += &format!(
        "{:>8} {:>9} {:>9} {:>9} {:>10} {:>8} {:>8} {:>11} {:>13}\n",
        "", "", "", "", "", "median", "max", "deviation", ""
    );
    text.extend(judged.iter().map(|window| format!("{}\n", window.line())));
    let accepted = judged.iter().filter(|window| window.outcome == Outcome::Accepted).count();
    let rollouts: usize = judged.iter().map(|window| window.total).sum();
    text + &format!("{accepted} of {} windows accepted, {rollouts} rollouts.\n", judged.len())
}

/// 0 all accepted, 1 one rejected, 2 one without a file.
pub fn code(judged: &[Judged]) -> u8 {
    let any = |wanted: fn(&Outcome) -> bool| judged.iter().any(|window| wanted(&window.outcome));
    if any(|outcome| matches!(outcome, Outcome::Rejected { .. })) {
        return 1;
    }
    if judged.is_empty() || any(|outcome| matches!(outcome, Outcome::NoFile(_))) { 2 } else { 0 }
}

fn median(values: &[u32]) -> Option<u32> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}
