//! `grail-supervisor run`: everything is judged first, then the children are started, then windows are mined.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::FusedFuture;
use grail_chain::node::Endpoints;
use grail_chain::relays::Relays;
use grail_process::orphans::{Orphan, become_subreaper};
use grail_process::{Aside, Spawner, clock, limits};
use grail_protocol::keys::{Hotkey, KeyScheme};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backstop::Backstop;
use crate::buckets::{Buckets, preflight};
use crate::chain::{Chain, Joined, LocalChain, NetworkChain, genesis, join};
use crate::checkpoints::Checkpoints;
use crate::children::{ChildEvent, ChildPrograms, Elsewhere, Generator, LauncherSettings, Programs, ProofPool, WorkerSettings};
use crate::completions::Completions;
use crate::dataset::check_dataset;
use crate::exit::Failure;
use crate::gpu::{Gpus, Nvml};
use crate::groups::Workshop;
use crate::journal::{Journal, SupervisorStarted, SupervisorStopped};
use crate::open_files;
use crate::plan::{Plan, VisibleGpus};
use crate::reader::Readers;
use crate::schedule::{Rules, Schedule};
use crate::settings::{self, ConfigErrors, Settings};
use crate::shutdown::{Host, Shutdown, grace_warning};
use crate::state::{Before, StateFolder};
use crate::status::{Board, StatusFile};
use crate::view::{self, View};
use crate::wallet;
use crate::window::{Heads, Miner, Subnet};

/// UID 0 of the local chain.
const LOCAL_TRAINER: &str = "//Trainer";

/// Pieces of work that may wait for the disk of the spool: more than a window's groups under way, and what is taken out of them.
const SPOOL_QUEUE: usize = 1024;
/// Longest pause between two looks for orphans.
const SWEEP: Duration = Duration::from_secs(1);
/// Time for the last orphans to be gone, for the last records to reach the disk, and for the last look at the picture and the
/// status file.
const LAST_STEP: Duration = Duration::from_secs(2);

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
    buckets: Arc<Buckets>,
    chain: Arc<dyn Chain>,
    joined: Joined,
    relays: Option<Relays>,
}

/// Mines until told to stop.
///
/// # Errors
/// When something is wrong before the start. Trouble later is dealt with window by window.
pub async fn run(settings: &Settings, options: Options) -> Result<(), Failure> {
    let plan = plan(settings)?;
    let prepared = prepare(settings, plan).await?;
    let journal = Journal::open(&prepared.state.journal());
    let board = Board::with_journal(journal.clone());
    board.update(|status| {
        status.pid = std::process::id();
        status.hotkey = prepared.hotkey.address().into();
    });
    let threads = |error| Failure::internal("start a thread", error);
    let file = StatusFile::at(prepared.state.root().join("status.json")).map_err(threads)?;
    let keeper = tokio::spawn(file.clone().keep(board.clone()));
    let end = CancellationToken::new();
    let shown = view::show(board.clone(), options.view, end.clone()).map_err(threads)?;
    journal.record(&SupervisorStarted {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        hotkey: prepared.hotkey.address().into(),
    });
    let zero = clock::monotonic();
    let mut shutdown = Shutdown::new(Duration::ZERO, Duration::from_secs_f64(settings.shutdown_budget));
    let outcome = work(settings, prepared, &board, &journal, options.windows, (zero, &mut shutdown)).await;
    let step = || shutdown.last_step(zero.elapsed(), LAST_STEP);
    journal.record(&SupervisorStopped { pid: std::process::id() });
    journal.flush(step());
    board.update(|status| status.events = journal.counts());
    keeper.abort();
    end.cancel();
    let _ = tokio::time::timeout(step(), shown).await;
    file.write_last(&board, step()).await;
    outcome
}

