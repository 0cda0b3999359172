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
/// What the first line of a panic has in it; its message and the first frames follow.
pub const PANIC: &str = " panicked at ";
/// Lines of a panic that are kept, whatever comes after them: with RUST_BACKTRACE that may be a hundred frames …
const PANIC_LINES: usize = 12;
/// … and panics: the first is the cause of what follows while it unwinds.
const PANICS: usize = 2;
/// Last lines that are kept …
const KEPT_LINES: usize = 40;
/// … and characters of each.
const KEPT_CHARACTERS: usize = 500;
/// Wait for the pipes to run dry after a death. Something else may hold them open.
const DRY_LIMIT: Duration = Duration::from_millis(300);

/// The readers of a child's output, and its last lines.
#[derive(Debug)]
pub struct Drains {
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
    kept: Mutex<Kept>,
    throttle: Mutex<Throttle>,
}

/// The lines that are worth the most on the day it dies.
#[derive(Debug, Default)]
struct Kept {
    /// Of how many lines there were so far, by number: the beginnings of its panics …
    panics: Vec<(u64, String)>,
    /// … and the last ones.
    last: VecDeque<(u64, String)>,
    count: u64,
    heads: usize,
}

impl Kept {
    /// Takes a line; `left` lines of its pipe still belong to a panic's beginning.
    fn take(&mut self, line: &str, left: &mut usize) {
        let line: String = line.chars().take(KEPT_CHARACTERS).collect();
        if line.contains(PANIC) && self.heads < PANICS {
            self.heads += 1;
            *left = PANIC_LINES;
        }
        if *left > 0 {
            *left -= 1;
            self.panics.push((self.count, line.clone()));
        }
        if self.last.len() == KEPT_LINES {
            self.last.pop_front();
        }
        self.last.push_back((self.count, line));
        self.count += 1;
    }

    /// All of them in order, each once.
    fn lines(&self) -> Vec<String> {
        let from = self.last.front().map_or(0, |(number, _)| *number);
        let pinned = self.panics.iter().filter(|(number, _)| *number < from);
        pinned.chain(&self.last).map(|(_, line)| line.clone()).collect()
    }
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
        locked(&self.child.kept).lines()
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn drain(child: Arc<Printing>, pipe: impl AsyncRead + Unpin) {
    let mut reader = BufReader::new(pipe);
    let (mut line, mut of_panic) = (Vec::new(), 0);
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
            child.printed(text, &mut of_panic);
        }
    }
}

impl Printing {
    fn printed(&self, line: &str, of_panic: &mut usize) {
        locked(&self.kept).take(line, of_panic);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panics_message_and_first_frames_outlive_a_hundred_others() {
        let (mut kept, mut left, mut other) = (Kept::default(), 0, 0);
        kept.take("INFO before", &mut left);
        kept.take("thread 'main' panicked at src/prove.rs:7:5:", &mut left);
        kept.take("the cache holds a NaN", &mut left);
        kept.take("a line of the other pipe", &mut other);
        kept.take("stack backtrace:", &mut left);
        for frame in 0..100 {
            kept.take(&format!("{frame:4}: core::frame"), &mut left);
        }
        let lines = kept.lines();
        let expected =
            ["thread 'main' panicked at src/prove.rs:7:5:", "the cache holds a NaN", "stack backtrace:", "   0: core::frame"];
        assert_eq!(lines[..4], expected);
        assert_eq!((lines[11].as_str(), lines[12].as_str()), ("   8: core::frame", "  60: core::frame"));
        assert_eq!((lines.len(), lines.last().unwrap().as_str()), (PANIC_LINES + KEPT_LINES, "  99: core::frame"));
    }

    #[test]
    fn lines_without_a_panic_are_the_last_ones_and_a_panic_among_them_is_there_once() {
        let (mut kept, mut left) = (Kept::default(), 0);
        for line in 0..50 {
            kept.take(&format!("line {line}"), &mut left);
        }
        kept.take("thread 'a' panicked at b", &mut left);
        let lines = kept.lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[39].as_str()), (40, "line 11", "thread 'a' panicked at b"));
    }
}
