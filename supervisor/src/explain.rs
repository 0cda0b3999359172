//! `grail-supervisor explain WINDOW`: a window's story in plain words, from the journal.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use grail_mining::events::{
    ChainAnswersAgain, ChainSilent, FileClosed, FileFound, FileStays, FileUploaded, FileWithdrawn, GroupDropped, GroupKept,
    LocalCopyFailed, MiningBegan, SpoolExpired, SpoolRefused, SpooledGroupUnusable, SpotCheckMissed, SpotChecked, WindowEnded,
    WindowOpened, WindowWaits, WorkerDistrusted, WorkersDisagree,
};
use grail_protocol::constants::ROLLOUTS_PER_PROBLEM;
use grail_supervision::children::ChildEvent;
use grail_supervision::exit::Failure;
use grail_supervision::journal::{self, Entry, Event, LinesLost, Reading, RecordsLeftOut, SupervisorStarted, SupervisorStopped};
use serde::de::DeserializeOwned;

/// Characters that are told of an event that nothing is known about.
const UNKNOWN_CHARACTERS: usize = 300;

/// The story of `window`, or of the last one on record.
///
/// # Errors
/// When there is no journal, or the window is not in it.
pub fn window(state: &Path, window: Option<u64>) -> Result<String, Failure> {
    let folder = state.join("journal");
    let reading = journal::read(&folder).map_err(|error| {
        Failure::Data(format!("the journal cannot be read: {error}; has a supervisor run with this state folder?"))
    })?;
    let on_record = || reading.entries.iter().filter(|entry| entry.kind == WindowOpened::KIND).filter_map(Entry::window);
    let last = || on_record().next_back().ok_or_else(|| Failure::Data("there is no window in the journal yet".into()));
    let window = window.map_or_else(last, Ok)?;
    story(&reading, window).ok_or_else(|| {
        let known = on_record().next().zip(on_record().next_back());
        let known = known.map_or("no window".into(), |(first, last)| format!("windows {first} to {last}"));
        Failure::Data(format!("the journal does not know window {window}; it has {known}"))
    })
}

/// The story of one window as far as the records tell it; `None` when they do not know it.
pub fn story(reading: &Reading, window: u64) -> Option<String> {
    let of_window = |entry: &&Entry| entry.window() == Some(window);
    let own: Vec<&Entry> = reading.entries.iter().filter(of_window).collect();
    let (first, last) = (own.first()?.seq, own.last()?.seq);
    // Events of children and of the supervisor itself belong to no window; they count where they fell into this one.
    let during = reading.entries.iter().filter(|entry| (first..=last).contains(&entry.seq));
    let story = Story { own, during: during.filter(|entry| entry.window().is_none_or(|its| its == window)).collect() };
    let mut text = format!("Window {window}\n");
    story.opening(&mut text);
    story.groups(&mut text);
    story.checks(&mut text);
    story.ending(&mut text);
    story.notable(&mut text);
    if reading.damaged > 0 {
        let _ = writeln!(text, "({} damaged lines of the journal were skipped.)", reading.damaged);
    }
    Some(text)
}

struct Story<'a> {
    own: Vec<&'a Entry>,
    during: Vec<&'a Entry>,
}