async fn work(
    settings: &Settings,
    prepared: Prepared,
    board: &Board,
    journal: &Journal,
    windows: Option<u64>,
    (zero, shutdown): (Instant, &mut Shutdown),
) -> Result<(), Failure> {
    if let Some(warning) = grace_warning(settings.shutdown_budget, settings.shutdown_grace, host()) {
        tracing::warn!(warning, "The time for an orderly stop is short.");
    }
    match prepared.state.before() {
        Before::Orderly => {}
        before => tracing::warn!(?before, "The last run with this state folder did not end in order."),
    }
    become_subreaper().map_err(|error| Failure::internal("become the subreaper of the children", error))?;
    let records = prepared.state.end_survivors(board)?;
    let spawner = Spawner::recording(records).map_err(|error| Failure::internal("start the spawner thread", error))?;
    let sweeper = AbortOnDropHandle::new(tokio::spawn(sweep_orphans(spawner.clone(), board.clone())));
    let signals = Signals::listen()?;
    let budget = Duration::from_secs_f64(settings.shutdown_budget);
    let backstop = Backstop::keep(budget, spawner.clone());
    let backstop = backstop.map_err(|error| Failure::internal("start the backstop's thread", error))?;
    let mut miner = miner(settings, &prepared, spawner.clone(), board, journal)?;
    // Goes on beside the mining.
    let _publishing = prepared.joined.publishing;
    let (outcome, planned) = attend(&mut miner, windows, signals, (zero, budget), &backstop).await;
    *shutdown = planned;
    drop(sweeper);
    end_orphans(&spawner, board, shutdown.last_step(zero.elapsed(), LAST_STEP)).await;
    outcome
}

/// Mines until the windows are done, a signal comes or nothing is left to mine with, and then ends in order: at the latest when
/// the budget is used up no child is left. Returns how the stop was planned, too.
async fn attend(
    miner: &mut Miner,
    windows: Option<u64>,
    mut signals: Signals,
    (zero, budget): (Instant, Duration),
    backstop: &Backstop,
) -> (Result<(), Failure>, Shutdown) {
    let stop = CancellationToken::new();
    let workshop = miner.workshop.clone();
    let mut outcome = Ok(());
    let mut shutdown = {
        // Fused: it may be looked at again after it is done.
        let mining = miner.run(&stop, windows).fuse();
        tokio::pin!(mining);
        tokio::select! {
            () = &mut mining => {}
            name = signals.next() => {
                tracing::info!(signal = name, "Stopping: finished groups are uploaded, then the children end. A second signal hurries it.");
            }
            () = workshop.proofs.none_left() => outcome = Err(exhausted("every proof worker")),
            () = workshop.generator.none_left() => outcome = Err(exhausted("every generation launcher")),
        }
        stop.cancel();
        backstop.arm();
        let mut shutdown = Shutdown::new(zero.elapsed(), budget);
        if !mining.is_terminated() {
            tokio::select! {
                () = &mut mining => {}
                name = signals.again() => hurry(&mut shutdown, zero.elapsed(), name),
                () = tokio::time::sleep(shutdown.uploading(zero.elapsed())) => {
                    tracing::warn!("The time for finishing and uploading is used up: what is in the spool stays there.");
                }
            }
        }
        shutdown
    };
    miner.break_off();
    crate::failpoint::pass("shutting-down").await;
    let readers = miner.checkpoints.readers().clone();
    let orderly = async { tokio::join!(workshop.proofs.stop(), workshop.generator.stop(), readers.stop()) };
    tokio::pin!(orderly);
    loop {
        tokio::select! {
            _ = &mut orderly => return (outcome, shutdown),
            name = signals.again() => hurry(&mut shutdown, zero.elapsed(), name),
            () = tokio::time::sleep(shutdown.ending_children(zero.elapsed())) => break,
        }
    }
    tracing::warn!("Children did not end in time and are killed.");
    // Ending the tasks kills the children's groups.
    let kill = async { tokio::join!(workshop.proofs.kill(), workshop.generator.kill(), readers.stop()) };
    let _ = tokio::time::timeout(shutdown.killing(zero.elapsed()), kill).await;
    (outcome, shutdown)
}

fn hurry(shutdown: &mut Shutdown, now: Duration, signal: &str) {
    tracing::warn!(signal, "Another signal: only the children are ended, at once.");
    shutdown.hurry(now);
}

fn exhausted(who: &str) -> Failure {
    Failure::Exhausted(format!(
        "{who} is quarantined, so nothing can be mined; the reasons are in the log and in status.json (children, death); mend the \
         cause and start the supervisor again"
    ))
}

fn host() -> Host {
    // Read here only to learn who starts and stops this process.
    let contained = Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists();
    // A container's signals go to its first process, which may be an init that passes them on.
    if contained && (std::process::id() == 1 || nix::unistd::getppid().as_raw() == 1) {
        Host::Container
    } else if std::env::var_os("INVOCATION_ID").is_some() {
        Host::Systemd
    } else {
        Host::Other
    }
}

