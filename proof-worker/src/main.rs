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
mod bench;
mod link;
mod worker;

use std::process::ExitCode;

use arguments::{Arguments, Serve, Task};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return arguments::refuse(&error),
    };
    arguments::start_logging();
    let done = match (arguments.task, arguments.serve) {
        (Some(Task::Bench(arguments)), _) => bench::run(&arguments),
        (None, Some(arguments)) => serve(&arguments),
        (None, None) => {
            let missing = Arguments::command().error(ErrorKind::MissingRequiredArgument, "--socket and --slot, or a command");
            return arguments::refuse(&missing);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "The proof worker cannot go on.");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Serve) -> anyhow::Result<()> {
    let runtime = grail_model::startup(arguments.threads);
    tracing::info!(slot = arguments.slot, %runtime, "The proof worker starts.");
    let mut worker = worker::Worker::new(&runtime, arguments.dtype, arguments.mode);
    let link = link::open(arguments.socket.clone(), worker.hello(&runtime, arguments.slot))?;
    while let Some(command) = link.next() {
        worker.handle(command, &mut |message| link.send(message))?;
    }
    Ok(())
}
