//! Commands and their arguments. Parsing, settings and logging happen here; each command's work is in its own room.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use grail_mining::run as mine;
use grail_process::{Meter, Unit};
use grail_settings as settings;
use grail_settings::{Loaded, Settings, Sources};
use grail_subnet::reader;
use grail_supervision::exit::Failure;
use grail_supervision::{log, secrets};
use grail_validation as validate;
use grail_workers::plan;

use crate::view::View;
use crate::{doctor, explain, incident, layout, progress, publish, simulate};

/// Mines GRAIL: generates rollouts, proves them, signs them, uploads one file per window.
#[derive(Debug, Parser)]
#[command(name = "grail-supervisor", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXIT_CODES: &str = "Exit codes: 0 done · 1 not registered, `validate` rejected a window, or something failed in `doctor` · 2 wrong usage, or `validate` found no file · \
3 `validate` could not be set up · 64 configuration · 65 dataset or checkpoint · 69 bucket, port or program unavailable · 70 internal · \
75 another supervisor has the state folder · 76 every child of a kind is quarantined · 77 wallet";

#[derive(Debug, Args)]
struct Common {
    /// Configuration file; `host.toml` in this folder is taken where it exists.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// File with the guide's variables; `.env` in this folder is taken where it exists. It wins over the environment.
    #[arg(long, global = true, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Tasks: the same as `--set environment.dataset=PATH`.
    #[arg(long, global = true, value_name = "PATH")]
    dataset: Option<String>,
    /// Overrides one setting; wins over everything.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// More of what happens: -v as for `run`, -vv everything of this program. `RUST_LOG` says it in detail, and wins.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mine (the default).
    #[command(alias = "mine")]
    Run(RunArguments),
    /// Judge the settings and the layout without starting anything.
    Check,
    /// Look at everything an operator gets wrong: wallet, chain, clock, registration, buckets and their keys, trainer,
    /// checkpoint, drand, disk, memory, ports, GPUs, libtorch and generation server, each with what to do. Exit code 1 when
    /// something failed, 0 otherwise.
    Doctor {
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Print layout, command lines, environment and addresses without starting anything; refuse what cannot work.
    Plan(layout::Arguments),
    /// What the settings are.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Put a model directory into the trainer's bucket as a FULL checkpoint.
    PublishCheckpoint(publish::Arguments),
    /// Fetch window files and judge them as the network's validator does.
    Validate(ValidateArguments),
    /// Mine a host in virtual time: rollouts per window, idle GPUs, lateness, and what limits.
    Simulate(simulate::Arguments),
    /// A checkpoint's template and tokenizer, for the supervisor that starts this.
    #[command(hide = true)]
    ReadCheckpoint(reader::program::Arguments),
    /// What the supervisor of this state folder is doing, as JSON.
    Status,
    /// Tell the story of a window, with what was lost and why.
    Explain {
        /// First block of the window; default: the last one on record.
        window: Option<u64>,
    },
    /// Pack journal, log, status and settings (without secrets) into one file, for somebody who helps.
    Incident {
        /// Where to write it; default: grail-incident-<time>.tar.gz in this folder.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Every setting, its value and who set it. Secrets are hidden.
    Explain,
}

/// What a window's randomness is made of. The same as `beacon.drand`.
#[derive(Debug, Clone, Copy, Args, Default)]
struct Drand {
    /// With drand's rounds, whatever the settings say.
    #[arg(long, conflicts_with = "no_drand")]
    use_drand: bool,
    /// Without drand: the block hash alone makes a window's randomness. The same as `--set beacon.drand=false`.
    #[arg(long)]
    no_drand: bool,
}

#[derive(Debug, Args)]
struct ValidateArguments {
    #[command(flatten)]
    judged: validate::Arguments,
    #[command(flatten)]
    drand: Drand,
}

#[derive(Debug, Args, Default)]
struct RunArguments {
    /// Stop after so many windows that were not skipped.
    #[arg(long, value_name = "N")]
    windows: Option<u64>,
    /// Print plain lines even on a terminal.
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    drand: Drand,
}

/// Time for threads that still work when the command is done, for the last lines of the log, and for the last word: a disk or a
/// terminal that hangs must not keep the process from ending.
const LAST_THREADS: Duration = Duration::from_millis(500);
const LAST_LINES: Duration = Duration::from_millis(250);

/// Parses, runs, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    if let Err(error) = grail_process::privacy::keep_to_ourselves() {
        return fail(&Failure::internal("keep its memory and files to itself", error));
    }
    let cli = Cli::parse_from(overrides_first(std::env::args_os()));
    if let Some(Command::ReadCheckpoint(arguments)) = &cli.command {
        // On this thread, whose stack is bounded, and without anything else of the supervisor.
        return reader::program::main(arguments);
    }
    // Before anything is opened or started. Where the kernel refuses, `run` and `doctor` say what the limit allows.
    let _ = grail_process::limits::raise_open_files();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure::internal("start the runtime", error)),
    };
    let outcome = runtime.block_on(dispatch(cli));
    runtime.shutdown_timeout(LAST_THREADS);
    log::flush(LAST_LINES);
    match outcome {
        Ok(code) => code,
        Err(failure) => fail(&failure),
    }
}

