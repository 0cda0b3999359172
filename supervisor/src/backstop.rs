//! The end of a stop that does not come to its end: whatever holds the supervisor up (threads that a disk does not let go, a mistake
//! of this program), the budget and what it may take beyond it are the last word.

use std::io;
use std::time::Duration;

use grail_process::Spawner;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::log;
use crate::shutdown::{HURRIED, OWN_END};

/// Beyond everything that a stop may take. Nothing is left to end in order then.
const SLACK: Duration = Duration::from_secs(1);
/// As where the operating system is at fault (see the README).
const INTERNAL: i32 = 70;

/// Starts a thread with a runtime of its own, which waits for the signals that stop the supervisor and ends the process with its
/// children when the `budget` is over and it is still there.
pub fn keep(budget: Duration, spawner: Spawner) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("backstop".into()).spawn(move || {
        runtime.block_on(wait(budget));
        let left = spawner.end_all();
        let last = format!(
            "grail-supervisor: the stop did not come to its end within its budget; it ends now, and what was left of its children was \
             killed ({left:?})"
        );
        log::last_word(last, Duration::from_millis(250));
        std::process::exit(INTERNAL);
    })?;
    Ok(())
}

async fn wait(budget: Duration) {
    // Without signals there is nothing to be in time for.
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    let beyond = Duration::from_secs_f64(OWN_END) + SLACK;
    let mut end: Option<Instant> = None;
    loop {
        let over = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let now = Instant::now();
        end = Some(end.map_or(now + budget + beyond, |end| end.min(now + HURRIED + beyond)));
    }
}
