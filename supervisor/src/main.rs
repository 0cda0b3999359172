//! `grail-supervisor`: mines GRAIL on this host.

use std::process::ExitCode;

fn main() -> ExitCode {
    grail_supervisor::cli::main()
}
