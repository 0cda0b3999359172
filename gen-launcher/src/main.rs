//! `grail-gen-launcher`: starts the generation server the supervisor asks for, keeps its weights current, passes on what it
//! prints. With `embedded` it is itself a generation server, on libtorch.
//!
//! ```text
//!  supervisor ──socket──▶ grail-gen-launcher --socket … ──HTTP──▶ grail-gen-launcher embedded …
//!  supervisor ──────────────────────────HTTP /generate──────────────────▶ │
//! ```
//!
//! Exit codes: 0 the supervisor closed the socket, 1 failure, 64 arguments that cannot be used.
#![forbid(unsafe_code)]

mod arguments;
mod embedded;
mod launcher;

use std::process::ExitCode;

use arguments::{Arguments, Face};
use clap::Parser;
use grail_process::with_causes;

fn main() -> ExitCode {
    let face = match Arguments::try_parse().and_then(Arguments::face) {
        Ok(face) => face,
        Err(error) => return arguments::refuse(&error),
    };
    arguments::start_logging();
    let ended = match face {
        Face::Embedded(arguments) => embedded::run(&arguments),
        Face::Launcher(arguments) => launcher::run(arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = with_causes(error.as_ref()), "The generation launcher cannot go on.");
            ExitCode::FAILURE
        }
    }
}
