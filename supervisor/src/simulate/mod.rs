//! `simulate`: windows of a host in virtual time, mined by the same [`crate::schedule::Schedule`] as the daemon's, beside the
//! guide's double-buffered batches under the same curves and draws.

mod draws;
mod engine;
mod host;
mod report;
mod windows;
mod world;

use std::path::PathBuf;

use clap::Args;

use crate::exit::Failure;
use crate::settings::{ConfigError, ConfigErrors};
use host::Host;
use report::{Run, Summary};
use windows::{Batches, Outcome};
use world::World;

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Windows to simulate.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    windows: u32,
    /// The host: curves, lengths, failures; without it, config/simulate/8xa100.toml of this version.
    #[arg(long, value_name = "FILE")]
    host: Option<PathBuf>,
    /// Seed of everything that is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Simulates and returns the report.
///
/// # Errors
/// When the host file cannot be read, or no host has its values.
pub fn command(arguments: &Arguments) -> Result<String, Failure> {
    let host = read(arguments.host.as_deref())?;
    let summary = simulate(&host, arguments.windows, arguments.seed).map_err(|error| Failure::internal("plan time", error))?;
    Ok(summary.to_string())
}

fn read(file: Option<&std::path::Path>) -> Result<Host, Failure> {
    let refuse = |reason: String| {
        let key = file.map_or_else(|| "the built-in host".to_owned(), |file| file.display().to_string());
        Failure::from(ConfigErrors(vec![ConfigError { key, value: None, origin: None, reason }]))
    };
    let text = match file {
        Some(file) => std::fs::read_to_string(file).map_err(|error| refuse(format!("cannot be read: {error}")))?,
        None => host::DEFAULT.to_owned(),
    };
    Host::read(&text).map_err(|error| refuse(error.to_string()))
}

fn simulate(host: &Host, windows: u32, seed: u64) -> Result<Summary<'_>, grail_protocol::time_budget::TimeBudgetError> {
    let starts = || (0..u64::from(windows)).map(|window| window * grail_protocol::constants::WINDOW_LENGTH);
    let mut schedule = windows::schedule(host)?;
    let mut world = World::new(host, seed);
    let outcomes: Vec<Outcome> = starts().map(|window| windows::scheduled(host, &mut world, &mut schedule, window)).collect();
    let scheduled = Run::new(format!("schedule, {} groups", schedule.choice().groups), host, outcomes, &world);
    let mut batched = Vec::new();
    for size in &host.schedule.batches {
        let mut world = World::new(host, seed);
        let mut batches = Batches::new(host, *size)?;
        let outcomes = starts().map(|window| windows::batched(host, &mut world, &mut batches, window)).collect();
        batched.push(Run::new(format!("batches of {size} groups"), host, outcomes, &world));
    }
    Ok(Summary { host, scheduled, batched, choice: schedule.choice() })
}

#[cfg(test)]
mod tests;
