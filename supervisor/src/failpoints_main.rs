//! `grail-supervisor` with failpoints, for tests that kill it in a chosen phase.

use std::process::ExitCode;

fn main() -> ExitCode {
    grail_supervisor::cli::main()
}
