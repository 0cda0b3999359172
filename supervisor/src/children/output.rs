//! What a child prints: passed on to the log line by line with its name, its GPUs and its level, floods held back and counted,
//! the last lines kept for the day it dies.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use grail_process::{Output, clock};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::task::JoinSet;

use super::throttle::{Admission, Throttle};

/// Longest line that is passed on; the rest of it counts as further lines.
const LINE_LIMIT: u64 = 4096;
/// Lines that are kept …
const KEPT_LINES: usize = 40;
/// … and characters of each.
const KEPT_CHARACTERS: usize = 500;
/// Wait for the pipes to run dry after a death. Something else may hold them open.
const DRY_LIMIT: Duration = Duration::from_millis(300);

/// The readers of a child's output, and its last lines.
#[derive(Debug)]
pub(super) struct Drains {
    child: Arc<Printing>,
    readers: JoinSet<()>,
}

/// A child that prints.
#[derive(Debug)]
struct Printing {
    name: String,
    /// As `CUDA_VISIBLE_DEVICES` names them, with commas; `None` for the CPU.
    gpus: Option<String>,
    began: Instant,
    kept: Mutex<VecDeque<String>>,
    throttle: Mutex<Throttle>,
}

impl Drains {
    /// Reads both pipes for as long as they are open: a full pipe would block the child.
    pub fn start(name: &str, gpus: &[String], output: Option<Output>) -> Self {
        let (kept, throttle) = (Mutex::default(), Mutex::default());
        let child = Printing {
            name: name.to_owned(),
            gpus: (!gpus.is_empty()).then(|| gpus.join(",")),
            began: clock::monotonic(),
            kept,
            throttle,
        };
        let child = Arc::new(child);
        let mut readers = JoinSet::new();
        if let Some(Output { stdout, stderr }) = output {
            readers.spawn(drain(child.clone(), stdout));
            readers.spawn(drain(child.clone(), stderr));
        }
        Self { child, readers }
    }

    /// The last lines of a child that is gone, oldest first.
    pub async fn last_lines(mut self) -> Vec<String> {
        let dry = async { while self.readers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRY_LIMIT, dry).await;
        // Whoever still holds a pipe open (an orphan on its way out) may go on writing.
        self.readers.detach_all();
        let held = locked(&self.child.throttle).held();
        if held > 0 {
            self.child.tell_held(held);
        }
        locked(&self.child.kept).iter().cloned().collect()
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn drain(child: Arc<Printing>, pipe: impl AsyncRead + Unpin) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        // Bounded: a child that never ends its line must not fill our memory.
        match (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if !text.is_empty() {
            child.printed(text);
        }
    }
}

impl Printing {
    fn printed(&self, line: &str) {
        let mut kept = locked(&self.kept);
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line.chars().take(KEPT_CHARACTERS).collect());
        drop(kept);
        let admission = locked(&self.throttle).judge(self.began.elapsed(), line);
        match admission {
            Admission::Held => return,
            Admission::Passed(0) => {}
            Admission::Passed(held) => self.tell_held(held),
        }
        self.re_emit(line);
    }

    fn tell_held(&self, held: u64) {
        tracing::warn!(target: "child", child = %self.name, held, "Lines of this child were held back; they were like others.");
    }

    /// Our own children write their level first; any other program's line counts as information.
    fn re_emit(&self, line: &str) {
        let (child, gpu) = (&self.name, self.gpus.as_deref());
        match line.split_once(' ') {
            Some(("ERROR", rest)) => tracing::error!(target: "child", %child, gpu, "{}", rest.trim_start()),
            Some(("WARN", rest)) => tracing::warn!(target: "child", %child, gpu, "{}", rest.trim_start()),
            Some(("INFO", rest)) => tracing::info!(target: "child", %child, gpu, "{}", rest.trim_start()),
            Some(("DEBUG", rest)) => tracing::debug!(target: "child", %child, gpu, "{}", rest.trim_start()),
            _ => tracing::info!(target: "child", %child, gpu, "{line}"),
        }
    }
}