impl Story<'_> {
    fn all<E: Event + DeserializeOwned>(&self) -> impl Iterator<Item = (f64, E)> {
        self.own.iter().filter_map(|entry| Some((entry.time, entry.event()?)))
    }

    fn opening(&self, text: &mut String) {
        for (time, opened) in self.all::<WindowOpened>() {
            let found = match opened.spooled {
                0 => String::new(),
                groups => format!("; {groups} groups of an earlier run were in the spool"),
            };
            let indices = if opened.next_index.is_none() { "; used problem indices were unknown" } else { "" };
            let (time, deadline) = (date(time), clock_time(opened.deadline));
            let _ = writeln!(text, "  opened    {time}, uploads count until {deadline}{found}{indices}");
        }
        for (_, began) in self.all::<MiningBegan>() {
            let _ =
                writeln!(text, "  mined     with checkpoint {}, from {:.1} s after the opening", began.revision, began.seconds);
        }
    }

    fn groups(&self, text: &mut String) {
        let kept: Vec<GroupKept> = self.all().map(|(_, kept)| kept).collect();
        let volatile = kept.iter().filter(|kept| !kept.durable).count();
        let mut lost: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for (_, dropped) in self.all::<GroupDropped>() {
            let cause = lost.entry(dropped.cause).or_default();
            cause.0 += 1;
            cause.1 = dropped.detail;
        }
        for (_, distrusted) in self.all::<WorkerDistrusted>() {
            let cause = lost.entry(format!("proved by worker {}, which is not believed", distrusted.worker)).or_default();
            *cause = (distrusted.groups, distrusted.why);
        }
        for (_, unusable) in self.all::<SpooledGroupUnusable>() {
            let cause = lost.entry("unusable in the spool".into()).or_default();
            cause.0 += 1;
            cause.1 = unusable.why;
        }
        let count: usize = lost.values().map(|(count, _)| count).sum();
        let rollouts = kept.len() * ROLLOUTS_PER_PROBLEM;
        let _ = writeln!(text, "  groups    {} finished ({rollouts} rollouts), {count} lost", kept.len());
        for (cause, (count, detail)) in lost {
            let detail = if detail.is_empty() { String::new() } else { format!("   last: {}", one_line(&detail)) };
            let _ = writeln!(text, "              {count:>4}  {cause}{detail}");
        }
        if volatile > 0 {
            let _ = writeln!(text, "            {volatile} of the finished ones were in memory only");
        }
        let mut workers: BTreeMap<u32, usize> = BTreeMap::new();
        for group in &kept {
            *workers.entry(group.worker).or_default() += 1;
        }
        let workers: Vec<String> = workers.iter().map(|(worker, count)| format!("worker {worker}: {count}")).collect();
        if !workers.is_empty() {
            let _ = writeln!(text, "            proved by {}", workers.join(", "));
        }
    }

    fn checks(&self, text: &mut String) {
        let checks: Vec<SpotChecked> = self.all().map(|(_, check)| check).collect();
        if checks.is_empty() {
            let _ = writeln!(text, "  checks    no rollout was proved again");
            return;
        }
        let agree = checks.iter().filter(|check| check.agrees).count();
        let alone = checks.iter().filter(|check| check.by == check.worker).count();
        let share = checks.iter().map(|check| check.identical_share).fold(1.0, f64::min);
        let distance = checks.iter().map(|check| check.distance_p99).max().unwrap_or(0);
        let logprob = checks.iter().map(|check| check.logprob_p99).fold(0.0, f32::max);
        let alone = if alone == 0 { String::new() } else { format!(", {alone} of them by the same worker for want of another") };
        let _ = writeln!(
            text,
            "  checks    {} rollouts proved again{alone}, {agree} agree; at worst {:.1} % identical sketches, distance p99 {distance}, log-prob difference p99 {logprob:.4}",
            checks.len(),
            100.0 * share
        );
    }

    fn ending(&self, text: &mut String) {
        for (_, closed) in self.all::<FileClosed>() {
            let (groups, size) = (closed.groups, mebibytes(closed.bytes));
            let _ = writeln!(text, "  file      {groups} groups, {size}, closed and judged in {:.2} s", closed.seconds);
        }
        for (time, uploaded) in self.all::<FileUploaded>() {
            let FileUploaded { groups, seconds, left, rounds, sha256, .. } = uploaded;
            let rounds = if rounds == 1 { String::new() } else { format!(", sent {rounds} times") };
            let _ = writeln!(
                text,
                "  uploaded  at {} in {seconds:.2} s{rounds}, read back; {groups} groups, {left:.1} s before the deadline, SHA-256 {sha256}",
                clock_time(time)
            );
        }
        for (time, found) in self.all::<FileFound>() {
            let (groups, sha256) = (found.groups, found.sha256);
            let _ = writeln!(
                text,
                "  found     at {}: the bucket holds what an earlier run was sending when it ended; {groups} groups, SHA-256 {sha256}",
                clock_time(time)
            );
        }
        let mut ended = false;
        for (_, end) in self.all::<WindowEnded>() {
            ended = true;
            let reason = end.reason.map_or(String::new(), |reason| format!(": {}", one_line(&reason)));
            let rollouts = if end.rollouts == 0 { String::new() } else { format!(", {} rollouts", end.rollouts) };
            let _ = writeln!(text, "  outcome   {}{reason}{rollouts}", end.outcome);
        }
        if !ended {
            let _ = writeln!(text, "  outcome   not on record: it is still going on, or the supervisor ended in mid-window");
        }
    }

    /// What an operator should have seen, in order.
    fn notable(&self, text: &mut String) {
        let lines: Vec<String> = self.during.iter().filter_map(|entry| Some((entry, notable(entry)?))).map(line).collect();
        if !lines.is_empty() {
            let _ = writeln!(text, "  notable");
            text.push_str(&lines.concat());
        }
    }
}

