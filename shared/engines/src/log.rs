//! What SGLang and vLLM print, line by line: which of their processes speaks, how serious it is, and what it says
//! (generation-servers 1.8 and 2.4).
//!
//! ```text
//!  SGLang   [2026-11-21 09:36:22 TP0] Load weight begin. avail mem=19.03 GB
//!  vLLM     (EngineCore pid=81) INFO 11-21 09:36:22 [core.py:101] Initializing a V1 LLM engine
//!  uvicorn  INFO:     127.0.0.1:55888 - "GET /model_info HTTP/1.1" 200 OK     (behind either's prefix, or bare)
//!  embedded  INFO grail_gen_launcher::embedded: The engine listens.
//! ```
//!
//! SGLang writes no levels: there its words decide, and a traceback is an error down to the line that names the exception.

/// How serious a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Routine: one line per request or per batch.
    Debug,
    /// Worth knowing.
    Info,
    /// Something is not as it should be.
    Warning,
    /// Something failed.
    Error,
}

/// One line, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Which of the server's processes or ranks speaks, where it says so: `TP0`, `EngineCore`.
    pub process: &'a str,
    /// How serious it is.
    pub level: Level,
    /// What it says, without time and level.
    pub text: &'a str,
}

/// Lines that come with every request or batch, and those of model files that need kernels nobody installed.
const ROUTINE: [&str; 7] = [
    "HTTP/1.1\" 200",
    "\"GET /health",
    "Prefill batch",
    "Decode batch",
    "Avg prompt throughput",
    "Ignore import error",
    "shards:",
];
/// Words with which a server announces its end.
const FATAL: [&str; 9] = [
    "hit an exception",
    "SIGQUIT",
    "kill_process_tree called",
    "crashed with exit code",
    "CUDA error",
    "out of memory",
    "EngineDeadError",
    "died unexpectedly",
    "unrecognized arguments",
];
const WARNING: [&str; 3] = ["Warning:", "WARNING", "deprecated"];

/// Reads the lines of one pipe in their order.
#[derive(Debug, Default)]
pub struct LogReader {
    in_traceback: bool,
}

impl LogReader {
    /// Takes the next line apart.
    pub fn read<'a>(&mut self, line: &'a str) -> Line<'a> {
        let (process, rest) = prefix(line);
        let (stated, text) = stated(rest);
        let text = text.trim_end();
        let level = stated.unwrap_or_else(|| by_words(text));
        let begins = text.contains("Traceback (most recent call last)");
        // The exception's own line is the first one that is not indented; a blank line may stand within.
        let within = std::mem::replace(&mut self.in_traceback, begins);
        if within && !begins {
            self.in_traceback = text.is_empty() || text.starts_with(char::is_whitespace);
        }
        let level = if begins || within { Level::Error } else { level };
        Line { process, level: if routine(text) && level == Level::Info { Level::Debug } else { level }, text }
    }
}

/// Which process, and the rest of the line.
fn prefix(line: &str) -> (&str, &str) {
    if let Some((inside, rest)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        // Date, time, and the rank where there is more than one.
        let mut words = inside.splitn(3, ' ');
        if let (Some(date), Some(_)) = (words.next(), words.next())
            && date.len() == 10
            && date.starts_with(|letter: char| letter.is_ascii_digit())
        {
            return (words.next().unwrap_or_default(), rest.strip_prefix(' ').unwrap_or(rest));
        }
    }
    if let Some((name, rest)) = line.strip_prefix('(').and_then(|rest| rest.split_once(" pid="))
        && let Some((_, rest)) = rest.split_once(')')
    {
        return (name, rest.strip_prefix(' ').unwrap_or(rest));
    }
    ("", line)
}

/// The level that the line states, and what comes behind level and time.
fn stated(text: &str) -> (Option<Level>, &str) {
    let levels = [
        ("DEBUG", Level::Debug),
        ("INFO", Level::Info),
        ("WARNING", Level::Warning),
        ("WARN", Level::Warning),
        ("ERROR", Level::Error),
        ("CRITICAL", Level::Error),
    ];
    for (name, level) in levels {
        let Some(rest) = text.trim_start().strip_prefix(name) else { continue };
        if let Some(rest) = rest.strip_prefix(':') {
            return (Some(level), rest.trim_start());
        }
        if rest.starts_with(' ') && rest.split_whitespace().next().is_some_and(|module| module.ends_with(':')) {
            return (Some(level), rest.trim_start());
        }
        let mut words = rest.trim_start().splitn(3, ' ');
        if let (Some(day), Some(time), Some(rest)) = (words.next(), words.next(), words.next())
            && day.len() == 5
            && time.len() == 8
        {
            return (Some(level), rest);
        }
    }
    (None, text)
}

fn by_words(text: &str) -> Level {
    let first = text.split_whitespace().next().unwrap_or_default();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&FATAL) || first.ends_with("Error:") || first.ends_with("Exception:") {
        Level::Error
    } else if has(&WARNING) {
        Level::Warning
    } else {
        Level::Info
    }
}

fn routine(text: &str) -> bool {
    ROUTINE.iter().any(|word| text.contains(word))
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