/// Ends what children leave behind, when the kernel says that a child ended, and once a second for what it does not say.
async fn sweep_orphans(spawner: Spawner, board: Board) {
    let mut children = signal(SignalKind::child()).ok();
    let mut told = HashSet::new();
    loop {
        let ended = async {
            match &mut children {
                Some(children) => _ = children.recv().await,
                None => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(SWEEP, ended).await;
        match spawner.sweep() {
            Ok(orphans) => tell_orphans(&orphans, &mut told, &board),
            Err(error) => {
                tracing::warn!(%error, "Orphans cannot be looked for; a child's own processes may outlive it.");
                return;
            }
        }
    }
}

/// An orphan is met at least twice: when it is killed and when it is reaped.
fn tell_orphans(orphans: &[Orphan], told: &mut HashSet<u32>, board: &Board) {
    for Orphan { pid, name, killed } in orphans {
        if !killed {
            told.remove(pid);
        } else if told.insert(*pid) {
            board.event(ChildEvent::OrphanEnded { pid: *pid, program: name.clone() });
        }
    }
}

/// Nothing that was started here outlives the supervisor, as far as the kernel lets go of it: children whose task was not ended in
/// time are killed with all that is below them, which a parent-death signal would not reach.
async fn end_orphans(spawner: &Spawner, board: &Board, limit: Duration) {
    let began = clock::monotonic();
    // A start that the stop cut off may still be under way.
    let _ = tokio::time::timeout(limit / 2, spawner.settle()).await;
    let mut told = HashSet::new();
    loop {
        // Swept first, so that orphans are told of.
        let swept = spawner.sweep();
        tell_orphans(swept.as_deref().unwrap_or_default(), &mut told, board);
        match (swept, spawner.end_all()) {
            (Ok(met), Ok(0)) if met.is_empty() => return,
            (Err(error), _) | (_, Err(error)) => {
                return tracing::warn!(%error, "What is left of the children cannot be looked for; it may outlive the supervisor.");
            }
            (Ok(_), Ok(_)) if began.elapsed() < limit => tokio::time::sleep(Duration::from_millis(10)).await,
            (Ok(_), Ok(left)) => {
                return tracing::error!(left, "Processes that were killed are still there; the kernel holds them.");
            }
        }
    }
}

/// SIGTERM, SIGINT, and SIGHUP unless it was ignored at the start: whoever started this by `nohup` wants it to outlive the terminal,
/// everybody else whose terminal or session ends wants it to end in order.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::internal("listen for signals", error));
        // Listening would end the ignoring.
        let ignored = limits::ignores(nix::sys::signal::Signal::SIGHUP);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: if ignored { None } else { Some(listen(SignalKind::hangup())?) },
        })
    }

    /// The first one.
    async fn next(&mut self) -> &'static str {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => _ = hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = hang_up => "SIGHUP",
        }
    }

    /// One that hurries a stop. SIGHUP does not: a terminal that ends sends it more than once (kernel and shell), and systemd may send it
    /// beside SIGTERM.
    async fn again(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn miner(settings: &Settings, prepared: &Prepared, spawner: Spawner, board: &Board, journal: &Journal) -> Result<Miner, Failure> {
    let grace = Shutdown::grace(Duration::from_secs_f64(settings.shutdown_budget));
    let gpus_watched = watch_gpus(&prepared.plan, board)?;
    let workers = WorkerSettings {
        programs: prepared.programs.clone(),
        sockets: prepared.state.sockets(),
        slots: prepared.plan.proof.clone(),
        dtype: settings.proof.dtype.clone(),
        threads: settings.proof.threads,
        numerics: settings.proof.numerics,
        grace,
        gpus: gpus_watched.clone(),
    };
    let launcher = |(place, gpus): (usize, &Vec<String>)| {
        // A host with one server calls it as it always did.
        let (name, socket) = match prepared.plan.generation.len() {
            1 => ("generation".to_owned(), "generation.sock".to_owned()),
            _ => (format!("generation {place}"), format!("generation-{place}.sock")),
        };
        LauncherSettings {
            name,
            programs: prepared.programs.clone(),
            socket: prepared.state.sockets().join(socket),
            generation: settings.generation.clone(),
            gpus: gpus.clone(),
            records: prepared.state.children(),
            probes: prepared.state.probes(),
            grace,
            watch: gpus_watched.clone(),
        }
    };
    let launchers = prepared.plan.generation.iter().enumerate().map(launcher).collect();
    let engine = settings.generation.engine();
    let max_concurrent = requests_at_once(settings);
    let credentials = settings.generation.credentials();
    let completions = Completions::keyed(engine, max_concurrent, &credentials)
        .map_err(|error| Failure::internal("make the HTTP client", error))?;
    let elsewhere = settings.generation.servers.iter().enumerate().map(|(place, url)| Elsewhere {
        name: format!("generation server {place}"),
        url: url.clone(),
        engine,
        cache: settings.cache.clone(),
        seen_as: settings.generation.servers_cache.clone(),
    });
    let generator = Generator::start(launchers, elsewhere.collect(), completions.http(), &spawner, board);
    let rules = Rules {
        gate: settings.admission,
        confidence: settings.confidence,
        safety_blocks: settings.safety_blocks,
        groups_in_flight: settings.generation.groups_in_flight,
        max_concurrent: max_concurrent as usize,
        proof_workers: prepared.plan.proof.len(),
    };
    let schedule =
        Schedule::new(rules, prepared.chain.nominal_block_seconds()).map_err(|error| Failure::internal("plan time", error))?;
    let workshop = Workshop {
        hotkey: prepared.hotkey.clone(),
        completions,
        generator,
        proofs: ProofPool::start(workers, spawner.clone(), board.clone()),
        board: board.clone(),
        max_model_length: settings.generation.max_model_length,
    };
    let trainer = settings.trainer.clone().unwrap_or_else(|| prepared.joined.trainer.clone());
    let trainer_bucket = prepared.buckets.published(&prepared.joined.trainer_bucket)?;
    let subnet = Subnet {
        netuid: settings.netuid,
        trainer: prepared.joined.trainer.clone(),
        trainer_bucket: prepared.joined.trainer_bucket.clone(),
        signer: settings.trainer.clone(),
        buckets: prepared.buckets.clone(),
    };
    let workshop = Arc::new(workshop);
    let changing = workshop.clone();
    let disk = |name, most| Aside::start(name, most).map_err(|error| Failure::internal("start a thread", error));
    let readers = Readers::new(spawner, prepared.state.sockets());
    let checkpoints = Checkpoints::new(trainer_bucket, &settings.cache, trainer, prepared.dataset.clone(), readers);
    Ok(Miner {
        chain: prepared.chain.clone(),
        subnet,
        relays: prepared.relays.clone(),
        workshop,
        bucket: prepared.buckets.own.clone(),
        checkpoints: checkpoints.telling(move |change| changing.proofs.apply(change)),
        spool: prepared.state.spool(),
        cache_disk: disk("cache", 1)?,
        spool_disk: disk("spool", SPOOL_QUEUE)?,
        part_bytes: settings.upload_part_bytes,
        spool_budget: settings.spool_budget,
        windows: prepared.state.windows(),
        copies_disk: disk("copies", 1)?,
        board: board.clone(),
        journal: journal.clone(),
        gate: settings.gate,
        schedule,
        heads: Heads::new(prepared.chain.nominal_block_seconds()),
        shutdown_budget: settings.shutdown_budget,
        under_way: None,
        sendings: Vec::new(),
        vigils: Vec::new(),
    })
}

/// The setting, or fewer where the limit of open files allows no more.
fn requests_at_once(settings: &Settings) -> u32 {
    let wanted = settings.generation.max_concurrent;
    let allowed = match limits::open_files() {
        Ok(allowed) => allowed,
        Err(error) => {
            tracing::warn!(%error, "The limit of open files cannot be read.");
            return wanted;
        }
    };
    let requests = open_files::requests(allowed, wanted);
    if requests < wanted {
        tracing::warn!(
            allowed,
            wanted,
            requests,
            "The hard limit of open files allows fewer requests at once than generation.max_concurrent (systemd: LimitNOFILE=, Docker: \
             --ulimit nofile=)."
        );
    }
    requests
}

/// Watches the GPUs of the plan through NVML, where there are any and it is there.
fn watch_gpus(plan: &Plan, board: &Board) -> Result<Gpus, Failure> {
    let mut named: Vec<String> = plan.proof.iter().filter_map(|slot| slot.gpu.clone()).collect();
    named.extend(plan.generation.iter().flatten().cloned());
    let opened = named.clone();
    Gpus::watch(named, board.clone(), move || Nvml::open(&opened))
        .map_err(|error| Failure::internal("start the GPU watch", error))
}

/// The layout of the host, with every mistake at once.
///
/// # Errors
/// GPUs that are out of range or used twice.
pub fn plan(settings: &Settings) -> Result<Plan, ConfigErrors> {
    // The environment is read here only to learn which GPUs this process was given.
    let variable = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let visible = VisibleGpus::new(variable.as_deref(), VisibleGpus::installed());
    Plan::new(&settings.generation, &settings.proof, &visible).map_err(ConfigErrors)
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
    let dataset = check_dataset(settings)?;
    let attempt = Duration::from_secs_f64(settings.upload_timeout);
    let mut buckets = Buckets::open(&settings.storage, attempt, true).await?;
    let chain = open_chain(settings, Some(&hotkey), &buckets)?;
    settle(settings, chain.as_ref(), &mut buckets).await?;
    let buckets = Arc::new(buckets);
    preflight(&buckets.own).await?;
    let relays = match settings.beacon.as_slice() {
        [] => None,
        relays => Some(Relays::new(relays.to_vec()).map_err(|error| Failure::Unavailable(error.to_string()))?),
    };
    let joined = join(&chain, &hotkey, &buckets.commitment, settings.netuid).await?;
    dataset.must_suit(&*chain).await?;
    Ok(Prepared { state, plan, programs, hotkey, dataset: dataset.path, buckets, chain, joined, relays })
}

/// The chain of the settings; a local one is founded with the trainer as UID 0 and this hotkey, if there is one, as UID 1. A
/// network's connects in the background.
///
/// # Errors
/// When the local chain's file cannot be used.
pub fn open_chain(settings: &Settings, hotkey: Option<&Hotkey>, buckets: &Buckets) -> Result<Arc<dyn Chain>, Failure> {
    match &settings.chain {
        settings::Chain::Local { genesis, block_seconds, file } => {
            tracing::info!(
                genesis,
                block_seconds,
                file = %file.display(),
                "A local chain stands in for the network's: a block clock, with registration and commitments in a file."
            );
            let chain = LocalChain::new(*genesis, *block_seconds, file.clone());
            if let Some(hotkey) = hotkey {
                chain.found(&[
                    (local_trainer()?.address().to_owned(), Buckets::local_trainer()),
                    (hotkey.address().to_owned(), buckets.commitment.clone()),
                ])?;
            }
            Ok(Arc::new(chain))
        }
        settings::Chain::Network { name, endpoints, genesis, block_seconds } => {
            tracing::info!(network = name, ?endpoints, netuid = settings.netuid, "The chain is behind these nodes.");
            let endpoints = Endpoints { addresses: endpoints.clone(), genesis: *genesis };
            Ok(Arc::new(NetworkChain::connect(endpoints, settings.netuid, *block_seconds, settings.patience.clone())))
        }
    }
}

/// Lets block 0 decide where buckets are read, before anything is sent to one. A network that is known by name was judged with
/// the settings; of another one its node is asked.
///
/// # Errors
/// A bucket that this network's validators cannot read, or a chain that gives no answer for two minutes.
pub async fn settle(settings: &Settings, chain: &dyn Chain, buckets: &mut Buckets) -> Result<(), Failure> {
    let told = match &settings.chain {
        settings::Chain::Network { genesis: None, .. } => genesis(chain).await?,
        _ => None,
    };
    Ok(settle_on(settings, told, buckets)?)
}

/// The same with what a node has `told` of its block 0.
///
/// # Errors
/// A bucket that this network's validators cannot read.
pub fn settle_on(settings: &Settings, told: Option<[u8; 32]>, buckets: &mut Buckets) -> Result<(), ConfigErrors> {
    let named = if let settings::Chain::Network { genesis, .. } = &settings.chain { *genesis } else { None };
    let Some(genesis) = named.or(told) else { return Ok(()) };
    if settings::network_of(&genesis).is_some() {
        buckets.read_each_at_its_own_address();
    }
    settings.judged_on(&genesis).map(|_| ())
}

/// The key of the local chain's trainer.
///
/// # Errors
/// Never in practice: the development URI is fixed.
pub fn local_trainer() -> Result<Hotkey, Failure> {
    Hotkey::from_uri(LOCAL_TRAINER).map_err(|error| Failure::internal("derive the local trainer's key", error))
}