fn line((entry, what): (&&Entry, String)) -> String {
    format!("    {}  {}\n", clock_time(entry.time), one_line(&what))
}

/// One line about an event that is not part of an ordinary window.
fn notable(entry: &Entry) -> Option<String> {
    if let Some(event) = entry.event::<SpoolRefused>() {
        return Some(format!("the disk did not take the spool, the window went on in memory: {}", event.why));
    }
    if let Some(event) = entry.event::<ChainSilent>() {
        return Some(format!(
            "the chain told no new block for {:.0} s ({}); the window went on by the clock",
            event.seconds, event.why
        ));
    }
    if let Some(event) = entry.event::<ChainAnswersAgain>() {
        return Some(format!("the chain told new blocks again after {:.0} s", event.seconds));
    }
    if let Some(event) = entry.event::<WindowWaits>() {
        return Some(format!("it could not be mined yet, and was tried again: {}", event.why));
    }
    if let Some(event) = entry.event::<SpoolExpired>() {
        let fate = if event.sending { "while the file was being sent; the bucket may hold it" } else { "and never uploaded" };
        return Some(format!("{} groups of this window were found after its deadline: a run ended {fate}", event.groups));
    }
    if let Some(event) = entry.event::<WorkerDistrusted>() {
        let fate = if event.quarantined { "quarantined" } else { "kept, for it is the only one" };
        return Some(format!("worker {} was not believed any more ({}) and {fate}", event.worker, event.why));
    }
    if let Some(event) = entry.event::<WorkersDisagree>() {
        return Some(format!("workers {} and {} disagree, and were replaced by new ones: {}", event.worker, event.by, event.why));
    }
    if let Some(event) = entry.event::<SpotCheckMissed>() {
        return Some(format!("a spot check gave no answer: {}", event.why));
    }
    if let Some(event) = entry.event::<LocalCopyFailed>() {
        return Some(format!("no local copy was kept: {}", event.why));
    }
    if let Some(event) = entry.event::<ChildEvent>() {
        return Some(event.sentence());
    }
    if let Some(event) = entry.event::<FileWithdrawn>() {
        return Some(format!("the uploaded file was taken out of the bucket before anybody judged it: {}", event.why));
    }
    if let Some(event) = entry.event::<FileStays>() {
        return Some(format!(
            "the uploaded file must not be judged ({}), and could not be taken out of the bucket in time: {}",
            event.why, event.refusal
        ));
    }
    if let Some(event) = entry.event::<LinesLost>() {
        return Some(format!("{} took no lines for a while; {} were left out of it so far", event.place, event.lost));
    }
    if let Some(event) = entry.event::<RecordsLeftOut>() {
        return Some(format!("{} records are missing here: the journal's disk did not keep up", event.count));
    }
    if let Some(event) = entry.event::<SupervisorStarted>() {
        return Some(format!("the supervisor was started (pid {}, version {})", event.pid, event.version));
    }
    if let Some(event) = entry.event::<SupervisorStopped>() {
        return Some(format!("the supervisor ended in order (pid {})", event.pid));
    }
    const ORDINARY: [&str; 8] = [
        WindowOpened::KIND,
        MiningBegan::KIND,
        GroupKept::KIND,
        GroupDropped::KIND,
        SpotChecked::KIND,
        FileClosed::KIND,
        FileFound::KIND,
        FileUploaded::KIND,
    ];
    let told_above =
        ORDINARY.contains(&entry.kind.as_str()) || [WindowEnded::KIND, SpooledGroupUnusable::KIND].contains(&entry.kind.as_str());
    // Events of another workload, or of another version, are told by their names and fields.
    (!told_above).then(|| format!("{}: {}", entry.kind.replace('_', " "), fields(&entry.data)))
}

