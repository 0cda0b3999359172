//! What the server prints, passed on line by line with its level: a pipe that nobody reads would stop it. Lines that come with
//! every request or batch are of level debug, and so neither in the log nor among the last words of a death.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use grail_engines::{Level, Line, LogReader};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// A longer line is cut here; the rest of it is dropped.
const MAX_LINE_BYTES: usize = 8 << 10;
/// Lines kept for the message about a server that did not start.
const KEPT_LINES: usize = 5;

/// The last lines a server printed.
#[derive(Debug, Clone, Default)]
pub struct LastLines(Arc<Mutex<(VecDeque<String>, u64)>>);

impl LastLines {
    fn push(&self, line: String) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (lines, count) = &mut *kept;
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
        *count += 1;
    }

    /// How many there were, those not kept any more included.
    pub fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// The lines in one text.
    pub fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
    }
}

/// Reads until the pipe ends and logs each line.
pub async fn drain(pipe: impl AsyncRead + Unpin, kept: LastLines) {
    let mut reader = BufReader::new(pipe);
    let mut log = LogReader::default();
    let mut line = Vec::new();
    loop {
        let (used, complete) = match reader.fill_buf().await {
            Ok([]) | Err(_) => break,
            Ok(bytes) => {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                let part = &bytes[..end.unwrap_or(bytes.len())];
                line.extend_from_slice(&part[..part.len().min(MAX_LINE_BYTES - line.len())]);
                (end.map_or(bytes.len(), |end| end + 1), end.is_some())
            }
        };
        reader.consume(used);
        if complete {
            emit(&mut line, &mut log, &kept);
        }
    }
    if !line.is_empty() {
        emit(&mut line, &mut log, &kept);
    }
}

fn emit(line: &mut Vec<u8>, log: &mut LogReader, kept: &LastLines) {
    let text = String::from_utf8_lossy(line).trim_end().to_owned();
    line.clear();
    let Line { process, level, text } = log.read(&text);
    if text.is_empty() {
        return;
    }
    if process.is_empty() {
        match level {
            Level::Debug => return tracing::debug!(target: "server", "{text}"),
            Level::Info => tracing::info!(target: "server", "{text}"),
            Level::Warning => tracing::warn!(target: "server", "{text}"),
            Level::Error => tracing::error!(target: "server", "{text}"),
        }
    } else {
        match level {
            Level::Debug => return tracing::debug!(target: "server", process, "{text}"),
            Level::Info => tracing::info!(target: "server", process, "{text}"),
            Level::Warning => tracing::warn!(target: "server", process, "{text}"),
            Level::Error => tracing::error!(target: "server", process, "{text}"),
        }
    }
    kept.push(text.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_lines_are_cut_and_the_last_ones_kept() {
        let text = format!("one\ntwo\n{}\nfour\nfive\nsix", "x".repeat(3 * MAX_LINE_BYTES));
        let kept = LastLines::default();
        drain(text.as_bytes(), kept.clone()).await;
        assert_eq!(kept.text(), format!("two | {} | four | five | six", "x".repeat(MAX_LINE_BYTES)));
    }
}
