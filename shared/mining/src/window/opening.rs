//! What a window needs before its first group: its deadline, the trainer, the checkpoint, the facts of its first block.
//!
//! ```text
//!  asked ─┬─ all of it is there ──▶ mining
//!         ├─ may pass, and a group would still be in time ──▶ a pause, asked again from the beginning
//!         ├─ final for this window, or no useful time left ──▶ nothing more is mined
//!         └─ no answer at all ──▶ given up at the cut-off: groups that are complete leave in time, whatever hangs
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use grail_process::clock;
use grail_protocol::constants::{DEADLINE_SLACK_SECONDS, WINDOW_LENGTH};
use grail_subnet::chain::ChainError;
use grail_subnet::checkpoints::NotReady;
use grail_subnet::terms::Terms;
use tokio_util::sync::CancellationToken;

use super::{CHAIN_PATIENCE, Miner, NoFile, pause};
use crate::clockwork::Clockwork;
use crate::events::WindowWaits;
use crate::groups::WindowFacts;
use crate::spool::WindowRecord;

/// The first pause, doubled up to the longest one. Each look costs the trainer's bucket a few small questions.
const PAUSES: (f64, f64) = (1.0, 10.0);
/// A pause takes no more of the useful time than this share, but is no shorter than so many seconds.
const PAUSE_SHARE: f64 = 0.25;
const SHORTEST_PAUSE: f64 = 0.25;

/// Why nothing can be mined, as things stand.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Obstacle {
    /// The chain does not say what is needed.
    Chain(String),
    /// The hotkey has no UID.
    Unregistered(String),
    /// What the trainer has published as its bucket cannot be one.
    TrainerBucket(String),
    /// Nothing was ready before the window.
    NoCheckpoint,
    /// The newest checkpoint, or the way to it.
    Checkpoint(String),
    /// There was no answer before groups that are complete have to leave.
    TooLate(String),
    /// The supervisor is told to stop.
    Stopping,
}

impl Obstacle {
    /// Whether it may be over while the window still is worth mining. This is the one place that decides it.
    fn may_pass(&self) -> bool {
        match self {
            Self::Chain(_) | Self::TrainerBucket(_) | Self::NoCheckpoint | Self::Checkpoint(_) => true,
            Self::Unregistered(_) | Self::TooLate(_) | Self::Stopping => false,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Chain(why) | Self::Unregistered(why) | Self::TrainerBucket(why) | Self::Checkpoint(why) | Self::TooLate(why) => why,
            Self::NoCheckpoint => {
                "there is no checkpoint that was ready before this window (on a local chain: grail-supervisor publish-checkpoint DIR)"
            }
            Self::Stopping => "the supervisor is stopping",
        })
    }
}

impl From<NotReady> for Obstacle {
    fn from(unready: NotReady) -> Self {
        match unready {
            NotReady::None => Self::NoCheckpoint,
            NotReady::Unusable(why) => Self::Checkpoint(why),
        }
    }
}

/// The attempts of one window. Pure: time is an argument.
#[derive(Debug, Default)]
struct Attempts {
    failures: i32,
    told: Option<Obstacle>,
}

/// What follows from an attempt that failed.
#[derive(Debug, PartialEq)]
enum Next {
    /// Another one after so many seconds; with the reason where it is another one than before.
    Again { seconds: f64, news: Option<String> },
    /// Nothing more can be mined, for this reason.
    Over(String),
}

impl Attempts {
    /// An attempt failed at `now`, in a window that is worth mining until `useful`.
    fn failed(&mut self, obstacle: Obstacle, now: f64, useful: f64) -> Next {
        let left = useful - now;
        if !(obstacle.may_pass() && left > 0.0) {
            return Next::Over(match (&obstacle, &self.told) {
                (Obstacle::TooLate(_), Some(before)) => format!("{obstacle}; before that: {before}"),
                _ => obstacle.to_string(),
            });
        }
        let (first, longest) = PAUSES;
        let seconds = (first * 2_f64.powi(self.failures)).min(longest).min(left * PAUSE_SHARE).max(SHORTEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        let news = (self.told.as_ref() != Some(&obstacle)).then(|| obstacle.to_string());
        self.told = Some(obstacle);
        Next::Again { seconds, news }
    }
}

impl Miner {
    /// When uploads of `window` end. The chain is asked for as long as that is of use; what an earlier run has written down is as
    /// good.
    pub(super) async fn deadline(
        &mut self,
        window: u64,
        sheet: Option<&WindowRecord>,
        stop: &CancellationToken,
    ) -> Result<f64, NoFile> {
        // Until the chain says when the window ends: what the clock says. Blocks may be late, and are never much too early.
        let (block, since) = self.heads.newest().unwrap_or((window, clock::unix_seconds()));
        let blocks_left = (window + WINDOW_LENGTH).saturating_sub(block) as f64;
        let deadline = since + blocks_left * self.schedule.block_seconds() - DEADLINE_SLACK_SECONDS;
        let useful = self.schedule.useful_until(&Clockwork { window, deadline }, 0);
        let mut attempts = Attempts::default();
        loop {
            let obstacle = match (self.ask(self.chain.block_time(window + WINDOW_LENGTH)).await, sheet) {
                (Ok(end), _) => return Ok(end - DEADLINE_SLACK_SECONDS),
                (Err(_), Some(sheet)) => return Ok(sheet.deadline),
                (Err(_), None) if stop.is_cancelled() => Obstacle::Stopping,
                (Err(obstacle), None) => obstacle,
            };
            self.wait_after(attempts.failed(obstacle, clock::unix_seconds(), useful), window, stop).await?;
        }
    }

