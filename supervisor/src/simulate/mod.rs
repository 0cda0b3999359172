//! `simulate`: windows of a host in virtual time, mined by the same [`grail_mining::schedule::Schedule`] as the daemon's, beside the
//! guide's double-buffered batches of the best size, under the same curves, windows, problems and troubles.
//!
//! What is assumed, of both ways alike: requests in a server share its throughput evenly; a group goes to the least loaded server;
//! the prompt of a group is prefilled and proved once, and decoding stands still meanwhile; no group is dropped for what its
//! completions say; a request of a server that dies is lost with its group; nothing of a window can begin before its first block,
//! because prompts come from that block's hash, so the places of groups given up late stay free until the next one.
//!
//! The schedule's file leaves while the window runs, so that at its end the last part is sent; where that fails, all of it is sent.
//! Of the batches: one begins when the last completion of the one before it is there, while that one is proved; the reference's
//! averages and its three safety blocks decide whether one more begins, of full size; the file is begun as late as the
//! deadline's gate would begin one that is sent as a whole, and what is proved by then counts, which is kinder than the guide's
//! loop. Their size is searched for.

mod draws;
mod engine;
mod host;
mod report;
mod windows;
mod world;

use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args;
use grail_mining::schedule::Choice;
use grail_process::{Meter, Unit};
use grail_protocol::time_budget::TimeBudgetError;
use grail_settings::{ConfigError, ConfigErrors};
use grail_supervision::exit::Failure;
use host::Host;
use report::{Run, Summary};
use windows::Batches;
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
pub fn command(arguments: &Arguments, meter: &Meter) -> Result<String, Failure> {
    let host = read(arguments.host.as_deref())?;
    let summary =
        simulate(&host, arguments.windows, arguments.seed, meter).map_err(|error| Failure::internal("plan time", error))?;
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

/// Sizes that batches are tried with first, in groups; the best of them are tried again with their neighbours.
const COARSE: [usize; 20] = [8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136, 144, 152, 160];
/// How far a neighbour is from a size that was best.
const NEIGHBOURS: [isize; 7] = [-6, -4, -2, 0, 2, 4, 6];
/// Sizes whose neighbours are tried.
const PROMISING: usize = 2;
/// A first look takes one window of so many, and no fewer than [`LEAST_WINDOWS`].
const FIRST_LOOK: u32 = 10;
const LEAST_WINDOWS: u32 = 20;

/// Something of a host that is made better.
type Remedy = (&'static str, fn(&mut Host));
/// What is made better to see what limits.
const REMEDIES: [Remedy; 4] = [
    ("generation (servers twice as fast)", |host| host.generation.throughput.iter_mut().for_each(|(_, rate)| *rate *= 2.0)),
    ("proofs (workers twice as fast)", |host| {
        host.proof.tokens_per_second *= 2.0;
        host.proof.group_seconds /= 2.0;
    }),
    ("upload (twice as fast)", |host| {
        host.upload.bytes_per_second *= 2.0;
        host.upload.seconds /= 2.0;
    }),
    ("the deadline (no safety blocks)", |host| host.schedule.safety_blocks = 0.0),
];

fn simulate<'a>(host: &'a Host, windows: u32, seed: u64, meter: &Meter) -> Result<Summary<'a>, TimeBudgetError> {
    let few = (windows / FIRST_LOOK).max(LEAST_WINDOWS).min(windows);
    let first_looks = u64::from(few) * (1 + REMEDIES.len() + COARSE.len()) as u64;
    meter.begin("Simulating", Unit::Things("windows"), u64::from(windows) + first_looks);
    let (scheduled, choice) = scheduled(host, windows, seed, meter)?;
    let remedied = remedied(host, few, seed, meter)?;
    Ok(Summary { host, scheduled, batched: best_batches(host, windows, few, seed, meter)?, choice, remedied })
}

/// What each remedy brings, as a share of what there is.
fn remedied(host: &Host, windows: u32, seed: u64, meter: &Meter) -> Result<Vec<(&'static str, f64)>, TimeBudgetError> {
    let (known, _) = scheduled(host, windows, seed, meter)?;
    side_by_side(&REMEDIES, |(name, remedy)| {
        let mut better = host.clone();
        remedy(&mut better);
        Ok((*name, scheduled(&better, windows, seed, meter)?.0.mean / known.mean.max(1.0) - 1.0))
    })
}

fn starts(windows: u32, meter: &Meter) -> impl Iterator<Item = u64> {
    let counted = |_: &u64| meter.add(1);
    (0..u64::from(windows)).inspect(counted).map(|window| window * grail_protocol::constants::WINDOW_LENGTH)
}

fn scheduled(host: &Host, windows: u32, seed: u64, meter: &Meter) -> Result<(Run, Choice), TimeBudgetError> {
    let (mut schedule, mut world) = (windows::schedule(host)?, World::new(host, seed));
    let outcomes = starts(windows, meter).map(|window| windows::scheduled(host, &mut world, &mut schedule, window)).collect();
    let choice = schedule.choice();
    Ok((Run::new(format!("schedule, {} groups", choice.groups), host, outcomes, &world), choice))
}

fn batched(host: &Host, size: usize, windows: u32, seed: u64, meter: &Meter) -> Result<(usize, Run), TimeBudgetError> {
    let (mut batches, mut world) = (Batches::new(host, size)?, World::new(host, seed));
    let outcomes = starts(windows, meter).map(|window| windows::batched(host, &mut world, &mut batches, window)).collect();
    Ok((size, Run::new(format!("batches of {size} groups"), host, outcomes, &world)))
}

/// Batches of the sizes that bring most, the best first: a first look at all sizes, then all windows for the neighbours of the
/// best ones.
fn best_batches(host: &Host, windows: u32, few: u32, seed: u64, meter: &Meter) -> Result<Vec<Run>, TimeBudgetError> {
    let by_mean = |runs: &mut Vec<(usize, Run)>| runs.sort_by(|(_, a), (_, b)| b.mean.total_cmp(&a.mean));
    let mut looked = side_by_side(&COARSE, |size| batched(host, *size, few, seed, meter))?;
    by_mean(&mut looked);
    let near = |size: usize| NEIGHBOURS.iter().filter_map(move |away| size.checked_add_signed(*away)).filter(|size| *size > 0);
    let sizes: BTreeSet<usize> = looked.iter().take(PROMISING).flat_map(|(size, _)| near(*size)).collect();
    meter.expect(u64::from(windows) * sizes.len() as u64);
    let mut runs = side_by_side(&sizes.into_iter().collect::<Vec<_>>(), |size| batched(host, *size, windows, seed, meter))?;
    by_mean(&mut runs);
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

/// All of them, on as many threads as there are cores; in their order.
fn side_by_side<T: Sync, R: Send>(
    all: &[T],
    run: impl Fn(&T) -> Result<R, TimeBudgetError> + Sync,
) -> Result<Vec<R>, TimeBudgetError> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(all.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mine = std::iter::from_fn(|| {
            let at = next.fetch_add(1, Ordering::Relaxed);
            Some((at, run(all.get(at)?)))
        });
        mine.collect::<Vec<_>>()
    };
    let mut results: Vec<(usize, Result<R, TimeBudgetError>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests;
