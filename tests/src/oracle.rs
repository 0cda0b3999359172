//! The sentence by which every fault is judged: no orphan, no leaked socket or lock, every durable group uploaded exactly once
//! or reported lost with its cause, every file as the status tells of it, and accepted by `grail-supervisor validate`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use grail_store::window_file::read_window;
use serde_json::Value;

use crate::{Host, points};

const ROLLOUTS_PER_GROUP: usize = 16;
/// Time for the kernel to end what was killed.
const MOMENT: Duration = Duration::from_secs(30);

/// What became of the durable groups.
#[derive(Debug, Default)]
pub struct Account {
    /// Windows with a file in the bucket.
    pub windows: Vec<u64>,
    /// Durable groups that are in a file.
    pub uploaded: usize,
    /// Durable groups that are not, by the cause that the supervisor gave.
    pub lost: BTreeMap<String, usize>,
}

impl std::fmt::Display for Account {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "windows {:?}, {} groups uploaded", self.windows, self.uploaded)?;
        for (cause, count) in &self.lost {
            write!(formatter, ", {count} lost: {cause}")?;
        }
        Ok(())
    }
}

/// Judges a host whose supervisor has ended. `more` are arguments for `validate`.
///
/// # Errors
/// The first part of the sentence that does not hold.
pub fn judge(host: &Host, more: &[&str]) -> Result<Account, String> {
    let account = account(host)?;
    files_are_accepted(host, &account.windows, more)?;
    Ok(account)
}

/// The same without the validator, who waits for the end of the window.
///
/// # Errors
/// The first part of the sentence that does not hold.
pub fn account(host: &Host) -> Result<Account, String> {
    no_process_is_left(host)?;
    nothing_is_leaked(host)?;
    let account = every_group_is_accounted_for(host)?;
    the_status_tells_of_the_files(host)?;
    Ok(account)
}

