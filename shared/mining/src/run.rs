//! `grail-supervisor run`: everything is judged first, then the children are started, then windows are mined.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use grail_chain::relays::Relays;
use grail_process::{SideThread, Spawner};
use grail_protocol::keys::{Hotkey, KeyScheme};
use grail_settings::Settings;
use grail_subnet::buckets::{Buckets, preflight};
use grail_subnet::chain::{Chain, Joined, join};
use grail_subnet::checkpoints::Checkpoints;
use grail_subnet::configured::{open_chain, settle};
use grail_subnet::dataset::check_dataset;
use grail_subnet::reader::Readers;
use grail_subnet::wallet;
use grail_supervision::exit::Failure;
use grail_supervision::gpu::{Gpus, Nvml};
use grail_supervision::host::{Children, Host, StopTime, Workload};
use grail_supervision::journal::Journal;
use grail_supervision::shutdown::Shutdown;
use grail_supervision::state::StateFolder;
use grail_workers::completions::Completions;
use grail_workers::plan::Plan;
use grail_workers::preflight::Preflight;
use grail_workers::{
    ChildPrograms, ExternalServer, Generator, LauncherSettings, Programs, ProofPool, WorkerSettings, open_files,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::groups::MinerResources;
use crate::schedule::{Rules, Schedule};
use crate::status::Board;
use crate::window::{Heads, Miner, Subnet};

/// Pieces of work that may wait for the disk of the spool: more than a window's groups under way, and what is taken out of them.
const SPOOL_QUEUE: usize = 1024;

/// Progress is being shown: what is returned tells that the last look was had.
pub type Shown = std::io::Result<oneshot::Receiver<()>>;

/// Everything that was judged before anything is started.
struct Prepared {
    plan: Plan,
    programs: Programs,
    hotkey: Arc<Hotkey>,
    dataset: PathBuf,
    buckets: Arc<Buckets>,
    chain: Arc<dyn Chain>,
    joined: Joined,
    relays: Option<Relays>,
}

/// Mines until told to stop, or until so many windows have been attempted; `show` shows progress until it is cancelled.
///
/// # Errors
/// When something is wrong before the start. Trouble later is dealt with window by window.
pub async fn run(
    settings: &Settings,
    windows: Option<u64>,
    show: impl FnOnce(Board, CancellationToken) -> Shown,
) -> Result<(), Failure> {
    let preflight = Preflight::of_host(settings);
    for warning in preflight.warnings(settings) {
        tracing::warn!("{warning}");
    }
    let plan = preflight.plan()?;
    let (state, prepared) = prepare(settings, plan).await?;
    let address = prepared.hotkey.address();
    let time = StopTime { budget: Duration::from_secs_f64(settings.shutdown_budget), grace: settings.shutdown_grace };
    let mut host = Host::open(state, address, time)?;
    let board = Board::on(&host.board);
    board.update(|status| status.hotkey = address.into());
    let end = CancellationToken::new();
    let shown = show(board.clone(), end.clone());
    let shown = shown.map_err(|error| Failure::internal("start a thread", error))?;
    let folders = Folders::of(&host.state);
    let journal = host.journal.clone();
    let start = |spawner: &Spawner| {
        let miner = miner(settings, &prepared, &folders, spawner.clone(), &board, &journal)?;
        Ok(Mining { miner, windows })
    };
    let outcome = host.run(start).await;
    end.cancel();
    host.close(shown).await;
    outcome
}

/// The miner as a host's workload.
struct Mining {
    miner: Miner,
    /// Stop after so many attempted windows.
    windows: Option<u64>,
}

impl Workload for Mining {
    type Children = Workers;

    async fn work(&mut self, stop: &CancellationToken) {
        // Boxed: one type of all that a window does is too deep for the compiler.
        self.miner.run(stop, self.windows).boxed_local().await;
    }

    fn children(&self) -> Workers {
        Workers { resources: self.miner.resources.clone(), readers: self.miner.checkpoints.readers().clone() }
    }

    fn break_off(&mut self) {
        self.miner.break_off();
    }
}

/// Everything that the miner starts.
struct Workers {
    resources: Arc<MinerResources>,
    readers: Readers,
}

impl Children for Workers {
    async fn none_left(&self) -> String {
        tokio::select! {
            () = self.resources.proofs.none_left() => "every proof worker".into(),
            () = self.resources.generator.none_left() => "every generation launcher".into(),
        }
    }

    async fn stop(&self) {
        tokio::join!(self.resources.proofs.stop(), self.resources.generator.stop(), self.readers.stop());
    }

    async fn kill(&self) {
        tokio::join!(self.resources.proofs.kill(), self.resources.generator.kill(), self.readers.stop());
    }
}

/// Where the miner's things lie in the state folder.
struct Folders {
    sockets: PathBuf,
    children: PathBuf,
    probes: PathBuf,
    spool: PathBuf,
    windows: PathBuf,
}

impl Folders {
    fn of(state: &StateFolder) -> Self {
        Self {
            sockets: state.sockets(),
            children: state.children(),
            probes: state.of_workload("probes"),
            spool: state.of_workload("spool"),
            windows: state.of_workload("windows"),
        }
    }
}

fn miner(
    settings: &Settings,
    prepared: &Prepared,
    folders: &Folders,
    spawner: Spawner,
    board: &Board,
    journal: &Journal,
) -> Result<Miner, Failure> {
    let grace = Shutdown::grace(Duration::from_secs_f64(settings.shutdown_budget));
    let gpus_watched = watch_gpus(&prepared.plan, board)?;
    let workers = WorkerSettings {
        programs: prepared.programs.clone(),
        sockets: folders.sockets.clone(),
        slots: prepared.plan.proof.clone(),
        dtype: settings.proof.dtype.clone(),
        threads: settings.proof.threads,
        numerics: settings.proof.numerics,
        library_path: settings.proof.library_path.clone(),
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
            socket: folders.sockets.clone().join(socket),
            generation: settings.generation.clone(),
            gpus: gpus.clone(),
            records: folders.children.clone(),
            probes: folders.probes.clone(),
            grace,
            watch: gpus_watched.clone(),
        }
    };
    let launchers = prepared.plan.generation.iter().enumerate().map(launcher).collect();
    let engine = settings.generation.engine();
    let max_concurrent = open_files::requests_at_once(settings);
    let credentials = settings.generation.credentials();
    let completions = Completions::keyed(engine, max_concurrent, &credentials)
        .map_err(|error| Failure::internal("make the HTTP client", error))?;
    let elsewhere = settings.generation.servers.iter().enumerate().map(|(place, url)| ExternalServer {
        name: format!("generation server {place}"),
        url: url.clone(),
        engine,
        cache: settings.cache.clone(),
        seen_as: settings.generation.servers_cache.clone(),
        credentials: credentials.clone(),
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
    let resources = MinerResources {
        hotkey: prepared.hotkey.clone(),
        completions,
        generator,
        proofs: ProofPool::start(workers, spawner.clone(), board.host.clone()),
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
    let resources = Arc::new(resources);
    let changing = resources.clone();
    let disk = |name, most| SideThread::start(name, most).map_err(|error| Failure::internal("start a thread", error));
    let readers = Readers::new(spawner, folders.sockets.clone());
    let checkpoints = Checkpoints::new(trainer_bucket, &settings.cache, trainer, prepared.dataset.clone(), readers);
    Ok(Miner {
        chain: prepared.chain.clone(),
        subnet,
        relays: prepared.relays.clone(),
        resources,
        bucket: prepared.buckets.own.clone(),
        checkpoints: checkpoints.telling(move |change| changing.proofs.apply(change)),
        spool: folders.spool.clone(),
        cache_disk: disk("cache", 1)?,
        spool_disk: disk("spool", SPOOL_QUEUE)?,
        part_bytes: settings.upload_part_bytes,
        spool_budget: settings.spool_budget,
        windows: folders.windows.clone(),
        copies_disk: disk("copies", 1)?,
        board: board.clone(),
        journal: journal.clone(),
        gate: settings.gate,
        schedule,
        heads: Heads::new(prepared.chain.nominal_block_seconds()),
        shutdown_budget: settings.shutdown_budget,
        under_way: None,
        sendings: Vec::new(),
        finality_watches: Vec::new(),
    })
}

/// Watches the GPUs of the plan through NVML, where there are any and it is there.
fn watch_gpus(plan: &Plan, board: &Board) -> Result<Gpus, Failure> {
    let mut named: Vec<String> = plan.proof.iter().filter_map(|slot| slot.gpu.clone()).collect();
    named.extend(plan.generation.iter().flatten().cloned());
    let opened = named.clone();
    Gpus::watch(named, board.host.clone(), move || Nvml::open(&opened))
        .map_err(|error| Failure::internal("start the GPU watch", error))
}

async fn prepare(settings: &Settings, plan: Plan) -> Result<(StateFolder, Prepared), Failure> {
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
    let chain = open_chain(settings, Some(&hotkey), Some(&buckets.commitment))?;
    settle(settings, chain.as_ref(), &mut buckets).await?;
    let buckets = Arc::new(buckets);
    preflight(&buckets.own).await?;
    let relays = match settings.beacon.as_slice() {
        [] => None,
        relays => Some(Relays::new(relays.to_vec()).map_err(|error| Failure::Unavailable(error.to_string()))?),
    };
    let joined = join(&chain, &hotkey, &buckets.commitment, settings.netuid).await?;
    dataset.must_suit(&*chain).await?;
    Ok((state, Prepared { plan, programs, hotkey, dataset: dataset.path, buckets, chain, joined, relays }))
}
