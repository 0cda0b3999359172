//! The thread that looks at GPUs, and what is known now. A sensor that hangs in the driver hangs this thread and nothing else:
//! what it said last grows old, and old is unknown.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use grail_process::clock;

use super::{GpuReading, Judge, Sensor, SensorError};
use crate::board::Board;
use crate::children::ChildEvent;

/// Pause between two looks; XIDs are waited for meanwhile.
const LOOK: Duration = Duration::from_secs(1);
/// A reading that is older tells nothing.
const FRESH: Duration = Duration::from_secs(10);
/// XIDs that are remembered per GPU.
const KEPT_XIDS: usize = 64;

/// What is known about one GPU.
#[derive(Debug, Clone, PartialEq)]
pub enum Look {
    /// It is watched, and nobody has looked since the moment that was asked for.
    Awaited,
    /// Nobody can tell.
    Unknown,
    /// The last look.
    Known(GpuReading),
}

/// What is known about the GPUs. Clone it freely; the watch ends with the last clone.
#[derive(Debug, Clone, Default)]
pub struct Gpus(Arc<Mutex<BTreeMap<String, Known>>>);

#[derive(Debug, Default)]
struct Known {
    reading: Option<(Instant, GpuReading)>,
    gone: Option<Instant>,
    xids: VecDeque<(Instant, u32)>,
    judge: Judge,
    /// Why nothing is known, as it was said last.
    unknown: Option<String>,
    /// No look will ever come.
    unwatched: bool,
}

type Shared = Mutex<BTreeMap<String, Known>>;

impl Gpus {
    /// Watches `gpus` through whatever `open` gives. A host whose children have no GPU needs none of it.
    pub fn watch<S: Sensor + 'static>(
        gpus: Vec<String>,
        board: Board,
        open: impl FnOnce() -> Result<S, SensorError> + Send + 'static,
    ) -> std::io::Result<Self> {
        let known = Self::default();
        if gpus.is_empty() {
            return Ok(known);
        }
        known.locked().extend(gpus.iter().map(|gpu| (gpu.clone(), Known::default())));
        let shared = Arc::downgrade(&known.0);
        std::thread::Builder::new().name("gpus".into()).spawn(move || match open() {
            Ok(sensor) => run(sensor, &gpus, &shared, &board),
            Err(error) => {
                if let Some(known) = shared.upgrade() {
                    Self(known).locked().values_mut().for_each(|known| known.unwatched = true);
                }
                board.event(ChildEvent::GpusUnknown { reason: error.to_string() });
            }
        })?;
        Ok(known)
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, gpu: &str, look: impl FnOnce(&Known) -> T) -> Option<T> {
        self.locked().get(gpu).map(look)
    }

    /// What is known about a GPU, by a look that was made after `since`: an older one knows nothing of who has gone since then.
    pub fn look(&self, gpu: &str, since: Option<Instant>) -> Look {
        let newer = |at: Instant| since.is_none_or(|since| at >= since);
        let judge = |known: &Known| match &known.reading {
            Some((at, reading)) if newer(*at) && at.elapsed() <= FRESH => Look::Known(reading.clone()),
            _ if known.unwatched || known.unknown.is_some() => Look::Unknown,
            _ => Look::Awaited,
        };
        self.with(gpu, judge).unwrap_or(Look::Unknown)
    }

    /// XIDs that the driver reported for a GPU since an instant.
    pub fn xids_since(&self, gpu: &str, since: Instant) -> Vec<u32> {
        let recent = |known: &Known| known.xids.iter().filter(|(at, _)| *at >= since).map(|(_, xid)| *xid).collect();
        self.with(gpu, recent).unwrap_or_default()
    }

    /// Whether a GPU that once answered does not any more.
    pub fn is_gone(&self, gpu: &str) -> bool {
        self.with(gpu, |known| known.gone.is_some_and(|at| at.elapsed() <= FRESH)).unwrap_or(false)
    }
}

fn run(mut sensor: impl Sensor, gpus: &[String], shared: &Weak<Shared>, board: &Board) {
    for (gpu, reason) in sensor.without_xids() {
        let note = format!("the driver does not tell its XIDs ({reason}): deaths of its child are classed without them");
        board.event(ChildEvent::GpuNote { gpu, note, serious: false });
    }
    loop {
        for gpu in gpus {
            let outcome = sensor.read(gpu);
            let Some(known) = shared.upgrade() else { return };
            if let Ok(reading) = &outcome {
                let shown = (gpu.clone(), reading.clone());
                board.update(|status| _ = status.gpus.insert(shown.0, shown.1));
            }
            let events = known.lock().unwrap_or_else(PoisonError::into_inner).entry(gpu.clone()).or_default().take(gpu, outcome);
            events.into_iter().for_each(|event| board.event(event));
        }
        match sensor.xids(LOOK) {
            Ok(xids) => {
                let Some(known) = shared.upgrade() else { return };
                for (gpu, xid) in xids {
                    known.lock().unwrap_or_else(PoisonError::into_inner).entry(gpu.clone()).or_default().report(xid);
                    board.event(ChildEvent::GpuNote { gpu, note: format!("the driver reports XID {xid}"), serious: true });
                }
            }
            // Said with the reading that fails as well; without events there is nothing to wait for.
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

impl Known {
    fn take(&mut self, gpu: &str, outcome: Result<GpuReading, SensorError>) -> Vec<ChildEvent> {
        let gpu = gpu.to_owned();
        match outcome {
            Ok(reading) => {
                let back = self.unknown.take().map(|_| ChildEvent::GpuNote {
                    gpu: gpu.clone(),
                    note: "it answers again".into(),
                    serious: false,
                });
                self.gone = None;
                let notes = self.judge.look(&reading);
                self.reading = Some((clock::monotonic(), reading));
                let notes = notes.into_iter().map(|note| ChildEvent::GpuNote {
                    gpu: gpu.clone(),
                    note: note.text,
                    serious: note.serious,
                });
                back.into_iter().chain(notes).collect()
            }
            Err(error) => {
                let reason = error.to_string();
                if matches!(error, SensorError::Gone { .. }) {
                    self.gone = Some(clock::monotonic());
                }
                // The same trouble once a second is no news.
                if self.unknown.replace(reason.clone()).is_some() {
                    return Vec::new();
                }
                vec![match error {
                    SensorError::Gone { .. } => ChildEvent::GpuNote { gpu, note: reason, serious: true },
                    _ => ChildEvent::GpusUnknown { reason },
                }]
            }
        }
    }

    fn report(&mut self, xid: u32) {
        if self.xids.len() == KEPT_XIDS {
            self.xids.pop_front();
        }
        self.xids.push_back((clock::monotonic(), xid));
    }
}
