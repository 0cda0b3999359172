//! The host itself: disk, memory, open files, ports, tasks.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use grail_process::{limits, ports};
use grail_protocol::constants::ROLLOUTS_PER_PROBLEM;
use grail_settings::Chain;
use grail_settings::{Loaded, ProofSlots, Settings, Storage};
use grail_subnet::dataset::CheckedDataset;
use grail_supervision::exit::Failure;
use grail_supervision::state::StateFolder;
use grail_workers::open_files;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use sysinfo::System;

use super::row::Row;

const GIB: u64 = 1 << 30;
/// What the state folder takes beside the spool: journal, logs, three window files.
const STATE_BYTES: u64 = GIB / 2;
/// What a fetch leaves free.
const SPARE_BYTES: u64 = GIB / 4;
/// Host memory of the supervisor with a full window, and of one child beside its weights.
const PROCESS_BYTES: u64 = GIB;
/// What the network's compute.min.yaml asks of a host with GPUs (grail-miner 13).
const GPU_HOST_BYTES: u64 = 60 * GIB;

pub(super) fn bytes_text(bytes: u64) -> String {
    if bytes < GIB {
        format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
    } else {
        format!("{:.1} GiB", bytes as f64 / GIB as f64)
    }
}

/// A folder that something is to be written to.
#[derive(Debug, Clone)]
struct Room {
    /// The setting that names it.
    key: &'static str,
    /// The folder, or the nearest one above it that exists.
    place: PathBuf,
    /// Which file system.
    device: u64,
    writable: bool,
    free: u64,
    /// Bytes without which nothing can be mined, and bytes for all that may come.
    least: u64,
    wanted: u64,
}

impl Room {
    fn look(key: &'static str, folder: &Path, least: u64, wanted: u64) -> Result<Self, String> {
        let absolute = std::path::absolute(folder).map_err(|error| format!("{key}: {error}"))?;
        let place = absolute.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/")).to_owned();
        let place = place.canonicalize().unwrap_or(place);
        let failed = |error: &dyn std::fmt::Display| format!("{key}: {} cannot be looked at: {error}", place.display());
        let disk = statvfs(&place).map_err(|error| failed(&error))?;
        let device = std::fs::metadata(&place).map_err(|error| failed(&error))?.dev();
        let writable = place.is_dir() && access(&place, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        Ok(Self { key, place, device, writable, free, least, wanted })
    }
}

/// Room for checkpoints and for the state. The cache holds one checkpoint, and two while the next is made beside it.
pub(super) fn disk(settings: &Settings, whole: Option<u64>) -> Row {
    let cached = folder_bytes(&settings.cache.join("checkpoints"));
    let wanted = whole.map_or(0, |whole| {
        (whole / 4).saturating_add(whole.saturating_mul(2)).saturating_add(SPARE_BYTES).saturating_sub(cached)
    });
    let state_wanted = settings.spool_budget.saturating_add(STATE_BYTES);
    let rooms = [
        Room::look("checkpoints.cache", &settings.cache, wanted, wanted),
        Room::look("state.folder", &settings.state, STATE_BYTES, state_wanted),
    ];
    match rooms.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(rooms) => disk_row(rooms, whole),
        Err(error) => Row::failed("disk", error, "set checkpoints.cache and state.folder to disks that this user can write to"),
    }
}

