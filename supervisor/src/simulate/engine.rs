//! One simulated generation server: its requests share a throughput that grows with their number.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// A request that ended: its group and its tokens.
pub type Ended = (i64, u32);

/// A server. Every running request makes tokens at the same pace, so one clock of tokens serves all of them.
#[derive(Debug, Default)]
pub struct Engine {
    curve: Vec<(f64, f64)>,
    prefill_rate: f64,
    max_running: usize,
    /// Speed of this window against the curve's.
    speed: f64,
    /// Tokens that a request has made which ran all the time.
    tokens: f64,
    /// End on the token clock (in thousandths of a token), group, tokens.
    running: BinaryHeap<Reverse<(u64, i64, u32)>>,
    /// Running requests by group: those of a group that was aborted are skipped in the heap.
    counts: BTreeMap<i64, usize>,
    active: usize,
    queue: VecDeque<(i64, u32)>,
    /// Seconds of prefill that are still to be done.
    prefill: f64,
    /// Seconds with something to do.
    pub busy: f64,
    /// Tokens that were made.
    pub made: f64,
}

impl Engine {
    /// A server with this curve of requests and tokens per second.
    pub fn new(curve: Vec<(f64, f64)>, prefill_rate: f64, max_running: usize) -> Self {
        Self { curve, prefill_rate, max_running, speed: 1.0, ..Self::default() }
    }

    /// Tokens per second of the curve.
    pub fn rate(&self, load: f64) -> f64 {
        let after = self.curve.partition_point(|(known, _)| *known <= load);
        match (after.checked_sub(1).map(|before| self.curve[before]), self.curve.get(after)) {
            (Some((low, less)), Some((high, more))) => less + (more - less) * (load - low) / (high - low),
            (Some((_, rate)), None) => rate,
            (None, Some((known, rate))) => rate * load / known,
            (None, None) => 0.0,
        }
    }

    /// Everything is forgotten, for a new window at `speed`, or after a death.
    pub fn clear(&mut self, speed: f64) {
        self.running.clear();
        self.counts.clear();
        self.queue.clear();
        (self.active, self.prefill, self.speed) = (0, 0.0, speed);
    }

    /// Requests of a group, which share a prompt.
    pub fn add(&mut self, group: i64, prompt: f64, lengths: &[u32]) {
        self.prefill += prompt / self.prefill_rate;
        self.queue.extend(lengths.iter().map(|length| (group, *length)));
        self.fill();
    }

    fn fill(&mut self) {
        while self.active < self.max_running {
            let Some((group, length)) = self.queue.pop_front() else { break };
            let end = ((self.tokens + f64::from(length)) * 1000.0) as u64;
            self.running.push(Reverse((end, group, length)));
            *self.counts.entry(group).or_default() += 1;
            self.active += 1;
        }
    }

    /// Abandons a group's requests.
    pub fn abort(&mut self, group: i64) {
        self.active -= self.counts.remove(&group).unwrap_or(0);
        self.queue.retain(|(other, _)| *other != group);
        self.skip_aborted();
        self.fill();
    }

    fn skip_aborted(&mut self) {
        while self.running.peek().is_some_and(|Reverse((_, group, _))| !self.counts.contains_key(group)) {
            self.running.pop();
        }
    }

    /// Groups with requests here.
    pub fn groups(&self) -> Vec<i64> {
        let mut groups: Vec<i64> = self.counts.keys().copied().chain(self.queue.iter().map(|(group, _)| *group)).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// Requests running and waiting.
    pub fn load(&self) -> (usize, usize) {
        (self.active, self.queue.len())
    }

    fn seconds_per_token(&self) -> f64 {
        let load = self.active as f64;
        load / (self.rate(load) * self.speed)
    }

    /// Seconds until the next request ends.
    pub fn next(&self) -> Option<f64> {
        let Reverse((end, ..)) = self.running.peek()?;
        Some(self.prefill + (*end as f64 / 1000.0 - self.tokens).max(0.0) * self.seconds_per_token())
    }

    /// Lets `seconds` pass, in which at most the next request ends.
    pub fn pass(&mut self, seconds: f64) -> Vec<Ended> {
        if self.active == 0 {
            return Vec::new();
        }
        self.busy += seconds;
        let prefill = self.prefill.min(seconds);
        self.prefill -= prefill;
        let made = (seconds - prefill) / self.seconds_per_token();
        self.tokens += made;
        self.made += made * self.active as f64;
        let mut ended = Vec::new();
        let now = (self.tokens * 1000.0).round() as u64;
        while let Some(Reverse((_, group, length))) = self.running.peek().copied().filter(|Reverse((end, ..))| *end <= now) {
            self.running.pop();
            self.active -= 1;
            if let Some(count) = self.counts.get_mut(&group) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&group);
                }
            }
            ended.push((group, length));
            self.skip_aborted();
        }
        self.fill();
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(max_running: usize) -> Engine {
        Engine::new(vec![(1.0, 10.0), (2.0, 15.0), (4.0, 20.0)], 100.0, max_running)
    }

    #[test]
    fn requests_share_the_curve_and_speed_up_as_others_end() {
        let mut engine = engine(8);
        engine.add(1, 50.0, &[30, 60]);
        // Half a second of prefill, then 7.5 tokens per second each.
        assert!((engine.next().unwrap() - 4.5).abs() < 1e-2);
        assert_eq!(engine.pass(4.5), [(1, 30)]);
        assert!((engine.next().unwrap() - 3.0).abs() < 1e-2, "alone: 10 tokens per second");
        assert_eq!(engine.pass(3.0), [(1, 60)]);
        assert_eq!((engine.next(), engine.load()), (None, (0, 0)));
        assert!((engine.busy - 7.5).abs() < 1e-9 && (engine.made - 90.0).abs() < 0.1);
    }

    #[test]
    fn what_is_aborted_makes_room_for_what_waits() {
        let mut engine = engine(2);
        engine.add(1, 0.0, &[40, 50]);
        engine.add(2, 0.0, &[10]);
        assert_eq!((engine.load(), engine.groups()), ((2, 1), vec![1, 2]));
        engine.abort(1);
        assert_eq!(engine.load(), (1, 0));
        assert!((engine.next().unwrap() - 1.0).abs() < 1e-2);
        assert_eq!(engine.pass(1.0), [(2, 10)]);
    }
}
