//! `check`: everything that `run` judges before it asks anybody, each with the words and the exit code of `run`. It looks at all of
//! it, whatever is wrong with one thing, starts nothing and asks nobody.

use std::process::ExitCode;

use grail_settings::Loaded;
use grail_subnet::dataset::check_dataset;
use grail_subnet::wallet;
use grail_supervision::exit::Failure;
use grail_supervision::log;
use grail_workers::preflight::Preflight;
use grail_workers::{ChildPrograms, Programs};

use crate::layout;

/// What is left to `doctor`.
const NOT_LOOKED_AT: &str = "Not looked at: chain, registration, bucket and its keys, checkpoint, drand, disk, memory, ports, the GPUs \
                             themselves,\nwhether proof worker and generation server start. `grail-supervisor doctor` does.\n";

/// Tells the layout and every warning; then, on standard error, everything that would keep `run` from starting. The exit code is
/// that of the first.
pub fn command(loaded: &Loaded) -> ExitCode {
    let settings = &loaded.settings;
    let preflight = Preflight::of_host(settings);
    let warnings = settings.doubt().into_iter().chain(preflight.warnings(settings));
    let warnings: String = warnings.map(|warning| format!("Warning: {warning}\n")).collect();
    let (plan, mistakes) = layout::judged(loaded, preflight);
    let outline = plan.map(|plan| layout::outline(settings, &plan)).unwrap_or_default();
    let mut failures: Vec<Failure> = Vec::new();
    failures.extend((!mistakes.0.is_empty()).then(|| mistakes.into()));
    // What is told as a mistake in the settings is not told once more.
    let sound = |section: &str| !loaded.mistakes.concern(&[section]);
    if sound("wallet") {
        failures.extend(wallet::load(&settings.wallet).err());
    }
    if sound("programs") {
        let programs = [ChildPrograms::ProofWorker, ChildPrograms::GenLauncher];
        failures.extend(Programs::find(settings.programs.as_deref(), &programs).err());
    }
    if sound("environment") {
        failures.extend(check_dataset(settings).err());
    }
    let verdict = if failures.is_empty() { "Settings, layout, wallet, programs and data set are in order.\n" } else { "" };
    log::print(&format!("{verdict}{warnings}{outline}{NOT_LOOKED_AT}"));
    failures.iter().for_each(log::report);
    failures.first().map_or(ExitCode::SUCCESS, ExitCode::from)
}
