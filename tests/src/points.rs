//! Failpoints from the test's side: arm one, wait until the supervisor is there, let it go on. See
//! `shared/supervision/src/failpoint.rs` for the other side.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::{Host, build, profile, programs};

/// The supervisor with failpoints, built in the profile of the tests under a name of its own.
pub fn supervisor() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let name = "grail-supervisor-failpoints";
        build(&["--features", "grail-supervisor/failpoints", "--bin", name, "--profile", profile()]);
        programs().join(name)
    })
}

/// Where a host's failpoints are armed.
pub fn folder(host: &Host) -> PathBuf {
    host.path().join("points")
}

/// The next passage of `point` holds.
pub fn arm(host: &Host, point: &str) {
    std::fs::write(folder(host).join(point), "").expect("a failpoint is armed");
}

/// Waits until the supervisor holds at `point`.
///
/// # Errors
/// When it is not there in time.
pub fn await_reached(host: &Host, point: &str, limit: Duration) -> Result<(), String> {
    let reached = folder(host).join(format!("{point}.reached"));
    let end = Instant::now() + limit;
    while !reached.exists() {
        if Instant::now() > end {
            return Err(format!("the supervisor did not come to {point} within {limit:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Lets the supervisor go on, and disarms the point.
pub fn release(host: &Host, point: &str) {
    for name in [point.to_owned(), format!("{point}.reached")] {
        let _ = std::fs::remove_file(folder(host).join(name));
    }
}

/// Every group that became durable on this host, with how often: (window, group) → count.
pub fn durable(host: &Host) -> BTreeMap<(u64, i64), usize> {
    let text = std::fs::read_to_string(folder(host).join("durable")).unwrap_or_default();
    let mut groups = BTreeMap::new();
    for line in text.lines() {
        let numbers = line.split_once(' ').and_then(|(window, group)| Some((window.parse().ok()?, group.parse().ok()?)));
        *groups.entry(numbers.expect("a line of the ledger is a window and a group")).or_default() += 1;
    }
    groups
}
