//! `grail-proof-worker`: one process per proof GPU. Takes weights and rollouts over a Unix socket, gives sketches,
//! log-probabilities and commitment hashes back. Knows nothing of the chain, the bucket or the key.
//!
//! ```text
//!  link thread (tokio): socket ──commands──▶ main thread: model ──results──▶ link thread: socket
//!                       end of socket: the process ends at once, whatever it computes
//! ```
//!
//! Exit codes: 0 the supervisor closed the socket; 1 failure, a broken link or a frame that must not be believed among them;
//! 64 arguments or an environment that cannot be used; 70 a reload broke off in the middle, the weights are unfit for use.
#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod link;
mod worker;

use std::convert::Infallible;
use std::process::ExitCode;

use arguments::{Arguments, Serve, Task};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use grail_model::Numerics;
use grail_process::with_causes;
use worker::{Broken, Worker};

/// Exit code for weights that are a mixture of two checkpoints (`EX_SOFTWARE`).
const WEIGHTS_UNFIT: u8 = 70;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return arguments::refuse(&error),
    };
    arguments::start_logging();
    match (arguments.task, arguments.serve) {
        (Some(Task::Bench(arguments)), _) => match bench::run(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error = with_causes(error.as_ref()), "The bench broke off.");
                ExitCode::FAILURE
            }
        },
        (None, Some(arguments)) => serve(&arguments),
        (None, None) => {
            let missing = Arguments::command().error(ErrorKind::MissingRequiredArgument, "--socket and --slot, or a command");
            arguments::refuse(&missing)
        }
    }
}

fn serve(arguments: &Serve) -> ExitCode {
    let numerics = match arguments.numerics() {
        Ok(numerics) => numerics,
        Err(error) => {
            tracing::error!(slot = arguments.slot, %error, "The numerics that are asked for cannot be had.");
            return ExitCode::from(arguments::USAGE);
        }
    };
    let Err(error) = run(arguments, numerics);
    let unfit = matches!(error.downcast_ref(), Some(Broken::Unfit { .. }));
    let class = if unfit { "weights unfit" } else { "failure" };
    tracing::error!(slot = arguments.slot, class, error = with_causes(error.as_ref()), "The proof worker cannot go on.");
    if unfit { ExitCode::from(WEIGHTS_UNFIT) } else { ExitCode::FAILURE }
}

/// Works until something breaks; the orderly end is the link thread's, when the supervisor closes the socket.
fn run(arguments: &Serve, numerics: Numerics) -> anyhow::Result<Infallible> {
    let runtime = grail_model::startup(arguments.threads);
    let switches = numerics.apply()?;
    tracing::info!(slot = arguments.slot, %runtime, device = runtime.model, attention = numerics.attention().name(), "The proof worker starts.");
    tracing::info!(slot = arguments.slot, level = numerics.tuning().level(), %switches, "The numerics are set.");
    if let Some(warning) = Numerics::warning(arguments::variable) {
        tracing::warn!(slot = arguments.slot, "{warning}");
    }
    let mut worker = Worker::new(&runtime, arguments.dtype, arguments.mode, numerics);
    let mut link = link::open(arguments.socket.clone(), worker.hello(&runtime, arguments.slot))?;
    loop {
        worker.handle(link.next()?, &mut |message| link.send(message))?;
    }
}
