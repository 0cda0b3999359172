//! Where log lines go: to standard error, and while mining also into the state folder, where `incident` finds them.
//!
//! While mining, each place has a thread of its own ([`Lines`]): whoever logs never waits for it.

mod lines;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use grail_process::clock;
use lines::Lines;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::exit::Failure;
use crate::secrets::{Redacting, clean, clean_text};

/// The log in the state folder.
pub const FILE: &str = "supervisor.log";
/// The one before it.
pub const EARLIER: &str = "supervisor.log.1";
/// A file this long is put aside, in the place of the one before.
const FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A terminal that hangs must not keep the process from ending.
const LAST_WORD: Duration = Duration::from_millis(250);

/// The places of this process's log that have a thread.
static PLACES: OnceLock<Vec<Lines>> = OnceLock::new();

/// Lines of level `default` and above go to standard error; `RUST_LOG` overrides the level. For commands that do one thing and end.
pub fn to_stderr(default: &str) {
    // A line that cannot be written would be reported on standard error, and panic there.
    let lines = tracing_subscriber::fmt::layer().log_internal_errors(false);
    let stderr = lines.with_writer(|| Redacting(clear_stderr())).with_ansi(io::stderr().is_terminal() && takes_colours(variable));
    tracing_subscriber::registry().with(stderr).with(level(default)).init();
}

/// Lines of level `default` and above go into `state`, and to standard error unless the live picture has the terminal. Neither is ever waited for. What panics
/// is told there too.
///
/// # Errors
/// When the operating system refuses a thread.
pub fn to_state(state: &Path, live: bool, default: &str) -> io::Result<()> {
    let lines = || tracing_subscriber::fmt::layer().log_internal_errors(false);
    let file = Lines::into("log file", Redacting(LogFile::in_folder(state)))?;
    let stderr = if live { None } else { Some(Lines::into("standard error", Redacting(io::stderr()))?) };
    let mut layers = vec![lines().with_writer(file.clone()).with_ansi(false).boxed()];
    layers.extend(
        stderr
            .clone()
            .map(|stderr| lines().with_writer(stderr).with_ansi(io::stderr().is_terminal() && takes_colours(variable)).boxed()),
    );
    let _ = PLACES.set(stderr.into_iter().chain([file]).collect());
    tracing_subscriber::registry().with(layers).with(level(default)).init();
    // The standard hook writes to standard error, and waits for it.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(())
}

/// Lines that found no room, by the name of the place that took none.
pub fn lost() -> BTreeMap<&'static str, u64> {
    let places = PLACES.get().into_iter().flatten();
    places.map(|place| (place.name(), place.lost())).filter(|(_, lost)| *lost > 0).collect()
}

/// Waits until every line is in its place, at most until `limit` is over. Blocks the thread.
pub fn flush(limit: Duration) {
    let end = clock::monotonic() + limit;
    for place in PLACES.get().into_iter().flatten() {
        place.flush(end.saturating_duration_since(clock::monotonic()));
    }
}

/// Writes a last word to standard error, unless that takes longer than `limit`.
pub fn last_word(text: String, limit: Duration) {
    let (done, written) = std::sync::mpsc::channel::<()>();
    let say = move || {
        let _ = writeln!(io::stderr(), "{text}");
        drop(done);
    };
    if std::thread::Builder::new().name("last word".into()).spawn(say).is_ok() {
        let _ = written.recv_timeout(limit);
    }
}

/// Writes to standard output what a command was asked for. A closed pipe (`| head`) or a full disk is no reason to panic.
pub fn print(text: &str) {
    let _ = io::stdout().write_all(&clean(text.as_bytes()));
}

/// Whether a picture stands on standard error's present line, which whoever writes there has to take away first.
static PICTURE: AtomicBool = AtomicBool::new(false);

/// Tells that a picture stands on standard error's present line, or none any more.
pub fn pictured(stands: bool) {
    PICTURE.store(stands, Ordering::Relaxed);
}

/// Standard error with an empty line to write on.
fn clear_stderr() -> io::Stderr {
    let mut stderr = io::stderr();
    if PICTURE.load(Ordering::Relaxed) {
        let _ = stderr.write_all(b"\r\x1b[2K");
    }
    stderr
}

/// Says something on standard error beside what was asked for, if that takes it.
pub fn say(text: &str) {
    let _ = writeln!(clear_stderr(), "{}", clean_text(text));
}