fn disk_row(mut rooms: Vec<Room>, whole: Option<u64>) -> Row {
    // Folders of one file system share what is free.
    if rooms.len() == 2 && rooms[0].device == rooms[1].device {
        let (least, wanted) = (rooms[1].least, rooms[1].wanted);
        rooms[0].least += least;
        rooms[0].wanted += wanted;
        if rooms[1].writable {
            rooms.truncate(1);
            rooms[0].key = "checkpoints.cache and state.folder";
        }
    }
    if let Some(room) = rooms.iter().find(|room| !room.writable) {
        let found = format!("{} cannot be written to ({})", room.place.display(), room.key);
        return Row::failed("disk", found, "run as the owner of that folder, or set another one");
    }
    let told = |room: &Room| {
        let (place, free, wanted) = (room.place.display(), bytes_text(room.free), bytes_text(room.wanted));
        format!("{free} free at {place} ({}), wanted {wanted}", room.key)
    };
    let found = rooms.iter().map(told).collect::<Vec<_>>().join("\n");
    let remedy = "free some, or move the folder that is named to a larger disk; two checkpoints lie there while the next is made";
    if rooms.iter().any(|room| room.free < room.least) {
        Row::failed("disk", found, remedy)
    } else if rooms.iter().any(|room| room.free < room.wanted) {
        Row::warning("disk", found, remedy)
    } else if whole.is_none() {
        Row::warning("disk", found, "a checkpoint's size is not known, so only the state folder was judged")
    } else {
        Row::ok("disk", found)
    }
}

/// Bytes of the files in `folder` and the folders in it: the cache has no deeper ones.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().collect::<Vec<_>>();
    let inner = entries(folder).into_iter().flat_map(|entry| entries(&entry.path()));
    inner.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file).map(|file| file.len()).sum()
}

/// Memory of the host and of the control group this runs in.
pub(super) fn memory(settings: &Settings, whole: Option<u64>, running: bool) -> Row {
    let mut system = match System::new() {
        Ok(system) => system,
        Err(error) => return Row::not_asked("memory", format!("the system does not tell: {error}")),
    };
    system.refresh_memory();
    let (mut total, mut available) = (system.total_memory(), system.available_memory());
    if let Some(group) = system.cgroup_limits() {
        total = total.min(group.total_memory);
        // What files have cached counts against the group as well, and is given back when it is needed.
        available = available.min(group.total_memory.saturating_sub(group.rss));
    }
    let on_gpus = matches!(settings.proof.slots, ProofSlots::Gpus(_));
    // A running supervisor has taken its part already.
    let available = if running { total } else { available };
    memory_row(total, available, on_gpus, needed(settings, whole))
}

/// Bytes of host memory: weights wherever something computes on the CPU, in f32 where nothing else is said.
fn needed(settings: &Settings, whole: Option<u64>) -> u64 {
    let copies = |processes: u64, dtype: &str| if dtype == "bf16" || dtype == "f16" { processes } else { 2 * processes };
    let (slots, workers) = match &settings.proof.slots {
        ProofSlots::Cpu(slots) => (u64::from(*slots), copies((*slots).into(), &settings.proof.dtype)),
        ProofSlots::Gpus(gpus) => (gpus.len() as u64, 0),
    };
    let engine = if settings.generation.backend == "embedded" { copies(1, &settings.generation.dtype) } else { 0 };
    (slots + 2) * PROCESS_BYTES / 2 + (workers + engine).saturating_mul(whole.unwrap_or(0))
}

fn memory_row(total: u64, available: u64, on_gpus: bool, needed: u64) -> Row {
    let found = format!("{} available of {}, about {} needed", bytes_text(available), bytes_text(total), bytes_text(needed));
    if available < needed {
        let remedy = "end what else runs here, use fewer proof workers (proof.cpu_slots), or a host with more memory";
        return Row::failed("memory", found, remedy);
    }
    if on_gpus && total < GPU_HOST_BYTES {
        return Row::warning(
            "memory",
            found,
            "the network asks 64 GB of a host with GPUs; generation servers load weights through it",
        );
    }
    Row::ok("memory", found)
}

/// The soft limit was raised to the hard one at the start of this command, as it is at the start of `run`.
pub(super) fn open_files(settings: &Settings) -> Row {
    match limits::open_files() {
        Ok(allowed) => open_files_row(allowed, settings.generation.max_concurrent),
        Err(error) => Row::not_asked("open files", format!("the limit cannot be read: {error}")),
    }
}

