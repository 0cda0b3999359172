//! `grail-proof-worker`: one process per proof GPU. Takes weights and rollouts over a Unix socket, gives sketches,
//! log-probabilities and commitment hashes back. Knows nothing of the chain, the bucket or the key.
//!
//! ```text
//!  link thread (tokio): socket ──commands──▶ main thread: model ──results──▶ link thread: socket
//!                       end of socket: the process ends at once, whatever it computes
//! ```
//!
//! Exit codes: 0 the supervisor closed the socket; 1 failure, a broken link or a frame that must not be believed among them;
//! 64 arguments or an environment that cannot be used; 70 a reload broke off in the middle, the weights are unfit for use; 80 to 86
//! the device is at fault, or cannot be had ([`grail_faults::Fault`]).
#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod check;
mod link;
mod worker;

use std::convert::Infallible;
use std::process::ExitCode;

use arguments::{Arguments, Serve, Task};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use grail_model::{AttentionKernel, Heads, NoGpu, Numerics};
use grail_process::with_causes;
use worker::{Broken, FAILURE, Worker};

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
        (Some(Task::Check(arguments)), _) => check::main(&arguments),
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
    let (class, code) = match (error.downcast_ref::<Broken>(), error.downcast_ref::<NoGpu>()) {
        (Some(broken), _) => broken.outcome(),
        (None, Some(absent)) => ("no GPU", absent.fault.exit_code()),
        (None, None) => ("failure", FAILURE),
    };
    tracing::error!(slot = arguments.slot, class, error = with_causes(error.as_ref()), "The proof worker cannot go on.");
    ExitCode::from(code)
}

/// Works until something breaks; the orderly end is the link thread's, when the supervisor closes the socket.
fn run(arguments: &Serve, numerics: Numerics) -> anyhow::Result<Infallible> {
    let runtime = grail_model::startup_on(arguments.device, arguments.threads)?;
    grail_model::read_with(arguments.readers);
    let switches = numerics.apply()?;
    let device = runtime.device();
    let attention = AttentionKernel::chosen(numerics.attention(), device, arguments.dtype.on(device), Heads::USUAL)?;
    tracing::info!(slot = arguments.slot, %runtime, device = runtime.model, %attention, "The proof worker starts.");
    if let Some(reason) = &runtime.cpu_reason {
        tracing::info!(slot = arguments.slot, reason, "It computes on the CPU.");
    }
    tracing::info!(slot = arguments.slot, level = numerics.tuning().level(), %switches, "The numerics are set.");
    let overrides = Numerics::overrides(arguments::variable);
    for setting in &overrides {
        tracing::warn!(slot = arguments.slot, "{}", Numerics::warning(setting));
    }
    let mut worker = Worker::new(&runtime, arguments.dtype, arguments.mode, numerics, attention, overrides);
    let mut link = link::open(arguments.socket.clone(), worker.hello(&runtime, arguments.slot))?;
    loop {
        worker.handle(link.next()?, &mut |message| link.send(message))?;
    }
}
