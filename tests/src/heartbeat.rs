//! For how long the machine stood still: a window of twelve seconds does not outlast a pause of five, and that is nobody's fault.

use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// Between two beats.
const BEAT: Duration = Duration::from_millis(50);
/// A pause that is remembered.
const PAUSE: Duration = Duration::from_millis(500);

/// Pauses, each with its end.
static PAUSES: Mutex<Vec<(Instant, Duration)>> = Mutex::new(Vec::new());

/// Begins to look, once in a process.
pub fn begin() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        std::thread::spawn(|| {
            let mut before = Instant::now();
            loop {
                std::thread::sleep(BEAT);
                let now = Instant::now();
                if now - before >= PAUSE {
                    PAUSES.lock().unwrap_or_else(PoisonError::into_inner).push((now, now - before));
                }
                before = now;
            }
        });
    });
}

/// All pauses of half a second or more that ended after `since`, together.
pub fn stood_still(since: Instant) -> Duration {
    let pauses = PAUSES.lock().unwrap_or_else(PoisonError::into_inner);
    pauses.iter().filter(|(end, _)| *end > since).map(|(_, length)| *length).sum()
}
