//! `grail-supervisor run`: everything is judged first, then the children are started, then windows are mined.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use grail_process::Spawner;
use grail_protocol::keys::{Hotkey, KeyScheme};
use grail_protocol::time_budget::TimeBudget;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::buckets::{Buckets, preflight};
use crate::chain::{self, Chain, ChainError, LocalChain};
use crate::checkpoints::{Checkpoints, check_dataset};
use crate::children::{ChildPrograms, Generator, LauncherSettings, Programs, ProofPool, WorkerSettings};
use crate::completions::Completions;
use crate::exit::Failure;
use crate::groups::Workshop;
use crate::journal::{Journal, SupervisorStarted, SupervisorStopped};
use crate::plan::{Plan, VisibleGpus};
use crate::settings::{self, ConfigError, ConfigErrors, Settings};
use crate::state::StateFolder;
use crate::status::{self, Board};
use crate::view::{self, View};
use crate::wallet;
use crate::window::{ClosingTime, Miner};

/// UID 0 of the local chain.
const LOCAL_TRAINER: &str = "//Trainer";

/// Time for the last records to reach the disk.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(2);

/// What the command line adds to the settings.
#[derive(Debug)]
pub struct Options {
    /// Stop after so many attempted windows.
    pub windows: Option<u64>,
    /// How progress is shown.
    pub view: View,
}

/// Everything that was judged before anything is started.
struct Prepared {
    state: StateFolder,
    plan: Plan,
    programs: Programs,
    hotkey: Arc<Hotkey>,
    dataset: PathBuf,
    buckets: Buckets,
    chain: Arc<dyn Chain>,
    trainer: String,
    trainer_bucket: grail_store::bucket::Bucket,
}

/// Mines until told to stop.
///
/// # Errors
/// When something is wrong before the start. Trouble later is dealt with window by window.
pub async fn run(settings: &Settings, options: Options) -> Result<(), Failure> {
    let plan = plan(settings)?;
    let prepared = prepare(settings, plan).await?;
    let board = Board::default();
    board.update(|status| {
        status.pid = std::process::id();
        status.hotkey = prepared.hotkey.address().into();
    });
    let file = prepared.state.root().join("status.json");
    let keeper = tokio::spawn(status::keep_file(board.clone(), file.clone()));
    let end = CancellationToken::new();
    let viewer = tokio::spawn(view::show(board.clone(), options.view, end.clone()));
    let journal = Journal::open(&prepared.state.journal());
    journal.record(&SupervisorStarted {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        hotkey: prepared.hotkey.address().into(),
    });
    let outcome = work(settings, prepared, &board, &journal, options.windows).await;
    journal.record(&SupervisorStopped { pid: std::process::id() });
    journal.flush(JOURNAL_PATIENCE);
    board.update(|status| status.events = journal.counts());
    keeper.abort();
    end.cancel();
    let _ = viewer.await;
    if let Err(error) = status::write_file(&board.snapshot(), &file) {
        tracing::warn!(%error, "The status file cannot be written.");
    }
    outcome
}

async fn work(
    settings: &Settings,
    prepared: Prepared,
    board: &Board,
    journal: &Journal,
    windows: Option<u64>,
) -> Result<(), Failure> {
    let spawner = Spawner::start().map_err(|error| Failure::internal("start the spawner thread", error))?;
    let mut miner = miner(settings, &prepared, spawner, board, journal)?;
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = signals()?;
    let mut next_signal = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let workshop = miner.workshop.clone();
    let orderly = async {
        miner.run(&stop, windows).await;
        crate::failpoint::pass("shutting-down").await;
        tokio::join!(workshop.proofs.stop(), workshop.generator.stop());
    };
    tokio::pin!(orderly);
    tokio::select! {
        () = &mut orderly => return Ok(()),
        name = next_signal() => {
            tracing::info!(signal = name, "Stopping: finished groups are uploaded, then the children end. A second signal ends at once.");
            stop.cancel();
        }
    }
    let budget = Duration::from_secs_f64(settings.shutdown_budget);
    tokio::select! {
        () = &mut orderly => return Ok(()),
        name = next_signal() => tracing::warn!(signal = name, "A second signal: ending at once."),
        () = tokio::time::sleep(budget) => tracing::warn!(seconds = settings.shutdown_budget, "The shutdown budget is used up: ending at once."),
    }
    // The children's groups are killed when their tasks are dropped; what is in the spool stays there.
    let quick = async { tokio::join!(workshop.proofs.stop(), workshop.generator.stop()) };
    let _ = tokio::time::timeout(Duration::from_secs(3), quick).await;
    Ok(())
}

fn signals() -> Result<(tokio::signal::unix::Signal, tokio::signal::unix::Signal), Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::internal("listen for signals", error));
    Ok((listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?))
}