/// Tells on standard error why a command ended.
pub fn report(failure: &Failure) {
    last_word(clean_text(&format!("grail-supervisor: {failure}")).into_owned(), LAST_WORD);
}

/// Whether a terminal may be given colours (`NO_COLOR`, `TERM`).
fn takes_colours(variable: impl Fn(&str) -> Option<String>) -> bool {
    variable("NO_COLOR").is_none_or(|set| set.is_empty()) && variable("TERM").is_none_or(|term| term != "dumb")
}

/// Whether a terminal may be given a picture that is redrawn in place: it knows how, and the locale is UTF-8.
pub fn takes_pictures(variable: impl Fn(&str) -> Option<String>) -> bool {
    // The first one that is set counts, as in C.
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(&variable).find(|locale| !locale.is_empty());
    let utf8 = locale.is_some_and(|locale| locale.to_ascii_lowercase().replace('-', "").contains("utf8"));
    utf8 && variable("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn level(default: &str) -> EnvFilter {
    filter(std::env::var(EnvFilter::DEFAULT_ENV).ok().as_deref().unwrap_or(default), default)
}

/// What `wanted` asks for, or `default` where that cannot be read; never what passes over the chain's socket, whose calls carry
/// the read credentials.
fn filter(wanted: &str, default: &str) -> EnvFilter {
    let quiet = |level: &str| format!("{level},tungstenite=info,tokio_tungstenite=info");
    EnvFilter::try_new(quiet(wanted)).unwrap_or_else(|_| EnvFilter::new(quiet(default)))
}

/// A file that is put aside when it is long. What it cannot take is lost: a log must not end what it tells about.
struct LogFile {
    folder: PathBuf,
    open: Option<(File, u64)>,
}

impl LogFile {
    fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: None }
    }

    fn file(&mut self) -> io::Result<&mut (File, u64)> {
        let path = self.folder.join(FILE);
        if self.open.as_ref().is_some_and(|(_, length)| *length >= FILE_BYTES) {
            self.open = None;
            std::fs::rename(&path, self.folder.join(EARLIER))?;
        }
        if self.open.is_none() {
            std::fs::create_dir_all(&self.folder)?;
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let length = file.metadata()?.len();
            self.open = Some((file, length));
        }
        self.open.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (file, length) = self.file()?;
        let written = file.write(bytes)?;
        *length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_what_it_says_it_takes() {
        let with = |set: &'static [(&str, &str)]| {
            move |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let colours = |set| takes_colours(with(set));
        assert!(colours(&[]) && colours(&[("NO_COLOR", ""), ("TERM", "xterm")]));
        assert!(!colours(&[("NO_COLOR", "1")]) && !colours(&[("TERM", "dumb")]));
        let pictures = |set| takes_pictures(with(set));
        assert!(pictures(&[("TERM", "xterm"), ("LANG", "C.UTF-8")]) && pictures(&[("TERM", "screen"), ("LC_ALL", "de_DE.utf8")]));
        assert!(!pictures(&[("TERM", "dumb"), ("LANG", "C.UTF-8")]) && !pictures(&[("TERM", "xterm")]));
        assert!(!pictures(&[("TERM", "xterm"), ("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
    }

    #[test]
    fn a_long_log_is_put_aside_once_and_goes_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        LogFile::in_folder(&state).write_all(b"first\n").unwrap();
        let line = vec![b'x'; 1 << 20];
        let mut log = LogFile::in_folder(&state);
        for _ in 0..40 {
            log.write_all(&line).unwrap();
        }
        let length = |name| std::fs::metadata(state.join(name)).unwrap().len();
        assert_eq!(length(EARLIER), FILE_BYTES);
        assert_eq!(length(FILE), (40 << 20) - 2 * FILE_BYTES, "the oldest of three is gone");
    }

    #[test]
    fn no_level_shows_what_passes_over_the_chains_socket() {
        for wanted in ["trace", "tungstenite=trace", "info,tokio_tungstenite=trace", "not a level"] {
            let shown = filter(wanted, "info").to_string();
            assert!(shown.contains("tungstenite=info") && !shown.contains("tungstenite=trace"), "{wanted}: {shown}");
        }
    }

    #[test]
    fn a_folder_that_takes_nothing_is_an_error_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("state"), "a file").unwrap();
        assert!(LogFile::in_folder(&folder.path().join("state")).write_all(b"line\n").is_err());
    }
}
