//! Every time limit, retry and pause of the chain client, as data in one place (chain 9).

use std::time::Duration;

/// How long is waited for what. [`Patience::default`] is for the network; tests take shorter ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Patience {
    /// Opening a connection, TLS and WebSocket included.
    pub connect: Duration,
    /// One request; also how long a read waits for a connection that is just being made.
    pub request: Duration,
    /// One request for metadata, which has hundreds of kilobytes.
    pub metadata: Duration,
    /// Tries of one read; connection trouble only, a refusal is an answer.
    pub tries: u32,
    /// Requests in a row without an answer that end a connection: the circuit then stays open until there is a new one, and
    /// calls fail at once instead of waiting.
    pub unanswered: u32,
    /// Between two pings; a connection on which nothing was heard for two of them is dead.
    pub ping: Duration,
    /// Between two looks at the head where no subscription tells it.
    pub poll: Duration,
    /// Without a new head for so long, a connection is taken for dead and made anew.
    pub silence: Duration,
    /// A head whose time stamp is older than this against the local clock is told.
    pub stale: Duration,
    /// Between two comparisons of the runtime version where no subscription tells it.
    pub recheck: Duration,
    /// Pauses between connections.
    pub backoff: Backoff,
    /// Most bytes of one message of the node.
    pub message_bytes: usize,
    /// Most requests and subscriptions at once.
    pub requests: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            request: Duration::from_secs(15),
            metadata: Duration::from_secs(60),
            tries: 3,
            unanswered: 2,
            ping: Duration::from_secs(20),
            poll: Duration::from_secs(3),
            silence: Duration::from_secs(60),
            stale: Duration::from_secs(120),
            recheck: Duration::from_secs(600),
            backoff: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(30), jitter: 0.25 },
            message_bytes: 16 << 20,
            requests: 256,
        }
    }
}

/// Pauses that double.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Never longer, before jitter.
    pub longest: Duration,
    /// Share by which a pause is lengthened at random at most.
    pub jitter: f64,
}

impl Backoff {
    /// The pause after so many failures in a row; `random` is within 0 to 1.
    #[must_use]
    pub fn pause(&self, failures: u32, random: f64) -> Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.longest).mul_f64(1.0 + self.jitter * random.clamp(0.0, 1.0))
    }
}

/// Limits of publishing a commitment.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishLimits {
    /// Blocks for which a transaction is valid: about 13 minutes.
    pub period: u64,
    /// Blocks that finality may trail the head before a transaction counts as gone.
    pub finality_lag: u64,
    /// Transactions at most.
    pub attempts: u32,
    /// Between two looks at the chain while an outcome is unknown.
    pub look: Duration,
    /// For one call of publishing, with all its attempts.
    pub total: Duration,
    /// Pauses between calls that failed for a passing reason.
    pub again: Backoff,
}

impl Default for PublishLimits {
    fn default() -> Self {
        Self {
            period: 64,
            finality_lag: 8,
            attempts: 3,
            look: Duration::from_secs(12),
            total: Duration::from_secs(45 * 60),
            again: Backoff { first: Duration::from_secs(60), longest: Duration::from_secs(3600), jitter: 0.1 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_longest() {
        let backoff = Patience::default().backoff;
        let seconds: Vec<u64> = (1..8).map(|failures| backoff.pause(failures, 0.0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(backoff.pause(u32::MAX, 1.0), Duration::from_millis(37_500));
    }
}
