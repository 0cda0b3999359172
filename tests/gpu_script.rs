//! `scripts/gpu.sh --cpu`: the page that a GPU host is asked for, made here with small sizes. What needs a GPU says so.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::process::Command;

use grail_tests::{programs, workspace};

/// A row of the page: number, step, seconds, outcome, what was found.
fn rows(page: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #")).map(cells).collect()
}

#[test]
fn the_page_has_a_row_for_each_step_and_what_the_cpu_can_show_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.md");
    let script = workspace().join("scripts/gpu.sh");
    // It ends each step that takes too long, and itself after eight minutes.
    let run = Command::new(&script)
        .args(["--cpu", "--out"])
        .arg(&page)
        .arg("--programs")
        .arg(programs())
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    let page = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{error}: {told}"));
    let rows = rows(&page);
    let numbers: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(numbers, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"], "{page}");
    for row in &rows {
        let wanted = if ["7", "10"].contains(&row[0].as_str()) { "left out" } else { "passed" };
        assert_eq!(row[3], wanted, "step {} of\n{page}", row[0]);
    }
    for (step, words) in [
        (1, "computes on cpu"),
        (2, "hashes, change and way back"),
        (3, "new lengths need a GPU"),
        (4, "identical to one sequence at a time"),
        (5, "level 2: exact repeats itself"),
        (6, "% of the matrix rate"),
        (7, "needs a GPU"),
        (8, "uploaded and read back"),
        (9, "packed-shared: "),
        (10, "needs a GPU"),
    ] {
        let found = if step == 9 { &page } else { &rows[step][4] };
        assert!(found.contains(words), "step {step} says {:?}, not {words:?}, in\n{page}", rows[step]);
    }
    assert!(run.status.success(), "{told}");
    assert!(page.starts_with("# What `scripts/gpu.sh` found on the CPU"), "{page}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["page.md"], "its own folder goes with it");
}

#[test]
fn a_step_that_fails_is_told_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let worker = folder.path().join("grail-proof-worker");
    grail_tests::write_program(
        &worker,
        "case \"$2\" in hello) echo 'passed: computes on cpu' ;; *) echo 'FAILED: it burns'; exit 1 ;; esac",
    );
    let page = folder.path().join("page.md");
    let run = Command::new(workspace().join("scripts/gpu.sh"))
        .args(["--cpu", "--programs"])
        .arg(folder.path())
        .arg("--out")
        .arg(&page)
        .output()
        .unwrap();
    let page = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    let rows = rows(&page);
    let outcome = |step: usize| rows[step][3].as_str();
    assert_eq!((outcome(1), outcome(2), outcome(8)), ("passed", "**failed** (exit code 1)", "left out"), "{page}");
    assert!(rows[2][4].contains("FAILED: it burns") && rows[8][4].contains("needs grail-supervisor"), "{page}");
    assert_eq!((run.status.code(), rows.len()), (Some(1), 11), "{page}");
}
