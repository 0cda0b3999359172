//! The life cycle of one child as a pure machine: events with their time in, what to do next out.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Where a child is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChildState {
    /// Not started yet, or stopped for good.
    Absent,
    /// Started, handshake or model load under way.
    Starting,
    /// Idle.
    Ready,
    /// At work.
    Busy,
    /// Ended; waits before it is started again.
    Backoff,
    /// Ended too often; stays down until the supervisor is restarted.
    Quarantined,
}

impl fmt::Display for ChildState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Absent => "absent",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Backoff => "back-off",
            Self::Quarantined => "quarantined",
        };
        formatter.pad(text)
    }
}

/// How restarts are spaced and when they stop.
#[derive(Debug, Clone, Copy)]
pub struct RestartPolicy {
    /// Wait after the first end.
    pub first: Duration,
    /// Longest wait.
    pub longest: Duration,
    /// A life of this length forgets earlier ends.
    pub stable: Duration,
    /// So many ends …
    pub intensity: usize,
    /// … within this time lead to quarantine.
    pub period: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(250),
            longest: Duration::from_secs(30),
            stable: Duration::from_secs(60),
            intensity: 8,
            period: Duration::from_secs(300),
        }
    }
}

/// What to do after a child has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Start it again after this time.
    RestartAfter(Duration),
    /// Leave it down.
    Quarantine,
}

/// One child's restarts. Times are durations since any fixed instant.
#[derive(Debug)]
pub struct LifeCycle {
    policy: RestartPolicy,
    wait: Duration,
    started: Duration,
    ends: VecDeque<Duration>,
}

impl LifeCycle {
    /// A child that was never started.
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, wait: policy.first, started: Duration::ZERO, ends: VecDeque::new() }
    }

    /// The child is started.
    pub fn started(&mut self, now: Duration) {
        self.started = now;
    }

    /// The child has ended, by whatever cause. `jitter` in `0.0..1.0` spreads restarts by up to a quarter of the wait.
    pub fn ended(&mut self, now: Duration, jitter: f64) -> Next {
        if now.saturating_sub(self.started) >= self.policy.stable {
            self.wait = self.policy.first;
            self.ends.clear();
        }
        self.ends.push_back(now);
        while self.ends.front().is_some_and(|end| now.saturating_sub(*end) > self.policy.period) {
            self.ends.pop_front();
        }
        if self.ends.len() >= self.policy.intensity {
            return Next::Quarantine;
        }
        let wait = self.wait.mul_f64(1.0 + 0.25 * jitter.clamp(0.0, 1.0));
        self.wait = (self.wait * 2).min(self.policy.longest);
        Next::RestartAfter(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_the_longest_and_start_anew_after_a_stable_life() {
        let policy = RestartPolicy { intensity: 100, ..RestartPolicy::default() };
        let mut life = LifeCycle::new(policy);
        let mut waits = Vec::new();
        for second in 0..10 {
            life.started(SECOND * second);
            waits.push(life.ended(SECOND * second, 0.0));
        }
        assert_eq!(waits[..3], [250, 500, 1000].map(|ms| Next::RestartAfter(Duration::from_millis(ms))));
        assert_eq!(waits[9], Next::RestartAfter(policy.longest));
        life.started(SECOND * 100);
        assert_eq!(life.ended(SECOND * 161, 0.0), Next::RestartAfter(policy.first));
    }

    #[test]
    fn too_many_ends_in_the_period_lead_to_quarantine() {
        let mut life = LifeCycle::new(RestartPolicy::default());
        let nexts: Vec<Next> = (0..8).map(|second| life.ended(SECOND * second, 0.5)).collect();
        assert!(nexts[..7].iter().all(|next| matches!(next, Next::RestartAfter(_))));
        assert_eq!(nexts[7], Next::Quarantine);
    }

    #[test]
    fn old_ends_are_forgotten() {
        let policy = RestartPolicy { stable: SECOND * 10_000, ..RestartPolicy::default() };
        let mut life = LifeCycle::new(policy);
        for second in 0..50 {
            assert!(matches!(life.ended(SECOND * 60 * second, 1.0), Next::RestartAfter(_)));
        }
    }
}
