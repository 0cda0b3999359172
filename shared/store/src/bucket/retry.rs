//! When a failed request is tried again.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::error::{BucketError, Request};

/// How often and how patiently a request is repeated. The default is the network's: three attempts, one and two seconds
/// apart, twice that when the service asks to slow down (grail-miner 7).
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all, at least one.
    pub attempts: u32,
    /// Wait after the first failure; doubles with each further one.
    pub first_wait: Duration,
    /// The same after a "slow down".
    pub first_wait_throttled: Duration,
    /// No wait is longer.
    pub longest_wait: Duration,
    /// Time for all attempts and waits together; nothing is started that cannot begin before it ends.
    pub overall: Duration,
    /// Share of the time left that one attempt may take, above 0 and up to 1: below 1 a service that hangs leaves time for
    /// another attempt.
    pub attempt_share: f64,
}

/// No attempt is cut shorter than this for the sake of another one.
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(2);

impl Default for RetryPolicy {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            attempts: 3,
            first_wait: seconds(1),
            first_wait_throttled: seconds(2),
            longest_wait: seconds(64),
            overall: seconds(280),
            attempt_share: 1.0,
        }
    }
}

impl RetryPolicy {
    /// One attempt within `overall`.
    pub fn once(overall: Duration) -> Self {
        Self { attempts: 1, overall, ..Self::default() }
    }

    /// The default policy with less time, for instance what is left until an upload deadline.
    pub fn within(overall: Duration) -> Self {
        Self { overall, ..Self::default() }
    }

    /// As many attempts as fit into `overall`, half a second to three seconds apart; each gets three fifths of what is left.
    pub fn until(overall: Duration) -> Self {
        let first_wait = Duration::from_millis(500);
        let longest_wait = Duration::from_secs(3);
        let first_wait_throttled = 2 * first_wait;
        Self { attempts: u32::MAX, first_wait, first_wait_throttled, longest_wait, overall, attempt_share: 0.6 }
    }

    /// How long an attempt may take when `left` remains of `overall`.
    pub fn attempt_limit(&self, left: Duration) -> Duration {
        left.mul_f64(self.attempt_share.clamp(0.0, 1.0)).max(SHORTEST_ATTEMPT).min(left)
    }

    /// The wait after `failures` failed attempts, or `None` to give up.
    pub fn wait_after(&self, failures: u32, error: &BucketError) -> Option<Duration> {
        if failures >= self.attempts || !error.is_transient() {
            return None;
        }
        let first = if error.is_throttled() { self.first_wait_throttled } else { self.first_wait };
        Some(first.saturating_mul(1 << (failures - 1).min(5)).min(self.longest_wait))
    }
}

/// The error of an operation whose time is over.
pub(super) fn out_of_time(request: &Request, policy: &RetryPolicy) -> BucketError {
    BucketError::Unreachable {
        request: Box::new(request.clone()),
        detail: format!("not done within the {:.1} s that this operation has", policy.overall.as_secs_f64()),
    }
}

/// Runs `attempt` under `policy`. Waits are spread by a quarter either way, so that many clients do not return at once.
pub(super) async fn retry<T, F>(policy: &RetryPolicy, request: &Request, mut attempt: impl FnMut() -> F) -> Result<T, BucketError>
where
    F: Future<Output = Result<T, BucketError>>,
{
    let deadline = Instant::now() + policy.overall;
    let mut failures = 0;
    loop {
        let limit = policy.attempt_limit(deadline.saturating_duration_since(Instant::now()));
        let error = match timeout(limit, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => out_of_time(request, policy),
        };
        failures += 1;
        let wait = policy.wait_after(failures, &error).map(|wait| wait.mul_f64(0.75 + 0.5 * rand::random::<f64>()));
        match wait {
            Some(wait) if Instant::now() + wait < deadline => {
                tracing::warn!(%error, failures, wait_seconds = wait.as_secs_f64(), "A bucket request failed, it will be repeated.");
                sleep(wait).await;
            }
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request { operation: "PutObject", key: "k".into(), bucket: "b".into(), endpoint: "e".into() }
    }

    fn unreachable() -> BucketError {
        BucketError::Unreachable { request: Box::new(request()), detail: String::new() }
    }

    #[test]
    fn waits_double_and_only_transient_errors_are_repeated() {
        let policy = RetryPolicy::default();
        let throttled = BucketError::Throttled { request: Box::new(request()), detail: String::new() };
        assert_eq!(policy.wait_after(1, &unreachable()), Some(Duration::from_secs(1)));
        assert_eq!(policy.wait_after(2, &unreachable()), Some(Duration::from_secs(2)));
        assert_eq!(policy.wait_after(2, &throttled), Some(Duration::from_secs(4)));
        assert_eq!(policy.wait_after(3, &unreachable()), None);
        assert_eq!(policy.wait_after(1, &BucketError::NotFound(Box::new(request()))), None);
    }

    #[test]
    fn a_hanging_attempt_leaves_time_for_another_one() {
        let policy = RetryPolicy::until(Duration::from_secs(20));
        assert_eq!(policy.attempt_limit(Duration::from_secs(20)), Duration::from_secs(12));
        assert_eq!(policy.attempt_limit(Duration::from_secs(3)), Duration::from_secs(2));
        assert_eq!(policy.attempt_limit(Duration::from_secs(1)), Duration::from_secs(1), "never more than what is left");
        assert_eq!(RetryPolicy::default().attempt_limit(Duration::from_secs(20)), Duration::from_secs(20));
    }

    #[tokio::test]
    async fn the_overall_time_is_kept() {
        let policy = RetryPolicy { attempts: 9, overall: Duration::from_millis(50), ..RetryPolicy::default() };
        let calls = std::cell::Cell::new(0);
        let failing = || {
            calls.set(calls.get() + 1);
            std::future::ready(Err::<(), _>(unreachable()))
        };
        assert!(retry(&policy, &request(), failing).await.is_err());
        assert_eq!(calls.get(), 1, "a second attempt could not have begun in time");
        let hanging = || std::future::pending::<Result<(), BucketError>>();
        assert!(matches!(retry(&policy, &request(), hanging).await, Err(BucketError::Unreachable { .. })));
    }
}
