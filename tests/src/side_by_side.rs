//! Runs scenarios that mostly wait for a clock at the same time, and prints a line for each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One scenario: its name, and what it does. It panics or gives an error where the product fails; its text is the outcome.
pub struct Scenario {
    /// How it is called, and filtered.
    pub name: String,
    /// What it does.
    pub play: Box<dyn FnOnce() -> Result<String, String> + Send>,
}

impl Scenario {
    /// A scenario.
    pub fn new(name: impl Into<String>, play: impl FnOnce() -> Result<String, String> + Send + 'static) -> Self {
        Self { name: name.into(), play: Box::new(play) }
    }
}

/// The words of the command line that filter scenarios; flags of the test harness are left aside.
pub fn filters() -> Vec<String> {
    std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect()
}

/// Plays the scenarios whose name contains one of the filters, `at_once` at a time, and prints a table. The exit code tells
/// whether all of them held.
pub fn play(scenarios: Vec<Scenario>, at_once: usize) -> ExitCode {
    let filters = filters();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let queue: Vec<Scenario> = scenarios.into_iter().filter(|scenario| wanted(&scenario.name)).rev().collect();
    let (count, begun) = (queue.len(), Instant::now());
    let (queue, failed) = (Mutex::new(queue), Mutex::new(Vec::new()));
    let next = || queue.lock().expect("no scenario runs under the lock").pop();
    std::thread::scope(|scope| {
        for place in 0..at_once.min(count) {
            let (next, failed) = (&next, &failed);
            scope.spawn(move || {
                // Not all at the same moment: starting is what costs processor time.
                std::thread::sleep(Duration::from_millis(400 * place as u64));
                while let Some(scenario) = next() {
                    one(scenario, failed);
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no scenario runs under the lock");
    for (name, why) in &failed {
        println!("\n---- {name}\n{why}");
    }
    println!("\n{} of {count} scenarios held, {:.0} s.", count - failed.len(), begun.elapsed().as_secs_f64());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(scenario: Scenario, failed: &Mutex<Vec<(String, String)>>) {
    let Scenario { name, play } = scenario;
    let begun = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(play)).unwrap_or_else(|panic| Err(words(panic.as_ref())));
    let seconds = begun.elapsed().as_secs_f64();
    match outcome {
        Ok(told) => println!("{name:<44} ok      {seconds:5.1} s  {told}"),
        Err(why) => {
            let first = why.lines().next().unwrap_or_default().to_owned();
            println!("{name:<44} FAILED  {seconds:5.1} s  {first}");
            failed.lock().expect("no scenario runs under the lock").push((name, why));
        }
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panicked").to_owned()
}
