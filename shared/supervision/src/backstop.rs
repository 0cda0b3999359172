//! The end of a stop that does not come to its end: whatever holds the supervisor up (threads that a disk does not let go, a mistake
//! of this program), the budget and what it may take beyond it are the last word.

use std::io;
use std::time::Duration;

use grail_process::Spawner;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::log;
use crate::shutdown::{HURRIED, OWN_END};

/// Beyond everything that a stop may take. Nothing is left to end in order then.
const SLACK: Duration = Duration::from_secs(1);
/// As where the operating system is at fault (see the README).
const INTERNAL: i32 = 70;

/// The thread that ends the process where nothing else does. It sees the signals that stop the supervisor by itself.
#[derive(Debug)]
pub struct Backstop(UnboundedSender<()>);

impl Backstop {
    /// Starts the thread, with a runtime of its own. When the `budget` of a stop is over and the process still there, it ends with its
    /// children.
    pub fn keep(budget: Duration, spawner: Spawner) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (arm, armed) = unbounded_channel();
        std::thread::Builder::new().name("backstop".into()).spawn(move || {
            runtime.block_on(wait(budget, armed));
            let left = spawner.end_all();
            let last = format!(
                "grail-supervisor: the stop did not come to its end within its budget; it ends now, and what was left of its children \
                 was killed ({left:?})"
            );
            log::last_word(last, Duration::from_millis(250));
            std::process::exit(INTERNAL);
        })?;
        Ok(Self(arm))
    }

    /// A stop has begun, for whatever reason.
    pub fn arm(&self) {
        // The thread lives as long as the process.
        let _ = self.0.send(());
    }
}

/// Returns when a stop should be over. A second signal leaves less time, whatever armed it.
async fn wait(budget: Duration, mut armed: UnboundedReceiver<()>) {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    // Without signals there is still the other way.
    let (mut terminate, mut interrupt) = (signals.0.ok(), signals.1.ok());
    let beyond = Duration::from_secs_f64(OWN_END) + SLACK;
    let (mut end, mut signals): (Option<Instant>, u32) = (None, 0);
    loop {
        let over = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return,
            Some(()) = armed.recv() => {}
            () = next(&mut terminate) => signals += 1,
            () = next(&mut interrupt) => signals += 1,
        }
        let now = Instant::now();
        let planned = end.unwrap_or(now + budget + beyond);
        end = Some(if signals > 1 { planned.min(now + HURRIED + beyond) } else { planned });
    }
}

async fn next(signal: &mut Option<Signal>) {
    let came = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if came.is_none() {
        std::future::pending().await
    }
}
