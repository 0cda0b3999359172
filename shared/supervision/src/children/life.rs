//! One child's life cycle with a clock, a place to be shown, and a way in for judgements from outside.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use grail_process::{clock, proc};
use tokio::sync::watch;

use super::death::{Death, DeathClass, Reaction};
use super::event::ChildEvent;
use super::life_cycle::{Action, Event, LifeCycle, LifePolicy, Overdue};
use crate::board::Board;

/// Pause between two ticks.
const TICK: Duration = Duration::from_millis(250);
/// Ticks between two looks whether a signal has stopped the child.
const TICKS_PER_LOOK: u32 = 4;

/// How many children of a kind are in service.
#[derive(Debug)]
pub(super) struct InService {
    kind: &'static str,
    left: watch::Sender<usize>,
}

impl InService {
    /// So many children of a kind.
    pub fn new(kind: &'static str, count: usize) -> Arc<Self> {
        Arc::new(Self { kind, left: watch::channel(count).0 })
    }

    /// Waits until every child of the kind is quarantined.
    pub async fn none_left(&self) {
        // The sender lives as long as this value: the wait cannot fail.
        let _ = self.left.subscribe().wait_for(|left| *left == 0).await;
    }

    fn lost(&self, board: &Board) {
        self.left.send_modify(|left| *left = left.saturating_sub(1));
        if *self.left.borrow() == 0 {
            board.event(ChildEvent::NoneLeft { kind: self.kind.into() });
        }
    }
}

/// The life of one child. Its keeper's task alone changes it; others may only [`Life::condemn`] and [`Life::doubt`].
pub struct Life {
    /// How logs call the child.
    pub name: String,
    /// Where it is shown.
    pub board: Board,
    cycle: Mutex<LifeCycle>,
    zero: Instant,
    condemned: watch::Sender<Option<String>>,
    doubted: watch::Sender<Option<String>>,
    in_service: Arc<InService>,
}

impl Life {
    /// A life that has not begun.
    pub(super) fn new(name: String, policy: LifePolicy, board: Board, in_service: Arc<InService>) -> Arc<Self> {
        let cycle = Mutex::new(LifeCycle::new(policy));
        let nothing = || watch::channel(None).0;
        let life = Self { name, board, cycle, zero: clock::monotonic(), condemned: nothing(), doubted: nothing(), in_service };
        life.show();
        Arc::new(life)
    }

    fn cycle<T>(&self, with: impl FnOnce(&mut LifeCycle, Duration) -> T) -> T {
        with(&mut self.cycle.lock().unwrap_or_else(PoisonError::into_inner), self.zero.elapsed())
    }

    /// Something happened.
    pub fn tell(&self, event: Event) -> Option<Action> {
        let action = self.cycle(|cycle, now| cycle.on(now, event));
        self.show();
        action
    }

    fn show(&self) {
        let (state, moves, limit) = self.cycle(|cycle, _| (cycle.state(), cycle.moves(), cycle.limit()));
        self.board.child(&self.name, |shown| {
            shown.state = state;
            shown.progress = moves;
            shown.progress_limit_seconds = limit.as_secs_f64();
        });
    }

    /// Takes the child out of service for good, because of something that it cannot see itself.
    pub fn condemn(&self, why: String) {
        self.condemned.send_replace(Some(why));
    }

    /// Waits until the child is condemned.
    pub async fn condemned(&self) -> String {
        said(&self.condemned).await
    }

    /// Ends this life of the child, because what it computes cannot be believed; the next one begins afresh.
    pub fn doubt(&self, why: String) {
        self.doubted.send_replace(Some(why));
    }

    /// Waits until this life is doubted.
    pub async fn doubted(&self) -> String {
        said(&self.doubted).await
    }

    /// Waits until a start is due.
    pub async fn due(&self) {
        loop {
            let wait = self.cycle(|cycle, now| cycle.wait(now));
            tokio::time::sleep(wait.unwrap_or(TICK)).await;
            if self.tell(Event::Tick) == Some(Action::Spawn) {
                return;
            }
        }
    }

    /// Watches a living child until something is overdue.
    pub async fn watch(&self, pid: u32) -> Overdue {
        for tick in 1u32.. {
            tokio::time::sleep(TICK).await;
            if tick % TICKS_PER_LOOK == 0 {
                self.tell(Event::Seen { frozen: is_frozen(pid) });
            }
            if let Some(Action::Kill(overdue)) = self.tell(Event::Tick) {
                return overdue;
            }
        }
        // A child that lives for thirty years is well.
        std::future::pending().await
    }

    /// The process is gone. `true` when the child is to be started again.
    pub fn gone(&self, death: Death, gpus: &[String]) -> bool {
        self.doubted.send_replace(None);
        let class = death.class;
        let action = self.tell(Event::Gone(class, rand::random()));
        let child = self.name.clone();
        match action {
            Some(Action::Rest) => false,
            Some(Action::Quarantine) => {
                self.board.event(ChildEvent::Quarantined { child, gpus: gpus.to_vec(), death });
                self.in_service.lost(&self.board);
                false
            }
            _ => {
                let wait = self.cycle(|cycle, now| cycle.wait(now)).unwrap_or_default();
                debug_assert!(class.reaction() != Reaction::Quarantine && class != DeathClass::Condemned);
                self.board.event(ChildEvent::Died { child, death, wait_ms: wait.as_millis() as u64 });
                true
            }
        }
    }
}

async fn said(channel: &watch::Sender<Option<String>>) -> String {
    match channel.subscribe().wait_for(Option::is_some).await.ok().and_then(|why| why.clone()) {
        Some(why) => why,
        None => std::future::pending().await,
    }
}

/// Whether a signal has stopped the process or one below it. A debugger's stop is another state, and left alone.
fn is_frozen(pid: u32) -> bool {
    let tree = proc::tree(pid).unwrap_or_else(|_| vec![pid]);
    tree.into_iter().any(|pid| proc::facts(pid).is_ok_and(|facts| facts.state == 'T'))
}
