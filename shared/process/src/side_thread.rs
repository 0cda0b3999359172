//! Work that the kernel may hold up for as long as it likes (a disk that hangs, a pipe that nobody reads), on a thread of its
//! own: whoever wants it done waits for a limited time, or not at all.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;

type Work = Box<dyn FnOnce() + Send>;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SideThreadError {
    /// It is done when the kernel lets the thread go.
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    /// It will not be done.
    #[error("too much waits for it already")]
    Full,
    /// It was begun and ended abnormally.
    #[error("it ended abnormally")]
    Ended,
}

impl From<SideThreadError> for io::Error {
    fn from(why: SideThreadError) -> Self {
        Self::new(io::ErrorKind::TimedOut, why)
    }
}

/// A thread that does one piece of work after another, in the order in which they came. It lives as long as the last clone, or
/// as the work that the kernel holds up.
#[derive(Debug, Clone)]
pub struct SideThread {
    queue: SyncSender<Work>,
    doing: Arc<Mutex<QueueState>>,
}

#[derive(Debug, Default)]
struct QueueState {
    /// Pieces that are not done.
    left: usize,
    /// When the present one was begun.
    since: Option<Instant>,
}

impl SideThread {
    /// Starts the thread. At most `most` pieces of work wait for it.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(name: &str, most: usize) -> io::Result<Self> {
        let (queue, inbox) = sync_channel(most);
        let doing = Arc::<Mutex<QueueState>>::default();
        let seen = doing.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || run(&inbox, &seen))?;
        Ok(Self { queue, doing })
    }

    /// Has something done, some time. Never waits; `false`: too much waits already.
    pub fn offer(&self, work: impl FnOnce() + Send + 'static) -> bool {
        // Counted first: who does it counts it down.
        lock(&self.doing).left += 1;
        match self.queue.try_send(Box::new(work)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                lock(&self.doing).left -= 1;
                false
            }
        }
    }

    /// Whether nothing waits and nothing is being done.
    pub fn is_idle(&self) -> bool {
        lock(&self.doing).left == 0
    }

    /// For how long the kernel has had the present piece of work.
    pub fn held_up(&self) -> Duration {
        lock(&self.doing).since.map_or(Duration::ZERO, |since| clock::monotonic().saturating_duration_since(since))
    }

    /// Has something done and waits for its answer: `limit` from now, or from the beginning of what is being done at present. So a
    /// thread that is held up makes nobody wait twice. What got no answer in time is done all the same.
    ///
    /// # Errors
    /// [`SideThreadError`]
    pub async fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SideThreadError> {
        let (tell, answer) = tokio::sync::oneshot::channel();
        let patience = self.patience(limit);
        if !self.offer(move || drop(tell.send(work()))) {
            return Err(SideThreadError::Full);
        }
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map_err(|_| SideThreadError::Ended),
            Err(_) => Err(SideThreadError::NoAnswer(limit)),
        }
    }

    /// As [`SideThread::ask`], where a thread waits.
    ///
    /// # Errors
    /// [`SideThreadError`]
    pub fn wait<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SideThreadError> {
        let (tell, answer) = channel();
        let patience = self.patience(limit);
        if !self.offer(move || drop(tell.send(work()))) {
            return Err(SideThreadError::Full);
        }
        answer.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => SideThreadError::NoAnswer(limit),
            RecvTimeoutError::Disconnected => SideThreadError::Ended,
        })
    }

    fn patience(&self, limit: Duration) -> Duration {
        limit.saturating_sub(self.held_up())
    }
}

fn run(inbox: &Receiver<Work>, doing: &Mutex<QueueState>) {
    for work in inbox {
        lock(doing).since = Some(clock::monotonic());
        // Whoever waits for the answer hears that there is none.
        let ended: Result<(), Box<dyn Any + Send>> = catch_unwind(AssertUnwindSafe(work));
        drop(ended);
        let mut doing = lock(doing);
        doing.since = None;
        doing.left -= 1;
    }
}

fn lock(doing: &Mutex<QueueState>) -> std::sync::MutexGuard<'_, QueueState> {
    doing.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Waits for a state that the thread reaches by itself; an answer comes a moment before the thread is free again.
    async fn until(what: &str, holds: impl Fn() -> bool) {
        let end = clock::monotonic() + LONG;
        while !holds() {
            assert!(clock::monotonic() < end, "never: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn who_is_held_up_makes_nobody_wait_twice_and_does_everything_in_order_afterwards() {
        let aside = SideThread::start("test", 3).unwrap();
        let (release, held) = channel::<()>();
        let done = Arc::<Mutex<Vec<u32>>>::default();
        let note = |number: u32| {
            let done = done.clone();
            move || done.lock().unwrap().push(number)
        };
        let first = note(1);
        let stuck = move || {
            held.recv().unwrap_or_default();
            first();
        };
        let limit = Duration::from_millis(100);
        assert_eq!(aside.ask(limit, stuck).await, Err(SideThreadError::NoAnswer(limit)));
        until("it is held up for the whole limit", || aside.held_up() >= limit).await;
        assert!(!aside.is_idle());
        assert_eq!(aside.patience(limit), Duration::ZERO, "nobody waits twice");
        for number in 2..=4 {
            assert_eq!(aside.ask(limit, note(number)).await, Err(SideThreadError::NoAnswer(limit)));
        }
        assert_eq!(aside.wait(limit, note(5)), Err(SideThreadError::Full));
        assert!(!aside.offer(note(6)));
        release.send(()).unwrap();
        until("it goes on", || aside.is_idle()).await;
        assert_eq!(*done.lock().unwrap(), [1, 2, 3, 4]);
        assert_eq!(aside.ask(LONG, || 7).await, Ok(7));
        until("it is free again", || aside.is_idle() && aside.held_up() == Duration::ZERO).await;
    }

    #[tokio::test]
    async fn work_that_panics_ends_alone() {
        let aside = SideThread::start("test", 3).unwrap();
        assert_eq!(aside.ask(LONG, || assert!(std::hint::black_box(false), "on purpose")).await, Err(SideThreadError::Ended));
        assert_eq!(aside.wait(LONG, || 8), Ok(8));
    }
}