/// Nothing that was started with a path of this host lives. What does is ended, so that a failure harms no other test.
///
/// # Errors
/// The orphans.
pub fn no_process_is_left(host: &Host) -> Result<(), String> {
    let end = Instant::now() + MOMENT;
    loop {
        let left = host.processes();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            for (process, _) in &left {
                let _ = process.kill();
            }
            return Err(format!("orphans: {left:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn nothing_is_leaked(host: &Host) -> Result<(), String> {
    let state = host.path().join("state");
    let sockets = std::fs::read_dir(state.join("run")).into_iter().flatten().flatten();
    let sockets: Vec<String> = sockets.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    if !sockets.is_empty() {
        return Err(format!("leaked sockets: {sockets:?}"));
    }
    let records = std::fs::read_dir(state.join("children")).into_iter().flatten().flatten();
    let records: Vec<String> = records.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    if !records.is_empty() {
        return Err(format!("records of children that are gone: {records:?}"));
    }
    match std::fs::File::open(state.join("lock")).map(|lock| lock.try_lock()) {
        Ok(Err(error)) => Err(format!("a leaked lock: {error}")),
        _ => Ok(()),
    }
}

fn every_group_is_accounted_for(host: &Host) -> Result<Account, String> {
    let mut files = BTreeMap::new();
    for path in host.uploaded() {
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let window = name.rsplit('-').next().and_then(|window| window.parse::<u64>().ok()).ok_or("a file without a window")?;
        files.insert(window, groups_of(&path)?);
    }
    let mut account = Account { windows: files.keys().copied().collect(), ..Account::default() };
    let reports = Reports::of(host);
    for ((window, group), count) in points::durable(host) {
        if count > 1 {
            return Err(format!("window {window}: {count} groups became durable under the index {group}"));
        }
        if files.get(&window).is_some_and(|groups| groups.contains(&group)) {
            account.uploaded += 1;
            continue;
        }
        let cause = reports.cause(window, group);
        let cause = cause.ok_or(format!("group {group} of window {window} was durable, is not uploaded, and nobody says why"))?;
        *account.lost.entry(cause).or_default() += 1;
    }
    Ok(account)
}

/// Of every window that the status calls uploaded, the bucket holds the file that it tells of, by bytes and rollouts.
fn the_status_tells_of_the_files(host: &Host) -> Result<(), String> {
    let status = host.status();
    let finished = status["finished"].as_array().map(Vec::as_slice).unwrap_or_default();
    let files = host.uploaded();
    for window in finished.iter().filter(|window| window["outcome"] == "uploaded") {
        let ending = format!("-window-{}.parquet", window["window"]);
        let path = files.iter().find(|path| path.to_string_lossy().ends_with(&ending));
        let path = path.ok_or_else(|| format!("the status calls a window uploaded that has no file: {window}"))?;
        let bytes = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
        let rollouts = groups_of(path)?.len() * ROLLOUTS_PER_GROUP;
        if window["bytes"] != bytes || window["rollouts"] != rollouts {
            return Err(format!("the file has {bytes} bytes and {rollouts} rollouts, the status says: {window}"));
        }
    }
    Ok(())
}

/// The groups of a file, each of sixteen rows with nonces of their own.
fn groups_of(path: &std::path::Path) -> Result<BTreeSet<i64>, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let file = read_window(bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut groups: BTreeMap<i64, usize> = BTreeMap::new();
    let mut nonces = BTreeSet::new();
    for row in &file.rows {
        *groups.entry(row.rollout_group).or_default() += 1;
        if !nonces.insert(row.nonce) {
            return Err(format!("{}: nonce {} occurs twice", path.display(), row.nonce));
        }
    }
    match groups.iter().find(|(_, rows)| **rows != ROLLOUTS_PER_GROUP) {
        Some((group, rows)) => Err(format!("{}: group {group} has {rows} rows", path.display())),
        None => Ok(groups.into_keys().collect()),
    }
}

/// What the supervisor has said in its log about windows and groups that are not uploaded, over all of its lives.
struct Reports(Vec<String>);

impl Reports {
    fn of(host: &Host) -> Self {
        Self(host.log().lines().filter(|line| line.contains("window=") || line.contains("group=")).map(without_time).collect())
    }

    /// Why a durable group has no place in a file: how the window ended, that its time was over before anybody could look, or
    /// that the group was left out, by its own name or its worker's.
    fn cause(&self, window: u64, group: i64) -> Option<String> {
        let of_window: Vec<&String> = self.0.iter().filter(|line| has(line, "window", window)).collect();
        let bad = |line: &&&String| line.starts_with("WARN") || line.starts_with("ERROR");
        let of_group = of_window.iter().filter(bad).find(|line| has(line, "group", group) || line.contains("are left out"));
        let end = of_window.iter().rev().find(|line| line.contains("outcome=") || line.contains("deadline is over"));
        let lost = end.filter(|line| !line.contains("outcome=\"uploaded\""));
        of_group.or(lost).map(|line| (*line).clone())
    }
}

/// Whether a log line has a field of this value.
fn has(line: &str, field: &str, value: impl std::fmt::Display) -> bool {
    let wanted = format!("{field}={value}");
    line.split([' ', '\n']).any(|word| word == wanted)
}

/// A log line from its level on.
fn without_time(line: &str) -> String {
    let from = ["ERROR", "WARN", "INFO"].iter().filter_map(|level| line.find(level)).min().unwrap_or(0);
    line[from..].to_owned()
}

/// Every window file passes the validator, every group checked.
///
/// # Errors
/// What the validator says.
pub fn files_are_accepted(host: &Host, windows: &[u64], more: &[&str]) -> Result<(), String> {
    if windows.is_empty() {
        return Ok(());
    }
    let count = windows.len().to_string();
    let arguments = [&["validate", "--test-mode", "--last", &count, "--all", "--json"], more].concat();
    let limit = Duration::from_secs(240 + 10 * windows.len() as u64);
    let validated = host.start(&arguments).finish(limit);
    if validated.code != 0 {
        return Err(format!("validate says {}\n{}\n{}", validated.code, validated.stdout, validated.stderr));
    }
    for line in validated.stdout.lines() {
        let verdict: Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
        if verdict["failure_flag"] != 0 || verdict["valid_count"] != verdict["checked_count"] {
            return Err(format!("not accepted: {verdict:#}"));
        }
    }
    match validated.stdout.lines().count() {
        judged if judged == windows.len() => Ok(()),
        judged => Err(format!("{judged} of {} windows were judged", windows.len())),
    }
}
