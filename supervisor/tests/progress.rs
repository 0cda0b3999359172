//! How far a long command is, seen on a terminal and nowhere else.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// The program with standard error on a terminal of its own, as Python's `pty` has them, and standard output in `folder/out`.
fn on_a_terminal(folder: &Path, variables: &[(&str, &str)], arguments: &str) -> Command {
    const SPAWN: &str = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(['sh', '-c', sys.argv[1]])))";
    let line = format!("exec {} {arguments} > out", env!("CARGO_BIN_EXE_grail-supervisor"));
    let mut python = Command::new("python3");
    python.args(["-c", SPAWN, &line]).env_clear().envs(variables.iter().copied()).env("PATH", std::env::var("PATH").unwrap());
    python.current_dir(folder).stdin(Stdio::null());
    python
}

/// What the terminal shows until it has all of `words`.
fn shown_until(mut command: Command, words: &[&str]) -> String {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let (mut terminal, (send, pieces)) = (child.stdout.take().unwrap(), mpsc::channel());
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = terminal.read(&mut piece) {
            let _ = send.send(String::from_utf8_lossy(&piece[..read]).into_owned());
        }
    });
    let (mut shown, end) = (String::new(), Instant::now() + LIMIT);
    while !words.iter().all(|word| shown.contains(word)) {
        let left = end.saturating_duration_since(Instant::now());
        shown += &pieces.recv_timeout(left).unwrap_or_else(|error| panic!("{words:?}: {error} after {shown:?}"));
    }
    // Its terminal goes with it, and the program with that.
    child.kill().unwrap();
    child.wait().unwrap();
    shown
}

#[test]
fn a_terminal_shows_how_far_a_long_command_is_without_colours_and_not_on_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let variables = [("TERM", "xterm"), ("LANG", "C.UTF-8"), ("NO_COLOR", "1")];
    let endless = on_a_terminal(folder.path(), &variables, "simulate --windows 100000");
    let shown = shown_until(endless, &["Simulating [", " windows, ", " left"]);
    assert!(!shown.contains("\x1b[3") && !shown.contains("\x1b[9"), "no colours: {shown:?}");
    assert_eq!(std::fs::read_to_string(folder.path().join("out")).unwrap(), "");
}

#[test]
fn where_no_picture_can_be_drawn_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let dumb = [("TERM", "dumb"), ("LANG", "C.UTF-8")];
    let output = on_a_terminal(folder.path(), &dumb, "simulate --windows 1").output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}");
    // A slow machine may get a plain line.
    assert!(shown.split_terminator("\r\n").all(|line| !line.contains(['\r', '\x1b'])), "{shown:?}");
    let asked = std::fs::read_to_string(folder.path().join("out")).unwrap();
    assert!(asked.contains("groups in flight: ") && !asked.contains(['\r', '\x1b']), "{asked:?}");
    let mut piped = Command::new(env!("CARGO_BIN_EXE_grail-supervisor"));
    piped.args(["simulate", "--windows", "1"]).env("TERM", "xterm").env("LANG", "C.UTF-8").current_dir(folder.path());
    let output = piped.output().unwrap();
    assert_eq!((String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout)), ("".into(), asked.into()));
}