    /// What the window is mined with, once all of it is there. `kept` rollouts of it are durable: they leave in time, whatever hangs.
    pub(super) async fn prepared(
        &mut self,
        clockwork: &Clockwork,
        kept: usize,
        stop: &CancellationToken,
    ) -> Result<(Arc<Terms>, WindowFacts), NoFile> {
        let mut attempts = Attempts::default();
        loop {
            let end = self.schedule.cut_off(clockwork, kept);
            let obstacle = match self.prepare_until(end, clockwork, stop).await {
                Ok(prepared) => return Ok(prepared),
                Err(obstacle) => obstacle,
            };
            let useful = self.schedule.useful_until(clockwork, kept);
            self.wait_after(attempts.failed(obstacle, clock::unix_seconds(), useful), clockwork.window, stop).await?;
            self.board.window(|status| status.waits_for = None);
        }
    }

    async fn wait_after(&self, next: Next, window: u64, stop: &CancellationToken) -> Result<(), NoFile> {
        let (seconds, news) = match next {
            Next::Over(why) => return Err(NoFile::Skipped(why)),
            Next::Again { seconds, news } => (seconds, news),
        };
        if let Some(why) = news {
            self.board.window(|status| status.waits_for = Some(why.clone()));
            self.journal.record(&WindowWaits { window, why });
        }
        pause(stop, Duration::from_secs_f64(seconds)).await;
        Ok(())
    }

    /// Everything that is needed, unless it is told to stop or `end` (Unix seconds) comes first.
    async fn prepare_until(
        &mut self,
        end: f64,
        clockwork: &Clockwork,
        stop: &CancellationToken,
    ) -> Result<(Arc<Terms>, WindowFacts), Obstacle> {
        let left = Duration::try_from_secs_f64(end - clock::unix_seconds()).unwrap_or_default();
        let prepared = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Obstacle::Stopping),
            prepared = tokio::time::timeout(left, self.prepare(clockwork)) => prepared,
        };
        prepared.unwrap_or_else(|_| {
            let phase = self.board.snapshot().window.phase;
            Err(Obstacle::TooLate(format!("the time for mining was over while the window was {phase}")))
        })
    }

    async fn prepare(&mut self, clockwork: &Clockwork) -> Result<(Arc<Terms>, WindowFacts), Obstacle> {
        self.board.window(|status| status.phase = "looking for the checkpoint".into());
        self.follow_subnet().await?;
        let terms = match self.checkpoints.terms_for(clockwork.window).await {
            Ok(terms) => terms,
            Err(why) => {
                // Cleaned is once a window is mined, and that may be a long time from now.
                self.cache_disk.offer(self.checkpoints.bound());
                return Err(why.into());
            }
        };
        let facts = self.facts(clockwork).await?;
        Ok((terms, facts))
    }

    /// One answer of the chain.
    pub(super) async fn ask<T>(&self, question: impl Future<Output = Result<T, ChainError>>) -> Result<T, Obstacle> {
        match tokio::time::timeout(CHAIN_PATIENCE, question).await {
            Ok(answer) => answer.map_err(|error| Obstacle::Chain(error.to_string())),
            Err(_) => Err(Obstacle::Chain(format!("the chain gave no answer within {} s", CHAIN_PATIENCE.as_secs()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> Obstacle {
        Obstacle::Checkpoint("the bucket says 500".into())
    }

    #[test]
    fn what_may_pass_is_tried_again_while_that_is_useful_and_told_once() {
        let mut attempts = Attempts::default();
        let again = |seconds, news: bool| Next::Again { seconds, news: news.then(|| listing().to_string()) };
        assert_eq!(attempts.failed(listing(), 0.0, 100.0), again(1.0, true));
        assert_eq!(attempts.failed(listing(), 1.0, 100.0), again(2.0, false));
        assert_eq!(attempts.failed(listing(), 3.0, 100.0), again(4.0, false));
        let none = Next::Again { seconds: 8.0, news: Some(Obstacle::NoCheckpoint.to_string()) };
        assert_eq!(attempts.failed(Obstacle::NoCheckpoint, 7.0, 100.0), none, "another reason is news");
        assert_eq!(attempts.failed(listing(), 15.0, 100.0), again(10.0, true));
        assert_eq!(attempts.failed(listing(), 90.0, 100.0), again(2.5, false), "what is left is not spent on one pause");
        assert_eq!(attempts.failed(listing(), 99.9, 100.0), again(0.25, false));
        assert_eq!(attempts.failed(listing(), 100.0, 100.0), Next::Over("the bucket says 500".into()));
    }

    #[test]
    fn what_is_final_for_a_window_ends_it_at_once_and_keeps_what_came_before() {
        for obstacle in [Obstacle::Unregistered("no UID".into()), Obstacle::Stopping] {
            assert_eq!(Attempts::default().failed(obstacle.clone(), 0.0, 100.0), Next::Over(obstacle.to_string()));
        }
        let mut attempts = Attempts::default();
        attempts.failed(listing(), 0.0, 100.0);
        let late = attempts.failed(Obstacle::TooLate("too late".into()), 1.0, 100.0);
        assert_eq!(late, Next::Over("too late; before that: the bucket says 500".into()));
    }
}
