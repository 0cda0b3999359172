//! What a child prints: passed on to the log line by line, the last lines kept for the day it dies.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use grail_process::Output;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::task::JoinSet;

/// Longest line that is passed on; the rest of it counts as further lines.
const LINE_LIMIT: u64 = 4096;
/// Lines that are kept …
const KEPT_LINES: usize = 20;
/// … and characters of each.
const KEPT_CHARACTERS: usize = 500;
/// Wait for the pipes to run dry after a death. Something else may hold them open.
const DRY_LIMIT: Duration = Duration::from_millis(300);

/// The readers of a child's output, and its last lines.
#[derive(Debug)]
pub(super) struct Drains {
    kept: Arc<Mutex<VecDeque<String>>>,
    readers: JoinSet<()>,
}

impl Drains {
    /// Reads both pipes for as long as they are open: a full pipe would block the child.
    pub fn start(name: &str, output: Option<Output>) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let mut readers = JoinSet::new();
        if let Some(Output { stdout, stderr }) = output {
            readers.spawn(drain(name.to_owned(), stdout, kept.clone()));
            readers.spawn(drain(name.to_owned(), stderr, kept.clone()));
        }
        Self { kept, readers }
    }

    /// The last lines of a child that is gone, oldest first.
    pub async fn last_lines(mut self) -> Vec<String> {
        let dry = async { while self.readers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRY_LIMIT, dry).await;
        // Whoever still holds a pipe open (an orphan on its way out) may go on writing.
        self.readers.detach_all();
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }
}

async fn drain(name: String, pipe: impl AsyncRead + Unpin, kept: Arc<Mutex<VecDeque<String>>>) {
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
            re_emit(&name, text);
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(text.chars().take(KEPT_CHARACTERS).collect());
        }
    }
}

/// Our own children write their level first; any other program's line counts as information.
fn re_emit(name: &str, line: &str) {
    match line.split_once(' ') {
        Some(("ERROR", rest)) => tracing::error!(target: "child", child = %name, "{}", rest.trim_start()),
        Some(("WARN", rest)) => tracing::warn!(target: "child", child = %name, "{}", rest.trim_start()),
        Some(("INFO", rest)) => tracing::info!(target: "child", child = %name, "{}", rest.trim_start()),
        Some(("DEBUG", rest)) => tracing::debug!(target: "child", child = %name, "{}", rest.trim_start()),
        _ => tracing::info!(target: "child", child = %name, "{line}"),
    }
}