fn miner(settings: &Settings, prepared: &Prepared, spawner: Spawner, board: &Board, journal: &Journal) -> Result<Miner, Failure> {
    let grace = Duration::from_secs_f64((settings.shutdown_budget / 6.0).clamp(0.5, 10.0));
    let workers = WorkerSettings {
        programs: prepared.programs.clone(),
        sockets: prepared.state.sockets(),
        slots: prepared.plan.proof.clone(),
        dtype: settings.proof.dtype.clone(),
        threads: settings.proof.threads,
        grace,
    };
    let launcher = LauncherSettings {
        programs: prepared.programs.clone(),
        socket: prepared.state.sockets().join("generation.sock"),
        generation: settings.generation.clone(),
        gpus: prepared.plan.generation.clone(),
        grace,
    };
    let completions =
        Completions::new(settings.generation.max_concurrent).map_err(|error| Failure::internal("make the HTTP client", error))?;
    let budget = TimeBudget::new(prepared.chain.nominal_block_seconds(), settings.safety_blocks)
        .map_err(|error| Failure::internal("plan time", error))?;
    let workshop = Workshop {
        hotkey: prepared.hotkey.clone(),
        completions,
        generator: Generator::start(launcher, spawner.clone(), board.clone()),
        proofs: ProofPool::start(workers, spawner, board.clone()),
        board: board.clone(),
        max_model_length: settings.generation.max_model_length,
    };
    let trainer = settings.trainer.clone().unwrap_or_else(|| prepared.trainer.clone());
    Ok(Miner {
        chain: prepared.chain.clone(),
        workshop: Arc::new(workshop),
        bucket: prepared.buckets.own.clone(),
        checkpoints: Checkpoints::new(prepared.trainer_bucket.clone(), &settings.cache, trainer, prepared.dataset.clone()),
        spool: prepared.state.spool(),
        spool_budget: settings.spool_budget,
        windows: prepared.state.windows(),
        board: board.clone(),
        journal: journal.clone(),
        gate: settings.gate,
        budget,
        closing: ClosingTime::default(),
        groups_in_flight: settings.generation.groups_in_flight as usize,
        shutdown_budget: settings.shutdown_budget,
    })
}

/// The layout of the host, with every mistake at once.
///
/// # Errors
/// GPUs that are out of range or used twice, or a part of the software that this version does not have.
pub fn plan(settings: &Settings) -> Result<Plan, Failure> {
    // The environment is read here only to learn which GPUs this process was given.
    let variable = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let visible = VisibleGpus::new(variable.as_deref(), VisibleGpus::installed());
    let mut errors = Vec::new();
    let plan = Plan::new(&settings.generation, &settings.proof, &visible).map_err(|found| errors.extend(found)).ok();
    let mut absent = |key: &str, value: &str, remedy: &str| {
        let reason = format!("is not part of this version; {remedy}");
        errors.push(ConfigError { key: key.into(), value: Some(value.into()), origin: None, reason });
    };
    if settings.generation.backend != "embedded" {
        absent("generation.backend", &settings.generation.backend, "use \"embedded\"");
    }
    if let settings::Chain::Network { name, .. } = &settings.chain {
        absent("chain.network", name, "use \"local\"");
    }
    match plan {
        Some(plan) if errors.is_empty() => Ok(plan),
        _ => Err(ConfigErrors(errors).into()),
    }
}

async fn prepare(settings: &Settings, plan: Plan) -> Result<Prepared, Failure> {
    let state = StateFolder::lock(&settings.state)?;
    let hotkey = Arc::new(wallet::load(&settings.wallet)?);
    if hotkey.scheme() == KeyScheme::Ed25519 {
        tracing::warn!(
            "The hotkey is ed25519. The network's validators verify sr25519 only: this key is good for the local chain."
        );
    }
    let programs = Programs::find(settings.programs.as_deref(), &[ChildPrograms::ProofWorker, ChildPrograms::GenLauncher])?;
    let dataset = check_dataset(settings.dataset.as_deref())?;
    let attempt = Duration::from_secs_f64(settings.upload_timeout);
    let buckets = Buckets::open(&settings.storage, attempt, true).await?;
    preflight(&buckets.own).await?;
    let chain = open_chain(settings, &hotkey, &buckets)?;
    register(chain.as_ref(), &hotkey, &buckets).await?;
    let (trainer, commitment) = chain::trainer(chain.as_ref()).await?;
    let trainer_bucket = buckets.published(&commitment)?;
    Ok(Prepared { state, plan, programs, hotkey, dataset, buckets, chain, trainer, trainer_bucket })
}

/// The chain of the settings; a local one is founded with the trainer as UID 0 and this hotkey as UID 1.
///
/// # Errors
/// When the local chain's file cannot be used.
pub fn open_chain(settings: &Settings, hotkey: &Hotkey, buckets: &Buckets) -> Result<Arc<dyn Chain>, Failure> {
    match &settings.chain {
        settings::Chain::Local { genesis, block_seconds, file } => {
            tracing::info!(
                genesis,
                block_seconds,
                file = %file.display(),
                "A local chain stands in for the network's: a block clock, with registration and commitments in a file."
            );
            let chain = LocalChain::new(*genesis, *block_seconds, file.clone());
            let trainer = local_trainer()?;
            chain.found(&[
                (trainer.address().to_owned(), Buckets::local_trainer()),
                (hotkey.address().to_owned(), buckets.commitment.clone()),
            ])?;
            Ok(Arc::new(chain))
        }
        settings::Chain::Network { name, .. } => Err(Failure::Internal(format!("the chain {name} was not refused by the plan"))),
    }
}

/// The key of the local chain's trainer.
///
/// # Errors
/// Never in practice: the development URI is fixed.
pub fn local_trainer() -> Result<Hotkey, Failure> {
    Hotkey::from_uri(LOCAL_TRAINER).map_err(|error| Failure::internal("derive the local trainer's key", error))
}

async fn register(chain: &dyn Chain, hotkey: &Hotkey, buckets: &Buckets) -> Result<(), Failure> {
    let address = hotkey.address();
    if !chain.hotkeys().await?.iter().any(|member| member == address) {
        return Err(ChainError::NotRegistered { hotkey: address.to_owned(), netuid: 81 }.into());
    }
    Ok(chain.commit_bucket(address, &buckets.commitment).await?)
}