fn open_files_row(allowed: u64, wanted: u32) -> Row {
    let requests = open_files::requests(allowed, wanted);
    let found = format!("{allowed} allowed at most, enough for {requests} requests at once");
    if requests == wanted {
        return Row::ok("open files", found);
    }
    let raise = format!(
        "generation.max_concurrent is {wanted}, which takes {}; systemd: LimitNOFILE=65536; Docker: --ulimit nofile=65536; a shell: ulimit -Hn",
        open_files::BESIDE_REQUESTS + open_files::PER_REQUEST * u64::from(wanted)
    );
    let found = format!("{found}, not for {wanted}");
    if (requests as usize) < ROLLOUTS_PER_PROBLEM {
        Row::failed("open files", found, raise)
    } else {
        Row::warning("open files", found, raise)
    }
}

/// The ports that are listened on: all on loopback, and only the local bucket's is fixed.
pub(super) fn ports(settings: &Settings, running: bool) -> Row {
    let address = match &settings.storage {
        Storage::Local { address, .. } if !running => Some(*address),
        _ => None,
    };
    ports_row(address.map(|address| (address, ports::listen(address))), ports::listen(([127, 0, 0, 1], 0).into()), running)
}

fn ports_row(fixed: Option<(std::net::SocketAddr, Result<(), String>)>, any: Result<(), String>, running: bool) -> Row {
    if let Err(error) = any {
        let found = format!("no port of 127.0.0.1 can be listened on: {error}");
        return Row::failed(
            "ports",
            found,
            "the generation server needs one: bring the loopback interface up (ip link set lo up)",
        );
    }
    match fixed {
        Some((address, Err(error))) => {
            let found = format!("{address} of the local bucket server (storage.local_address) cannot be listened on: {error}");
            Row::failed("ports", found, format!("see who has it: ss -ltnp 'sport = :{}'; or set another address", address.port()))
        }
        Some((address, Ok(()))) => {
            Row::ok("ports", format!("{address} is free for the local bucket server, others on loopback too"))
        }
        None if running => Row::ok("ports", "ports on loopback are free; fixed ones are the running supervisor's"),
        None => Row::ok("ports", "ports on loopback are free; no fixed one is needed, and none from outside"),
    }
}

/// Whether a supervisor runs with this state folder.
pub(super) fn state(settings: &Settings) -> (Row, bool) {
    let running = StateFolder::is_locked(&settings.state);
    let found = if running {
        "a supervisor is running with this state folder"
    } else {
        "no supervisor is running with this state folder"
    };
    (Row::ok("state", found), running)
}

/// Variables that look as if they set something. Those of the Python miner do no harm; a misspelt one does.
pub(super) fn variables(loaded: &Loaded) -> Row {
    let (known, unknown): (Vec<_>, Vec<_>) = loaded.unused().partition(|(_, reason)| reason.is_some());
    let list = |names: &[(&str, Option<&str>)]| names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if !unknown.is_empty() {
        let found = format!("no setting is made of {}", list(&unknown));
        return Row::warning(
            "variables",
            found,
            "compare with grail-supervisor config explain; take out what is misspelt or stale",
        );
    }
    match known.as_slice() {
        [] => Row::ok("variables", "every one that is set is read"),
        known => Row::ok("variables", format!("without effect here, see config explain: {}", list(known))),
    }
}

