//! How far something long is: told by what does it, read by whoever shows it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unit {
    /// Nothing: how long it takes cannot be told.
    #[default]
    None,
    /// Bytes.
    Bytes,
    /// Things of a kind, by their word in the plural.
    Things(&'static str),
}

/// How far a step is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// How many steps were begun, this one included: two of the same name are told apart by it.
    pub number: u64,
    /// What is being done.
    pub doing: String,
    /// What is counted.
    pub unit: Unit,
    /// So many are done …
    pub done: u64,
    /// … of so many.
    pub of: u64,
}

/// Shared by what counts and what shows it. Without anybody who looks, it costs nothing worth a thought.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Mutex<Step>>);

impl Meter {
    /// Another step begins.
    pub fn begin(&self, doing: impl Into<String>, unit: Unit, of: u64) {
        let mut step = self.step();
        *step = Step { number: step.number + 1, doing: doing.into(), unit, done: 0, of };
    }

    /// So many more of the present step are done.
    pub fn add(&self, done: u64) {
        let mut step = self.step();
        step.done = step.done.saturating_add(done);
    }

    /// More is to be done in the present step than was known when it began.
    pub fn expect(&self, more: u64) {
        let mut step = self.step();
        step.of = step.of.saturating_add(more);
    }

    /// How far it is.
    pub fn read(&self) -> Step {
        self.step().clone()
    }

    fn step(&self) -> MutexGuard<'_, Step> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