/// The fields of an event that nothing is known about, shortened.
fn fields(data: &serde_json::Value) -> String {
    let plain = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields =
        data.as_object().into_iter().flatten().map(|(name, value)| format!("{} {}", name.replace('_', " "), plain(value)));
    let text = fields.collect::<Vec<_>>().join(", ");
    let mut shown: String = text.chars().take(UNKNOWN_CHARACTERS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

/// `2026-11-21 03:00:02 UTC`
fn date(unix_seconds: f64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp(unix_seconds as i64).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    format!("{year}-{month:02}-{day:02} {} UTC", clock_time(unix_seconds))
}

/// `03:00:02`
fn clock_time(unix_seconds: f64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp(unix_seconds as i64).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    format!("{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second())
}

#[cfg(test)]
mod tests {
    use grail_supervision::children::{Death, DeathClass};
    use serde::Serialize;

    use super::*;

    struct StoryLines(Vec<Entry>);

    impl StoryLines {
        fn tell<E: Event + Serialize>(mut self, event: E) -> Self {
            let seq = self.0.len() as u64;
            let data = serde_json::to_value(event).unwrap();
            self.0.push(Entry { seq, time: 1_795_229_641.0 + seq as f64, kind: E::KIND.into(), data });
            self
        }

        fn story(self, window: u64) -> Option<String> {
            story(&Reading { entries: self.0, damaged: 0 }, window)
        }
    }

    fn opened(window: u64, spooled: usize) -> WindowOpened {
        WindowOpened { window, deadline: 1_795_230_000.0, spooled, next_index: Some(0) }
    }

    fn dropped(group: i64, cause: &str, detail: &str) -> GroupDropped {
        GroupDropped { window: 600, group, cause: cause.into(), detail: detail.into() }
    }

    fn kept(group: i64, durable: bool) -> GroupKept {
        GroupKept { window: 600, group, worker: 1, durable, seconds: 2.0 }
    }

    #[test]
    fn a_story_tells_losses_by_cause_and_what_happened_in_between() {
        let death = Death {
            class: DeathClass::Failed(1),
            reason: "it failed with exit code 1".into(),
            pid: Some(7),
            lived_seconds: 12.0,
            lines: vec!["loading".into(), "Traceback:\n  no room".into(), "x".repeat(4096)],
            threads: vec!["main: futex".into(); 40],
        };
        let child = "proof-worker 0".to_owned();
        let died = ChildEvent::Died { child: child.clone(), death: death.clone(), wait_ms: 1500 };
        let quarantined = ChildEvent::Quarantined { child, gpus: vec!["4".into()], death };
        let told = StoryLines(Vec::new())
            .tell(opened(570, 0))
            .tell(opened(600, 2))
            .tell(kept(3, true))
            .tell(kept(4, false))
            .tell(dropped(5, "too late", ""))
            .tell(dropped(6, "proof failed", "the job\nwas lost"))
            .tell(dropped(7, "proof failed", "the job was lost again"));
        let end = WindowEnded {
            window: 600,
            outcome: "lost".into(),
            reason: Some("the upload failed".into()),
            rollouts: 0,
            checkpoint: Some(570),
            mean_reward: 0.5,
        };
        let unknown =
            Entry { seq: 9, time: 1_795_229_650.0, kind: "greeted".into(), data: serde_json::json!({"said_to": "a child"}) };
        let mut told = told.tell(died).tell(quarantined);
        told.0.push(unknown);
        let text = told.tell(end).tell(opened(630, 0)).story(600).unwrap();
        for part in [
            "Window 600\n  opened    2026-11-21 ",
            "2 groups of an earlier run were in the spool",
            "2 finished (32 rollouts), 3 lost",
            "2  proof failed   last: the job was lost again",
            "1  too late\n",
            "1 of the finished ones were in memory only",
            "proved by worker 1: 2",
            "no rollout was proved again",
            "outcome   lost: the upload failed",
            "proof-worker 0 died, to be started again in 1.5 s: it failed with exit code 1 (pid 7, after 12 s); last words: Traceback: no room | xxx",
            "proof-worker 0 died and was not started again (GPU 4 stays idle): it failed",
            "greeted: said to a child\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("570,") && !text.contains("630"), "{text}");
        assert!(!text.contains('{') && text.lines().all(|line| line.len() < 500), "{text}");
    }

    #[test]
    fn an_unknown_window_has_no_story_and_an_unfinished_one_says_so() {
        assert_eq!(StoryLines(Vec::new()).tell(opened(600, 0)).story(630), None);
        let text = StoryLines(Vec::new()).tell(opened(600, 0)).story(600).unwrap();
        assert!(text.contains("not on record"), "{text}");
    }
}
