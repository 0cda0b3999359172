//! The life cycle of every child as a pure machine: events with their time in, what to do next out.
//!
//! ```text
//!          Tick, when due    Hello (start-up probe)              Work
//!  Absent ────────▶ Starting ─────────────────────▶ Ready ◀────────────▶ Busy
//!     ▲                │ ▲        Loaded (ready probe) │ Loading      Idle │
//!     │ Tick, when     │ └──────────────────────────── │ ◀────────────────┘
//!     │ due            │ overdue, stopped by a signal, failing, condemned, Stop
//!     │                ▼
//!  Backoff(n) ◀── Exited(class) ◀── Gone ──────────── Stopping
//!                      │ k deaths in T, or a class that a restart cannot mend
//!                      ▼
//!                 Quarantined          (Stop from anywhere leads to Absent, for good)
//! ```
//!
//! Three probes, kept apart. *Start-up*: hello within a limit. *Ready*: the asked-for weights are resident; the first load of a
//! life has all the time that is configured, later ones a limit that follows what was measured. *Live*: while work is pending
//! its counter moves ([`Progress`]), and the process is not stopped by a signal.
//!
//! Time that the supervisor itself could not run (it was stopped, or the host was) is charged to no child.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::death::{DeathClass, Reaction};
use super::progress::{Progress, ProgressPolicy};

/// Where a child is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildState {
    /// Not started yet, or stopped for good.
    Absent,
    /// Started, handshake or model load under way.
    Starting,
    /// Idle.
    Ready,
    /// At work.
    Busy,
    /// It is being ended.
    Stopping,
    /// Gone; what follows is being decided.
    Exited(DeathClass),
    /// Gone for the n-th time in a row; waits before it is started again.
    Backoff(u32),
    /// Ended too often, or by something a restart cannot mend; stays down until the supervisor is restarted.
    Quarantined,
}

impl ChildState {
    /// Whether a process may exist.
    pub fn lives(self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Busy | Self::Stopping)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
            Self::Exited(_) => "exited",
            Self::Backoff(_) => "backoff",
            Self::Quarantined => "quarantined",
        }
    }
}

impl fmt::Display for ChildState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl Serialize for ChildState {
    /// The name alone; class and number of the last death stand beside it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How restarts are spaced and when they stop.
#[derive(Debug, Clone, Copy)]
pub struct RestartPolicy {
    /// Wait after the first death.
    pub first: Duration,
    /// Longest wait, before jitter.
    pub longest: Duration,
    /// A life that was ready for so long forgets earlier deaths.
    pub stable: Duration,
    /// So many deaths …
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

/// What a child is judged by.
#[derive(Debug, Clone, Copy)]
pub struct LifePolicy {
    /// Spacing of restarts.
    pub restart: RestartPolicy,
    /// The first start waits so long, so that a host full of children does not load as many models at once.
    pub stagger: Duration,
    /// Longest time from spawn to hello.
    pub start_up: Duration,
    /// Longest first load of a life: a cold start reads the disk and compiles kernels.
    pub cold_load: Duration,
    /// Later loads.
    pub warm_load: ProgressPolicy,
    /// Work.
    pub work: ProgressPolicy,
    /// So long a process may be stopped by a signal.
    pub frozen: Duration,
}

impl LifePolicy {
    /// The same limit for every step, for children whose work is short.
    pub fn uniform(limit: Duration) -> Self {
        let step = ProgressPolicy { floor: limit, ceiling: limit, factor: 1.0 };
        let restart = RestartPolicy::default();
        Self { restart, stagger: Duration::ZERO, start_up: limit, cold_load: limit, warm_load: step, work: step, frozen: limit }
    }
}

/// Longest time between two ticks of a living child; what is beyond was lost by the supervisor itself.
const LONGEST_TICK: Duration = Duration::from_secs(2);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// The child is wanted.
    Start,
    /// Time passed.
    Tick,
    /// Its process runs; until now it waited for its GPU.
    Spawned,
    /// Its first message came.
    Hello,
    /// It was told to take weights.
    Loading,
    /// It answered: it holds them, or refuses them and holds what it held.
    Loaded,
    /// Work is pending, `units` of it until the next movement.
    Work(u64),
    /// The counter of the work moved.
    Advanced,
    /// No work is pending.
    Idle,
    /// The live probe looked whether the process is stopped by a signal.
    Seen {
        /// It is.
        frozen: bool,
    },
    /// Its link ended, it broke the protocol, it was judged from outside: it must end.
    Failing,
    /// The process is gone, or never came to be. `jitter` in `0.0..1.0` spreads restarts by up to a quarter of the wait.
    Gone(DeathClass, f64),
    /// The supervisor wants it gone for good.
    Stop,
}

/// Why a life must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// No hello within this time.
    Hello(Duration),
    /// No answer to a load within this time.
    Load(Duration),
    /// Work stood still for the first, where the second was allowed.
    Work(Duration, Duration),
    /// Stopped by a signal for so long.
    Frozen(Duration),
}

