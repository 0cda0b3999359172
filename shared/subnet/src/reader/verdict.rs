//! What the end of a reader says about the checkpoint, and what becomes of the question it ended at (pure).

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

use super::Bounds;

/// Exit code of a Rust program that panicked.
const PANICKED: i32 = 101;
/// Deaths from outside after which a question gets no answer. Questions are small and the host's troubles pass.
const MOST_DEATHS: u32 = 6;
/// Letters of a reader's own words that are repeated.
const LONGEST: usize = 300;

/// Why a reader ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Of what it was asked: it left its bounds.
    Limit(String),
    /// Of something else: it was killed, or this host failed.
    Outside(String),
}

impl End {
    /// From how it ended and its last words.
    pub fn of(status: ExitStatus, said: &str, bounds: &Bounds) -> Self {
        let signal = status.signal().and_then(|number| Signal::try_from(number).ok());
        match (signal, status.code()) {
            (Some(Signal::SIGXCPU), _) => Self::Limit(format!(
                "took more than {} s of computing time for one answer or {} s to load",
                bounds.answer.as_secs(),
                bounds.load.as_secs()
            )),
            (Some(Signal::SIGABRT | Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGILL | Signal::SIGFPE | Signal::SIGSYS), _)
            | (_, Some(PANICKED)) => Self::Limit(in_words(status, said, bounds)),
            _ => {
                Self::Outside(format!("ended ({status}{})", last_line(said).map(|line| format!(": {line}")).unwrap_or_default()))
            }
        }
    }
}

fn in_words(status: ExitStatus, said: &str, bounds: &Bounds) -> String {
    if said.contains("has overflowed its stack") {
        return format!("needed more than {} KiB of stack", bounds.limits.stack >> 10);
    }
    if let Some(line) = said.lines().find(|line| line.starts_with("memory allocation of ")) {
        return format!("needed more than {} MiB of memory ({})", bounds.limits.memory >> 20, short(line));
    }
    match last_line(said) {
        Some(line) => format!("ended ({status}): {line}"),
        None => format!("ended ({status})"),
    }
}

/// The last line that says something: what a panic prints about backtraces does not.
fn last_line(said: &str) -> Option<String> {
    let told = said.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with("note: "));
    told.map(short)
}

fn short(line: &str) -> String {
    line.chars().take(LONGEST).collect()
}

/// What becomes of the question that was being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReaderExit {
    /// It is asked once more, of a new reader, before all others.
    Again,
    /// It killed a reader that had done nothing else: it is to blame.
    Guilty,
    /// It has waited through enough deaths that it is not to blame for.
    GivenUp,
}

impl ReaderExit {
    /// `answered`: answers of that reader before; `deaths`: those from outside that the question has seen, this one included.
    pub fn of(end: &End, answered: u64, deaths: u32) -> Self {
        match end {
            End::Limit(_) if answered == 0 => Self::Guilty,
            End::Outside(_) if deaths >= MOST_DEATHS => Self::GivenUp,
            _ => Self::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_checkpoint_can_bring_about_is_its_fault() {
        let bounds = Bounds::default();
        let of = |raw: i32, said: &str| End::of(ExitStatus::from_raw(raw), said, &bounds);
        let overflow = "\nthread 'main' (7) has overflowed its stack\nfatal runtime error: stack overflow, aborting\n";
        assert_eq!(of(Signal::SIGABRT as i32, overflow), End::Limit("needed more than 8192 KiB of stack".into()));
        let memory = "memory allocation of 17179869184 bytes failed\n";
        assert_eq!(
            of(Signal::SIGABRT as i32, memory),
            End::Limit("needed more than 2048 MiB of memory (memory allocation of 17179869184 bytes failed)".into())
        );
        let panicked = "thread 'main' panicked at x.rs:1:1:\nOnig: Regex search error: retry-limit-in-match over\nnote: run with";
        let End::Limit(why) = of(101 << 8, panicked) else { panic!("a panic is the checkpoint's fault") };
        assert!(why.ends_with("retry-limit-in-match over"), "{why}");
        assert!(matches!(of(Signal::SIGXCPU as i32, ""), End::Limit(why) if why.contains("5 s of computing time")));
        for raw in [Signal::SIGKILL as i32, Signal::SIGTERM as i32, 1 << 8, 0] {
            assert!(matches!(of(raw, ""), End::Outside(_)), "{raw}");
        }
    }

    #[test]
    fn a_question_is_to_blame_only_for_a_reader_that_answered_nothing_else() {
        let (limit, outside) = (End::Limit(String::new()), End::Outside(String::new()));
        assert_eq!(ReaderExit::of(&limit, 3, 0), ReaderExit::Again);
        assert_eq!(ReaderExit::of(&limit, 0, 0), ReaderExit::Guilty);
        assert_eq!(ReaderExit::of(&outside, 0, 1), ReaderExit::Again);
        assert_eq!(ReaderExit::of(&outside, 0, MOST_DEATHS), ReaderExit::GivenUp);
    }
}
