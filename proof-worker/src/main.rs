//! `grail-proof-worker`: one process per proof GPU. Takes weights and rollouts over a Unix socket, gives sketches,
//! log-probabilities and commitment hashes back. Knows nothing of the chain, the bucket or the key.
//!
//! ```text
//!  link thread (tokio): socket ──commands──▶ main thread: model ──results──▶ link thread: socket
//!                       end of socket: the process ends at once, whatever it computes
//! ```
//!
//! Exit codes: 0 the supervisor closed the socket, 1 failure, 64 arguments that cannot be used.
#![forbid(unsafe_code)]

mod arguments;
mod link;
mod worker;

use std::process::ExitCode;

use arguments::Arguments;
use clap::Parser;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return arguments::refuse(&error),
    };
    arguments::start_logging();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(slot = arguments.slot, error = format!("{error:#}"), "The proof worker cannot go on.");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = grail_model::startup(arguments.threads);
    tracing::info!(slot = arguments.slot, %runtime, "The proof worker starts.");
    let mut worker = worker::Worker::new(&runtime, arguments.dtype);
    let link = link::open(arguments.socket.clone(), worker.hello(&runtime, arguments.slot))?;
    while let Some(command) = link.next() {
        worker.handle(command, &mut |message| link.send(message))?;
    }
    Ok(())
}
