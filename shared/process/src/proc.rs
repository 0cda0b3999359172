//! What the kernel says about processes, from `/proc`. Everything is bounded; a process that ends meanwhile is simply gone.

use std::io::{self, Read};
use std::path::Path;

/// Bytes of an environment that are searched.
const MAX_ENVIRONMENT: u64 = 1 << 20;
/// Threads that [`threads`] describes; a wedged CUDA process has hundreds, all alike.
const MAX_THREADS: usize = 24;
/// Frames of a kernel stack that are kept.
const MAX_FRAMES: usize = 6;

/// One process as `/proc/<pid>/stat` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Process id.
    pub pid: u32,
    /// Short name of the program; a process may change it.
    pub name: String,
    /// `R`, `S`, `D`, `T` (stopped by a signal), `t` (stopped by a debugger), `Z`, `X`, `I`.
    pub state: char,
    /// Parent.
    pub parent: u32,
    /// Process group.
    pub group: u32,
    /// Session.
    pub session: u32,
    /// Start, in clock ticks since boot.
    pub started: u64,
}

impl ProcessFacts {
    /// Whether it still runs code: a zombie only waits to be reaped.
    pub fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// One process.
///
/// # Errors
/// When there is none, or its line cannot be understood.
pub fn facts(pid: u32) -> io::Result<ProcessFacts> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse(pid, &line).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has an unknown form: {line:?}")))
}

fn parse(pid: u32, line: &str) -> Option<ProcessFacts> {
    // The name stands in parentheses and may itself contain some.
    let (before, after) = line.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let mut number = || fields.next()?.parse::<i64>().ok();
    let (parent, group, session) = (number()?, number()?, number()?);
    let started = fields.nth(15)?.parse().ok()?;
    let whole = |number: i64| u32::try_from(number).unwrap_or(0);
    Some(ProcessFacts { pid, name, state, parent: whole(parent), group: whole(group), session: whole(session), started })
}

/// Whether a process was started with this variable, as `NAME=value`. One whose environment may not be read was not.
pub fn carries(pid: u32, variable: &[u8]) -> bool {
    let mut environment = Vec::new();
    let file = std::fs::File::open(format!("/proc/{pid}/environ"));
    let read = file.and_then(|file| file.take(MAX_ENVIRONMENT).read_to_end(&mut environment));
    read.is_ok() && environment.split(|byte| *byte == 0).any(|found| found == variable)
}

/// Every process that can be seen.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn all() -> io::Result<Vec<ProcessFacts>> {
    let pids = std::fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(|pid| facts(pid).ok()).collect())
}

/// The direct children of a process. Empty when it is gone.
///
/// # Errors
/// When the kernel was built without lists of children (`CONFIG_PROC_CHILDREN`).
pub fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Ok(found) };
    for task in tasks.flatten() {
        match std::fs::read_to_string(task.path().join("children")) {
            Ok(line) => found.extend(line.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok())),
            // The thread ended meanwhile.
            Err(_) if !task.path().exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The process and everything below it.
///
/// # Errors
/// As [`children`].
pub fn tree(root: u32) -> io::Result<Vec<u32>> {
    let mut found = vec![root];
    let mut next = 0;
    // Bounded: a fork bomb below us must not become our own loop.
    while next < found.len() && found.len() < 4096 {
        found.extend(children(found[next])?);
        next += 1;
    }
    Ok(found)
}

/// What the threads of a process are doing, one line each: name, state, where in the kernel they wait, and the kernel stack
/// where this user may read it. Empty when the process is gone.
pub fn threads(pid: u32) -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tasks: Vec<_> = tasks.flatten().map(|task| task.path()).collect();
    tasks.sort();
    let surplus = tasks.len().saturating_sub(MAX_THREADS);
    let mut lines: Vec<String> = tasks.iter().take(MAX_THREADS).filter_map(|task| thread(pid, task)).collect();
    if surplus > 0 {
        lines.push(format!("process {pid}: {surplus} more thread(s)"));
    }
    lines
}

fn thread(pid: u32, task: &Path) -> Option<String> {
    let read = |file: &str| std::fs::read_to_string(task.join(file)).ok().map(|text| text.trim().to_owned());
    let id: u32 = task.file_name()?.to_str()?.parse().ok()?;
    let facts = parse(id, &read("stat")?)?;
    let mut line = format!("process {pid}, thread {id} ({}): state {}", facts.name, facts.state);
    if let Some(place) = read("wchan").filter(|place| !place.is_empty() && place != "0") {
        line.push_str(&format!(", waits in {place}"));
    }
    // Readable by root only, as a rule.
    if let Some(stack) = read("stack").filter(|stack| !stack.is_empty()) {
        let frames: Vec<&str> = stack.lines().take(MAX_FRAMES).map(|frame| frame.rsplit(' ').next().unwrap_or(frame)).collect();
        line.push_str(&format!(", kernel stack {}", frames.join(" < ")));
    }
    Some(line)
}

/// How often the kernel has killed a process because memory ran out, since boot; `None` where it does not say.
pub fn out_of_memory_kills() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/vmstat").ok()?;
    counters.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_and_spaces_are_understood() {
        let line = "42 (a) b (c) S 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 0 0";
        let facts = parse(42, line).unwrap();
        assert_eq!(facts.name, "a) b (c");
        assert_eq!((facts.state, facts.parent, facts.group, facts.session, facts.started), ('S', 7, 42, 41, 987_654));
        assert!(parse(1, "1 (x) S").is_none());
    }

    #[test]
    fn this_process_is_found() {
        let facts = facts(std::process::id()).unwrap();
        assert!(facts.lives() && facts.started > 0);
        assert!(all().unwrap().iter().any(|process| process.pid == std::process::id()));
        assert!(!threads(std::process::id()).is_empty());
        assert!(threads(0).is_empty());
    }
}