impl fmt::Display for Overdue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello(limit) => write!(formatter, "it said nothing within {:.0} s", limit.as_secs_f64()),
            Self::Load(limit) => write!(formatter, "it did not take the weights within {:.1} s", limit.as_secs_f64()),
            Self::Work(still, limit) => write!(
                formatter,
                "work is pending and nothing has moved for {:.1} s, where {:.1} s is usual at most",
                still.as_secs_f64(),
                limit.as_secs_f64()
            ),
            Self::Frozen(time) => write!(formatter, "a signal has stopped one of its processes for {:.1} s", time.as_secs_f64()),
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a process.
    Spawn,
    /// End it in order: close the link, grace, TERM, KILL.
    End,
    /// Note what its threads do, then KILL.
    Kill(Overdue),
    /// Nothing more, ever: it was stopped.
    Rest,
    /// Nothing more, ever, and the operator is told.
    Quarantine,
}

/// One child's life. Times are durations since any fixed instant.
#[derive(Debug)]
pub struct LifeCycle {
    policy: LifePolicy,
    state: ChildState,
    /// When the state was entered; of `Starting`, when the probe that is under way began.
    since: Duration,
    /// When the next start is due, in `Absent` and `Backoff`.
    due: Option<Duration>,
    /// Deaths in a row, without a stable life between them.
    row: u32,
    deaths: VecDeque<Duration>,
    /// When this life was first ready.
    ready: Option<Duration>,
    loading: bool,
    loaded: bool,
    stopped: bool,
    frozen: Option<Duration>,
    work: Progress,
    loads: Progress,
    last_tick: Option<Duration>,
    lost: Duration,
}

impl LifeCycle {
    /// A child that was never started.
    pub fn new(policy: LifePolicy) -> Self {
        Self {
            policy,
            state: ChildState::Absent,
            since: Duration::ZERO,
            due: None,
            row: 0,
            deaths: VecDeque::new(),
            ready: None,
            loading: false,
            loaded: false,
            stopped: false,
            frozen: None,
            work: Progress::new(policy.work),
            loads: Progress::new(policy.warm_load),
            last_tick: None,
            lost: Duration::ZERO,
        }
    }

    /// Where it is.
    pub fn state(&self) -> ChildState {
        self.state
    }

    /// Movements of its work over all lives: the health counter.
    pub fn moves(&self) -> u64 {
        self.work.moves()
    }

    /// How long its work may stand still at present.
    pub fn limit(&self) -> Duration {
        self.work.limit()
    }

