//! How many groups are in flight: a fixed number, or the knee that is found by itself.
//!
//! ```text
//!  level by level upwards, while the newest level brings more   (exploring)
//!   → the level that brings most groups into a window           (knee: beyond it only the drain at the window's end grows)
//!  requests wait in the server, or its cache is nearly full: what runs there is the most   (memory)
//! ```

use std::fmt;

use grail_protocol::constants::ROLLOUTS_PER_PROBLEM;
use grail_settings::GroupsInFlight;

use super::drain::Drain;
use super::lengths::Lengths;
use super::pace::Pace;

/// Levels that are tried, in groups.
const LADDER: [usize; 23] = [1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512];
/// Where "auto" begins.
const FIRST: usize = 4;
/// A higher level must bring so much more tokens per second to be worth another step.
const WORTHWHILE: f64 = 1.01;
/// Share of the key-value cache beyond which the server begins to put requests back.
const FULL_CACHE: f64 = 0.92;
/// Share of its requests that a server may keep waiting for a moment.
const WAITING: f64 = 0.1;
/// Time after which a limit of memory is tried again, in seconds.
const MEMORY_HOLDS: f64 = 7200.0;

/// What the server says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ServerLoad {
    /// Requests that it works on.
    pub running: f64,
    /// Requests that it keeps waiting.
    pub queued: f64,
    /// Share of its key-value cache that is in use.
    pub cache_use: f64,
}

impl ServerLoad {
    /// Of several servers as if they were one; the fullest cache counts.
    pub fn of_all(loads: Vec<Self>) -> Self {
        loads.into_iter().fold(Self::default(), |all, one| Self {
            running: all.running + one.running,
            queued: all.queued + one.queued,
            cache_use: all.cache_use.max(one.cache_use),
        })
    }
}

/// Why the number of groups is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The setting says so.
    Setting,
    /// Higher levels have not been tried.
    Exploring,
    /// More brings no more rollouts into a window.
    Knee,
    /// More does not fit into the server.
    Memory,
    /// More requests than the client may send.
    Client,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Setting => "the setting",
            Self::Exploring => "still exploring",
            Self::Knee => "more would bring no more rollouts into a window",
            Self::Memory => "the server has no memory for more",
            Self::Client => "generation.max_concurrent allows no more",
        })
    }
}

/// A choice with its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Groups in flight, each counted as sixteen requests.
    pub groups: usize,
    /// Why.
    pub reason: Reason,
}

/// What windows are like.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Seconds of a window for mining.
    pub span: f64,
    /// Chance of being in time with which groups begin.
    pub confidence: f64,
    /// Seconds between two proved groups while every proof worker is busy, where they ever were.
    pub proof_gap: Option<f64>,
}

/// The controller.
#[derive(Debug, Clone)]
pub struct Places {
    choice: Choice,
    auto: bool,
    most: usize,
    memory: Option<(usize, f64)>,
    generated: usize,
    /// The highest number that was held long enough to know it.
    explored: usize,
}

impl Places {
    /// With at most `max_concurrent` requests in flight.
    pub fn new(wanted: GroupsInFlight, max_concurrent: usize) -> Self {
        let most = (max_concurrent / ROLLOUTS_PER_PROBLEM).max(1);
        let choice = match wanted {
            GroupsInFlight::Fixed(groups) => Choice { groups: groups.max(1) as usize, reason: Reason::Setting },
            GroupsInFlight::Auto => Choice { groups: FIRST.min(most), reason: Reason::Exploring },
        };
        Self { choice, auto: wanted == GroupsInFlight::Auto, most, memory: None, generated: 0, explored: 0 }
    }

    /// What holds now.
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// What the server said at `now` seconds. Returns the choice where it changes.
    pub fn loaded(&mut self, now: f64, load: ServerLoad) -> Option<Choice> {
        let ServerLoad { running, queued, cache_use } = load;
        let crowded = queued > (running * WAITING).max(ROLLOUTS_PER_PROBLEM as f64 / 2.0) || cache_use > FULL_CACHE;
        if !self.auto || !crowded || !(running + queued).is_finite() {
            return None;
        }
        // Beyond the cache's edge requests are put back and computed again, so a level below what runs is the most.
        let room = (running / ROLLOUTS_PER_PROBLEM as f64).floor().max(1.0) as usize;
        let fits = LADDER.iter().copied().take_while(|level| *level <= room).last().unwrap_or(1);
        if fits >= self.choice.groups {
            return None;
        }
        self.memory = Some((fits, now + MEMORY_HOLDS));
        self.settle(Choice { groups: fits, reason: Reason::Memory })
    }

    /// A group was generated at `now`. Returns the choice where it changes.
    pub fn reconsider(&mut self, now: f64, terms: Terms, pace: &Pace, lengths: &Lengths) -> Option<Choice> {
        self.generated += 1;
        // A level is known when the groups that began at it have ended.
        if !self.auto || self.generated < 2 * self.choice.groups || !lengths.known() {
            return None;
        }
        self.generated = 0;
        let (most, limit) = self.limit(now);
        self.explored = self.explored.max(self.choice.groups);
        let tried: Vec<usize> = LADDER.iter().copied().filter(|level| *level <= self.explored && *level <= most).collect();
        let harvest = |level: usize| expected_groups(level, terms, pace, lengths).unwrap_or(0.0);
        let best = tried.iter().copied().max_by(|a, b| harvest(*a).total_cmp(&harvest(*b))).unwrap_or(1);
        let rate = |level: usize| pace.tokens_per_second((level * ROLLOUTS_PER_PROBLEM) as f64).unwrap_or(0.0);
        let below = LADDER.iter().copied().take_while(|level| *level < best).last();
        let still_rising = below.is_none_or(|below| rate(best) > WORTHWHILE * rate(below));
        let next = LADDER.iter().copied().find(|level| *level > best).filter(|level| !tried.contains(level));
        let choice = match next {
            Some(next) if still_rising && next <= most => Choice { groups: next, reason: Reason::Exploring },
            Some(next) if still_rising && next > most => Choice { groups: best.max(most.min(next)), reason: limit },
            _ => Choice { groups: best, reason: Reason::Knee },
        };
        self.settle(choice)
    }