/// Every `--set` in front of the verb: of a global option given on both sides of it, clap keeps one side's values only.
fn overrides_first(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.fuse();
    let (mut first, mut others): (Vec<OsString>, Vec<OsString>) = (arguments.next().into_iter().collect(), Vec::new());
    while let Some(argument) = arguments.next() {
        if argument == "--set" {
            first.push(argument);
            first.extend(arguments.next());
        } else if argument.as_encoded_bytes().starts_with(b"--set=") {
            first.push(argument);
        } else {
            others.push(argument);
        }
    }
    first.append(&mut others);
    first
}

fn fail(failure: &Failure) -> ExitCode {
    log::report(failure);
    ExitCode::from(failure)
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    // The environment is read here, once.
    let environment: BTreeMap<String, String> =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
    let drand = match &cli.command {
        Some(Command::Run(arguments)) => arguments.drand,
        Some(Command::Validate(arguments)) => arguments.drand,
        _ => Drand::default(),
    };
    let sources = sources(&cli.common, &environment, drand);
    let loaded = load(&sources, &environment);
    let level = |usual| level(usual, cli.common.verbose);
    match cli.command.unwrap_or(Command::Run(RunArguments::default())) {
        Command::Run(arguments) => run(&loaded?.settings, &arguments, level("info")).await,
        Command::Check => check(&loaded?.settings),
        Command::Doctor { json } => {
            // The local bucket server tells every refusal, and the doctor asks for some.
            log::to_stderr(level("error,s3s=off"));
            let loaded = loaded?;
            let rows = watched("Looking at everything", async |_| doctor::examine(&loaded).await).await;
            log::print(&if json { doctor::json(&rows) } else { doctor::table(&rows) });
            let failed = rows.iter().any(|row| row.verdict == doctor::Verdict::Failed);
            Ok(ExitCode::from(u8::from(failed)))
        }
        Command::Config { command: ConfigCommand::Explain } => {
            log::print(&settings::explain(&loaded?));
            Ok(ExitCode::SUCCESS)
        }
        Command::PublishCheckpoint(arguments) => {
            log::to_stderr(level("warn"));
            let settings = loaded?.settings;
            let publish = async |meter: &Meter| publish::publish(&settings, &arguments, meter).await;
            log::print(&watched("Publishing", publish).await?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Validate(arguments) => {
            log::to_stderr(level("warn"));
            let settings = loaded.map(|loaded| loaded.settings);
            let judge = async |meter: &Meter| validate::command(settings, &arguments.judged, meter).await;
            match watched("Judging", judge).await {
                Ok(verdict) => {
                    log::print(&verdict.text);
                    Ok(ExitCode::from(verdict.code))
                }
                Err(failure) => {
                    log::report(&failure);
                    Ok(ExitCode::from(validate::NOTHING_JUDGED))
                }
            }
        }
        Command::Plan(arguments) => {
            let settings = &loaded?.settings;
            let report = async |_: &Meter| layout::report(settings, plan::of_host(settings), &arguments);
            log::print(&watched("Planning", report).await?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Simulate(arguments) => {
            log::print(&watched("Simulating", async |meter| simulate::command(&arguments, meter)).await?);
            Ok(ExitCode::SUCCESS)
        }
        // It never comes here: see `main`.
        Command::ReadCheckpoint(arguments) => Ok(reader::program::main(&arguments)),
        Command::Status => show_status(&state_of(loaded, &sources)),
        Command::Explain { window } => {
            let state = state_of(loaded, &sources);
            log::print(&watched("Reading the journal", async |_| explain::window(&state, window)).await?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Incident { output } => {
            let loaded = loaded?;
            log::print(&watched("Packing", async |_| incident::pack(&loaded, &environment, output)).await?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Shows on a terminal how far `work` is while it goes on.
async fn watched<T>(doing: &str, work: impl AsyncFnOnce(&Meter) -> T) -> T {
    let variable = |name: &str| std::env::var(name).ok();
    let surface = match std::io::stderr().is_terminal() {
        true if log::takes_pictures(variable) => progress::Surface::Picture,
        true => progress::Surface::Lines,
        false => progress::Surface::Nothing,
    };
    let meter = Meter::default();
    meter.begin(doing, Unit::None, 0);
    let shown = progress::show(&meter, surface);
    let done = work(&meter).await;
    // Before anything else is written.
    drop(shown);
    done
}

fn sources(common: &Common, environment: &BTreeMap<String, String>, drand: Drand) -> Sources {
    let mut overrides = Vec::new();
    for text in &common.overrides {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        overrides.push((key.trim().to_owned(), value.trim().to_owned()));
    }
    if let Some(dataset) = &common.dataset {
        overrides.push(("environment.dataset".into(), dataset.clone()));
    }
    if drand.use_drand || drand.no_drand {
        overrides.push(("beacon.drand".into(), drand.use_drand.to_string()));
    }
    let beside = PathBuf::from("host.toml");
    Sources {
        file: common.config.clone().or_else(|| Some(beside).filter(|file| file.exists())),
        environment: environment.clone(),
        dot_env: common.env_file.clone(),
        overrides,
    }
}

fn load(sources: &Sources, environment: &BTreeMap<String, String>) -> Result<Loaded, Failure> {
    let loaded = settings::load(sources)?;
    secrets::know(secrets::of_host(loaded.secrets(), environment));
    Ok(loaded)
}

/// The level of the log: a command's usual one, or what `-v` asks for beyond it.
fn level(usual: &'static str, verbose: u8) -> &'static str {
    match verbose {
        0 => usual,
        1 => "info",
        _ => {
            "info,grail_supervisor=debug,grail_mining=debug,grail_validation=debug,grail_workers=debug,grail_subnet=debug,\
             grail_supervision=debug,grail_chain=debug,grail_store=debug"
        }
    }
}

async fn run(settings: &Settings, arguments: &RunArguments, level: &str) -> Result<ExitCode, Failure> {
    let variable = |name: &str| std::env::var(name).ok();
    let live = std::io::stdout().is_terminal() && !arguments.plain && log::takes_pictures(variable);
    log::to_state(&settings.state, live, level).map_err(|error| Failure::internal("start the log's threads", error))?;
    let picture = if live { View::Live } else { View::Plain };
    mine::run(settings, arguments.windows, |board, end| crate::view::show(board, picture, end)).await?;
    Ok(ExitCode::SUCCESS)
}

fn check(settings: &Settings) -> Result<ExitCode, Failure> {
    let plan = plan::of_host(settings)?;
    let doubts = settings.doubt().into_iter().chain(settings.generation.exposed());
    let doubt: String = doubts
        .map(|doubt| {
            format!(
                "Warning: {doubt}
"
            )
        })
        .collect();
    log::print(&format!("The settings are in order.\n{doubt}{}", layout::outline(settings, &plan)));
    Ok(ExitCode::SUCCESS)
}

/// The state folder, for looking only. What is wrong with the settings is said, and hinders nobody.
fn state_of(loaded: Result<Loaded, Failure>, sources: &Sources) -> PathBuf {
    match loaded {
        Ok(loaded) => loaded.settings.state,
        Err(failure) => {
            let state = settings::state_folder(sources);
            log::say(&format!("grail-supervisor: {failure}\n(looking at {} all the same)", state.display()));
            state
        }
    }
}

fn show_status(state: &Path) -> Result<ExitCode, Failure> {
    let path = state.join("status.json");
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::Unavailable(format!("there is no status at {path:?} ({error}); has a supervisor run with this state folder?"))
    })?;
    log::print(&text);
    if grail_supervision::state::StateFolder::is_locked(state) {
        return Ok(ExitCode::SUCCESS);
    }
    log::say("No supervisor is running; this is what the last one left.");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn overrides_on_both_sides_of_the_verb_count() {
        let line = ["grail-supervisor", "--set", "a=1", "--config", "x", "run", "--set=b=2", "--windows", "3", "--set", "c=3"];
        let cli = super::Cli::parse_from(super::overrides_first(line.into_iter().map(Into::into)));
        assert_eq!(cli.common.overrides, ["a=1", "b=2", "c=3"]);
        assert!(matches!(cli.command, Some(super::Command::Run(super::RunArguments { windows: Some(3), .. }))));
    }

    #[test]
    fn the_guides_command_lines_are_understood() {
        let parse = |line: &str| super::Cli::parse_from(super::overrides_first(line.split(' ').map(Into::into)));
        for line in ["g -vv mine", "g mine -vv", "g -vv run", "g run -v -v --use-drand"] {
            let cli = parse(line);
            assert!(cli.common.verbose == 2 && matches!(cli.command, Some(super::Command::Run(_))), "{line}");
        }
        let cli = parse("g -vv validate --test-mode --no-drand");
        assert!(matches!(cli.command, Some(super::Command::Validate(arguments)) if arguments.drand.no_drand));
        assert!(super::level("warn", 0) == "warn" && super::level("warn", 2).contains("grail_mining=debug"));
    }

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