    /// Time until the next start, while one is waited for.
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        Some(self.due?.saturating_sub(now.saturating_sub(self.lost)))
    }

    /// Something happened.
    pub fn on(&mut self, now: Duration, event: Event) -> Option<Action> {
        let now = self.own_time(now, event);
        match event {
            Event::Start if self.state == ChildState::Absent && !self.stopped && self.due.is_none() => {
                self.due = Some(now + self.policy.stagger);
                None
            }
            Event::Tick => self.tick(now),
            Event::Stop => self.stop(now),
            Event::Gone(class, jitter) if self.state.lives() => self.gone(now, class, jitter),
            Event::Failing if self.state.lives() && self.state != ChildState::Stopping => {
                self.enter(ChildState::Stopping, now);
                Some(Action::End)
            }
            _ if matches!(self.state, ChildState::Starting | ChildState::Ready | ChildState::Busy) => {
                self.live(now, event);
                None
            }
            _ => None,
        }
    }

    /// The supervisor's time less what it lost itself, as far as it was noticed between two ticks.
    fn own_time(&mut self, now: Duration, event: Event) -> Duration {
        if event == Event::Tick && self.state.lives() {
            let gap = self.last_tick.map_or(Duration::ZERO, |last| now.saturating_sub(last));
            if gap > LONGEST_TICK {
                self.lost += gap;
            }
            self.last_tick = Some(now);
        }
        now.saturating_sub(self.lost)
    }

    fn enter(&mut self, state: ChildState, now: Duration) {
        self.state = state;
        self.since = now;
        self.due = None;
    }

    fn tick(&mut self, now: Duration) -> Option<Action> {
        match self.state {
            ChildState::Absent | ChildState::Backoff(_) if self.due.is_some_and(|due| due <= now) => {
                self.enter(ChildState::Starting, now);
                (self.ready, self.loading, self.loaded, self.frozen) = (None, false, false, None);
                Some(Action::Spawn)
            }
            ChildState::Starting | ChildState::Ready | ChildState::Busy => {
                let overdue = self.overdue(now)?;
                self.enter(ChildState::Stopping, now);
                Some(Action::Kill(overdue))
            }
            _ => None,
        }
    }

    fn overdue(&self, now: Duration) -> Option<Overdue> {
        let frozen = self.frozen.map(|since| now.saturating_sub(since)).filter(|time| *time > self.policy.frozen);
        if let Some(time) = frozen {
            return Some(Overdue::Frozen(time));
        }
        let waited = now.saturating_sub(self.since);
        match self.state {
            ChildState::Starting if !self.loading => {
                (waited > self.policy.start_up).then_some(Overdue::Hello(self.policy.start_up))
            }
            ChildState::Starting => {
                let limit = if self.loaded { self.loads.limit() } else { self.policy.cold_load };
                (waited > limit).then_some(Overdue::Load(limit))
            }
            _ => self.work.overdue(now).map(|still| Overdue::Work(still, self.work.limit())),
        }
    }

    fn live(&mut self, now: Duration, event: Event) {
        match event {
            Event::Spawned => self.since = now,
            Event::Hello if self.state == ChildState::Starting && !self.loading => {
                self.ready.get_or_insert(now);
                self.enter(ChildState::Ready, now);
            }
            Event::Loading => {
                self.work.forget_pending();
                self.loads.begin(now, 1);
                self.loading = true;
                self.enter(ChildState::Starting, now);
            }
            Event::Loaded if self.loading => {
                // A cold start says nothing about later loads.
                if self.loaded {
                    self.loads.advanced(now);
                    self.loads.idle();
                }
                self.loads.forget_pending();
                (self.loading, self.loaded) = (false, true);
                self.enter(ChildState::Ready, now);
            }
            Event::Work(units) if self.state != ChildState::Starting => {
                self.work.begin(now, units);
                self.enter(ChildState::Busy, now);
            }
            Event::Advanced => self.work.advanced(now),
            Event::Idle if self.state != ChildState::Starting => {
                self.work.idle();
                self.enter(ChildState::Ready, now);
            }
            Event::Seen { frozen: true } => _ = self.frozen.get_or_insert(now),
            Event::Seen { frozen: false } => self.frozen = None,
            _ => {}
        }
    }

    fn stop(&mut self, now: Duration) -> Option<Action> {
        if std::mem::replace(&mut self.stopped, true) {
            return None;
        }
        match self.state {
            ChildState::Stopping => None,
            state if state.lives() => {
                self.enter(ChildState::Stopping, now);
                Some(Action::End)
            }
            // What an operator was told about stays to be seen.
            ChildState::Quarantined => Some(Action::Rest),
            _ => {
                self.enter(ChildState::Absent, now);
                Some(Action::Rest)
            }
        }
    }

    fn gone(&mut self, now: Duration, class: DeathClass, jitter: f64) -> Option<Action> {
        self.work.forget_pending();
        self.loads.forget_pending();
        self.last_tick = None;
        self.enter(ChildState::Exited(class), now);
        if self.stopped {
            self.enter(ChildState::Absent, now);
            return Some(Action::Rest);
        }
        let restart = self.policy.restart;
        if self.ready.is_some_and(|ready| now.saturating_sub(ready) >= restart.stable) {
            self.row = 0;
            self.deaths.clear();
        }
        if class.counts() {
            self.deaths.push_back(now);
        }
        while self.deaths.front().is_some_and(|death| now.saturating_sub(*death) > restart.period) {
            self.deaths.pop_front();
        }
        if class.reaction() == Reaction::Quarantine || self.deaths.len() >= restart.intensity {
            self.enter(ChildState::Quarantined, now);
            return Some(Action::Quarantine);
        }
        let wait = match class.reaction() {
            Reaction::RestartLater => restart.longest,
            _ => restart.first.saturating_mul(1 << self.row.min(20)).min(restart.longest),
        };
        self.row += 1;
        self.enter(ChildState::Backoff(self.row), now);
        self.due = Some(now + wait.mul_f64(1.0 + 0.25 * jitter.clamp(0.0, 1.0)));
        None
    }
}

#[cfg(test)]
#[path = "life_cycle_tests.rs"]
mod tests;