    fn limit(&mut self, now: f64) -> (usize, Reason) {
        match self.memory {
            Some((fits, until)) if now < until && fits < self.most => (fits, Reason::Memory),
            _ => (self.most, Reason::Client),
        }
    }

    fn settle(&mut self, choice: Choice) -> Option<Choice> {
        if choice == self.choice {
            return None;
        }
        self.generated = 0;
        self.choice = choice;
        Some(choice)
    }
}

/// Groups that a window brings with `level` groups in flight. The end of a window is reckoned as half-way between two ends: nothing
/// begins any more once the full load would be too late, and what is under way runs out; or groups go on to begin at every
/// lower load until that one would be too late, and none of them loses time by those after it.
fn expected_groups(level: usize, terms: Terms, pace: &Pace, lengths: &Lengths) -> Option<f64> {
    let Terms { span, confidence, proof_gap } = terms;
    let longest = lengths.longest_at(confidence);
    let requests = |level: usize| (level * ROLLOUTS_PER_PROBLEM) as f64;
    let (mut rate, mut drain, mut sustained) = (0.0, 0.0, 0.0);
    for below in LADDER.into_iter().take_while(|below| *below < level).chain([level]) {
        let next_rate = pace.tokens_per_second(requests(below))?;
        let next_drain = Drain::of(lengths, pace, requests(below))?.seconds_for(longest);
        sustained += (rate + next_rate) / 2.0 * (next_drain - drain);
        (rate, drain) = (next_rate, next_drain);
    }
    let run_out = requests(level) * lengths.remaining().map(|(step, share)| step * share).sum::<f64>();
    let made = rate * (span - drain).max(0.0) + (sustained + run_out) / 2.0;
    let generated = made / (ROLLOUTS_PER_PROBLEM as f64 * lengths.mean());
    // Proof workers have nothing to do until the first group is there, which is the later the more groups begin together.
    let first = longest * pace.seconds_per_token(requests(level))?;
    let proved = proof_gap.map_or(f64::INFINITY, |gap| (span - first).max(0.0) / gap);
    Some(generated.min(proved))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server with so many seconds per step and per request in a step.
    fn run(places: &mut Places, step: f64, each: f64, span: f64) -> Vec<Choice> {
        let (mut pace, mut lengths, mut changes) = (Pace::default(), Lengths::default(), Vec::new());
        let terms = Terms { span, confidence: 0.5, proof_gap: None };
        for group in 0..6000 {
            let load = (places.choice().groups * ROLLOUTS_PER_PROBLEM) as f64;
            pace.observe(load, 1000.0, 1000.0 * (step + each * load));
            let lengths_of = |place: u32| 200 + (group * 37 + place * 61) % 900;
            lengths.observe(100, &(0..16).map(lengths_of).collect::<Vec<_>>());
            changes.extend(places.reconsider(f64::from(group), terms, &pace, &lengths));
        }
        changes
    }

    #[test]
    fn the_knee_is_found_from_below_and_kept() {
        let mut places = Places::new(GroupsInFlight::Auto, 8192);
        let changes = run(&mut places, 0.012, 0.00008, 330.0);
        let last = places.choice();
        assert_eq!(last.reason, Reason::Knee, "{changes:?}");
        // Half of the highest rate is at 150 requests.
        assert!((8..=192).contains(&last.groups), "{last:?} {changes:?}");
        assert!(changes.len() < 40, "it swings: {changes:?}");
        assert!(changes.windows(2).take(6).all(|pair| pair[0].groups < pair[1].groups), "{changes:?}");
    }

    #[test]
    fn the_client_and_the_setting_are_limits() {
        let mut places = Places::new(GroupsInFlight::Auto, 100);
        run(&mut places, 0.012, 0.00001, 330.0);
        assert_eq!(places.choice(), Choice { groups: 6, reason: Reason::Client });
        let mut fixed = Places::new(GroupsInFlight::Fixed(72), 100);
        assert!(run(&mut fixed, 0.012, 0.00001, 330.0).is_empty());
        assert_eq!(fixed.choice(), Choice { groups: 72, reason: Reason::Setting });
        assert_eq!(fixed.loaded(0.0, ServerLoad { running: 16.0, queued: 900.0, cache_use: 1.0 }), None);
    }

    #[test]
    fn what_the_server_cannot_hold_is_taken_back_and_tried_again_later() {
        let mut places = Places::new(GroupsInFlight::Auto, 8192);
        run(&mut places, 0.03, 0.00001, 330.0);
        let before = places.choice().groups;
        assert!(before >= 64, "{before}");
        assert_eq!(places.loaded(7000.0, ServerLoad { running: 500.0, queued: 10.0, cache_use: 0.5 }), None);
        let less = places.loaded(7000.0, ServerLoad { running: 520.0, queued: 300.0, cache_use: 0.97 });
        assert_eq!(less, Some(Choice { groups: 32, reason: Reason::Memory }));
    }
}
