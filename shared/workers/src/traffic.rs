//! Requests under way to the generation server, as its client sees them: what forward progress of generation is judged by.

use std::sync::Arc;

use tokio::sync::watch;

/// Requests under way and answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// Sent and not answered yet.
    pub in_flight: u32,
    /// Completions that came back, since the beginning. An error is no movement: a server that refuses everything stands still.
    pub answered: u64,
    /// Most tokens that a request may take.
    pub tokens: u64,
}

/// Counts requests. Clone it freely.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<watch::Sender<Flow>>);

impl Traffic {
    /// A request for at most `tokens` tokens is sent. It counts as under way until the value is dropped.
    pub fn request(&self, tokens: u64) -> InFlight {
        self.0.send_modify(|flow| {
            flow.in_flight += 1;
            flow.tokens = tokens;
        });
        InFlight(self.clone())
    }

    pub(super) fn watch(&self) -> watch::Receiver<Flow> {
        self.0.subscribe()
    }
}

/// One request under way.
#[derive(Debug)]
pub struct InFlight(Traffic);

impl InFlight {
    /// A completion came back.
    pub fn answered(self) {
        self.0.0.send_modify(|flow| flow.answered += 1);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.send_modify(|flow| flow.in_flight -= 1);
    }
}