/// `told` is what the chain says of its block 0, if it says anything. A start decides the same way.
pub(super) fn dataset_row(settings: &Settings, checked: &Result<CheckedDataset, Failure>, told: Option<Option<[u8; 32]>>) -> Row {
    let checked = match checked {
        Ok(checked) => checked,
        Err(error) => return Row::failed_as_told("dataset", error),
    };
    let found = format!("every row of {} was read; {}", checked.path.display(), checked.summary());
    let named = !matches!(settings.chain, Chain::Network { genesis: None, .. });
    match told {
        None if !named && checked.depends_on_the_chain() => {
            let found = format!("{found}; it is not the network's, and the chain does not tell its block 0");
            Row::warning(
                "dataset",
                found,
                "where that is finney's or test's, a start refuses it; ask again when the chain answers",
            )
        }
        told => match checked.must_suit_block_0(told.flatten().as_ref()) {
            Ok(()) => Row::ok("dataset", found),
            Err(error) => Row::failed_as_told("dataset", &error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn room(key: &'static str, device: u64, free: u64, least: u64, wanted: u64) -> Room {
        Room { key, place: "/disk".into(), device, writable: true, free: free * GIB, least: least * GIB, wanted: wanted * GIB }
    }

    #[test]
    fn a_disk_is_judged_by_all_that_lies_on_it() {
        let judged = |rooms: Vec<Room>| disk_row(rooms, Some(GIB)).verdict;
        let state = |device, free| room("state.folder", device, free, 1, 5);
        assert_eq!(judged(vec![room("checkpoints.cache", 1, 20, 10, 10), state(2, 6)]), Verdict::Ok);
        assert_eq!(judged(vec![room("checkpoints.cache", 1, 9, 10, 10), state(2, 6)]), Verdict::Failed);
        assert_eq!(judged(vec![room("checkpoints.cache", 1, 20, 10, 10), state(2, 4)]), Verdict::Warning);
        // 12 GiB are enough for either, and too few for both to the full.
        assert_eq!(judged(vec![room("checkpoints.cache", 1, 12, 10, 10), state(1, 12)]), Verdict::Warning);
        assert_eq!(judged(vec![room("checkpoints.cache", 1, 10, 10, 10), state(1, 10)]), Verdict::Failed);
        let mut read_only = state(1, 100);
        read_only.writable = false;
        let row = disk_row(vec![room("checkpoints.cache", 1, 100, 1, 1), read_only], Some(GIB));
        assert!(row.verdict == Verdict::Failed && row.found.contains("state.folder"), "{row:?}");
        assert_eq!(disk_row(vec![state(1, 100)], None).verdict, Verdict::Warning, "half of it is not known");
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::look("checkpoints.cache", &folder.path().join("a/b"), 0, 0).unwrap();
        assert!(room.place == folder.path() && room.writable && room.free > 0);
        std::fs::create_dir_all(folder.path().join("checkpoint-30")).unwrap();
        std::fs::write(folder.path().join("checkpoint-30/model.safetensors"), [0; 1000]).unwrap();
        assert_eq!(folder_bytes(folder.path()), 1000);
    }

    #[test]
    fn memory_files_and_ports_fail_below_what_is_needed() {
        assert_eq!(memory_row(64 * GIB, 10 * GIB, true, 11 * GIB).verdict, Verdict::Failed);
        assert_eq!(memory_row(32 * GIB, 30 * GIB, true, 2 * GIB).verdict, Verdict::Warning);
        assert_eq!(memory_row(64 * GIB, 30 * GIB, true, 2 * GIB).verdict, Verdict::Ok);
        assert_eq!(memory_row(4 * GIB, 3 * GIB, false, 2 * GIB).verdict, Verdict::Ok);
        assert_eq!(open_files_row(1024, 416).verdict, Verdict::Ok);
        assert_eq!(open_files_row(64, 416).verdict, Verdict::Failed, "not even one group at a time");
        let row = open_files_row(1024, 1920);
        let remedy = row.remedy.clone().unwrap_or_default();
        assert!(row.verdict == Verdict::Warning && remedy.contains("1920, which takes 4032"), "{row:?}");
        let address = ([127, 0, 0, 1], 9199).into();
        let taken = || Err("Address already in use".to_owned());
        assert_eq!(ports_row(Some((address, Ok(()))), Ok(()), false).verdict, Verdict::Ok);
        assert_eq!(ports_row(None, Ok(()), true).verdict, Verdict::Ok);
        assert_eq!(ports_row(None, taken(), false).verdict, Verdict::Failed);
        let row = ports_row(Some((address, taken())), Ok(()), false);
        assert!(row.verdict == Verdict::Failed && row.found.contains("127.0.0.1:9199"), "{row:?}");
    }
}
