//! The spool against a model, with the power lost between any two file operations; and on the real disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const WALLET: &str = "5Model";
const WINDOW: u64 = 600;

/// A disk that loses what was not made durable. Of every folder there are two states: as processes see it, and as the last
/// sync left it. A crash keeps, name by name, one of the two, and tears the file that was being written.
#[derive(Debug, Default)]
struct Simulated(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    seen: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    /// Operations until the power goes.
    fuel: Option<usize>,
    operations: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Folder,
    File(Vec<u8>),
}

impl Simulated {
    fn operate<T>(&self, work: impl FnOnce(&mut State, bool) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock().unwrap();
        state.operations += 1;
        let last = match &mut state.fuel {
            None => false,
            Some(0) => return Err(io::Error::other("the power is off")),
            Some(fuel) => {
                *fuel -= 1;
                *fuel == 0
            }
        };
        let done = work(&mut state, last);
        // The last operation may have happened, wholly or in part, but nobody hears of it.
        if last { Err(io::Error::other("the power goes off")) } else { done }
    }

    fn crash(&self, mut choices: u64) {
        let mut state = self.0.lock().unwrap();
        let names: BTreeSet<PathBuf> = state.seen.keys().chain(state.durable.keys()).cloned().collect();
        let mut after: BTreeMap<PathBuf, Node> = BTreeMap::new();
        for name in names {
            choices = choices.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let chosen = if choices >> 63 == 0 { state.seen.get(&name) } else { state.durable.get(&name) };
            // A name in a folder that is gone is gone.
            let reachable = name.parent().is_none_or(|parent| parent == Path::new("/") || after.contains_key(parent));
            if let Some(node) = chosen.filter(|_| reachable) {
                after.insert(name, node.clone());
            }
        }
        *state = State { seen: after.clone(), durable: after, fuel: None, operations: 0 };
    }
}

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for Simulated {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.operate(|state, _| {
            state.seen.entry(path.into()).or_insert(Node::Folder);
            Ok(())
        })
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.operate(|state, torn| {
            let kept = if torn { &bytes[..bytes.len() / 2] } else { bytes };
            state.seen.insert(path.into(), Node::File(kept.to_vec()));
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(|state, _| {
            let node = state.seen.remove(from).ok_or_else(absent)?;
            state.seen.insert(to.into(), node);
            Ok(())
        })
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.operate(|state, _| {
            state.durable.retain(|name, _| name.parent() != Some(path));
            let names: Vec<_> = state.seen.iter().filter(|(name, _)| name.parent() == Some(path)).collect();
            let names: Vec<_> = names.into_iter().map(|(name, node)| (name.clone(), node.clone())).collect();
            state.durable.extend(names);
            Ok(())
        })
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        self.operate(|state, _| match state.seen.get(path) {
            Some(Node::File(bytes)) if bytes.len() as u64 <= limit => Ok(bytes.clone()),
            _ => Err(absent()),
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.operate(|state, _| {
            let inside = state.seen.iter().filter(|(name, _)| name.parent() == Some(path));
            let entry = |(name, node): (&PathBuf, &Node)| Entry {
                name: name.file_name().unwrap().to_str().unwrap().into(),
                bytes: if let Node::File(bytes) = node { bytes.len() as u64 } else { 0 },
            };
            Ok(inside.map(entry).collect())
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.operate(|state, _| {
            state.seen.remove(path);
            Ok(())
        })
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.operate(|state, _| {
            assert!(state.seen.keys().all(|name| name.parent() != Some(path)), "{path:?} is not empty");
            state.seen.remove(path);
            Ok(())
        })
    }
}

/// The real file system, until the power goes: then everything fails, and what was done stays.
#[derive(Debug)]
struct Unplugged {
    fuel: Mutex<usize>,
}

impl Unplugged {
    fn operate<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut fuel = self.fuel.lock().unwrap();
        *fuel = fuel.checked_sub(1).ok_or_else(|| io::Error::from_raw_os_error(nix::libc::EROFS))?;
        work()
    }
}

impl Disk for Unplugged {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.operate(|| FileSystem.make_folder(path))
    }
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.operate(|| FileSystem.write(path, bytes))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(|| FileSystem.rename(from, to))
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.operate(|| FileSystem.sync_folder(path))
    }
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        self.operate(|| FileSystem.read(path, limit))
    }
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.operate(|| FileSystem.list(path))
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.operate(|| FileSystem.remove_file(path))
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.operate(|| FileSystem.remove_folder(path))
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Take an index and lose its group.
    Burn,
    /// Take an index and spool its group.
    Put,
    /// Take out the n-th group.
    Discard(usize),
    Sheet,
    Sending,
    Uploaded,
    Reopen,
}

/// What must be true of the disk, whatever happens.
#[derive(Debug, Default)]
struct Model {
    used: BTreeSet<i64>,
    attempted: BTreeMap<i64, GroupRecord>,
    durable: BTreeSet<i64>,
    discarded: BTreeSet<i64>,
    sheet: bool,
    sending: bool,
    uploaded: bool,
}

fn record(index: i64) -> GroupRecord {
    let file = Bytes::from(vec![index as u8; 40 + index as usize % 7]);
    let header = GroupHeader {
        wallet: WALLET.into(),
        window: WINDOW,
        index,
        checkpoint_window: 570,
        worker: 0,
        reward_sum: index as f64,
        successes: 3,
    };
    GroupRecord { header, file }
}

fn sheet() -> WindowRecord {
    WindowRecord { block_hash: "0xab".into(), checkpoint_window: 570, vocab_size: 9, max_positions: 99, deadline: 1.5 }
}

fn uploaded() -> Uploaded {
    Uploaded { key: "k".into(), groups: 2, bytes: 80, sha256: "ab".into(), sheet: sheet() }
}

impl Model {
    /// Does the steps until they end or the power goes.
    fn drive(&mut self, disk: &Arc<dyn Disk>, root: &Path, steps: &[Step]) -> Result<(), SpoolError> {
        let mut steps = steps.iter();
        'open: loop {
            let (spool, left) = Spool::open(disk.clone(), root, WALLET, WINDOW, &UnderWay::default(), u64::MAX)?;
            self.check(&spool, &left)?;
            let mut indices = Indices::from_bound(left.next_index.unwrap());
            for step in steps.by_ref() {
                match step {
                    Step::Reopen => continue 'open,
                    step => self.step(step, &spool, &mut indices)?,
                }
            }
            return Ok(());
        }
    }

    fn step(&mut self, step: &Step, spool: &Spool, indices: &mut Indices) -> Result<(), SpoolError> {
        match step {
            Step::Burn => drop(self.take(spool, indices)?),
            Step::Put => {
                let index = self.take(spool, indices)?;
                self.attempted.insert(index, record(index));
                spool.put(&record(index))?;
                self.durable.insert(index);
            }
            Step::Discard(which) => {
                let Some(index) = self.durable.iter().copied().nth(which % self.durable.len().max(1)) else { return Ok(()) };
                self.durable.remove(&index);
                spool.discard(index)?;
                self.discarded.insert(index);
            }
            Step::Sheet => {
                spool.keep_sheet(&sheet())?;
                self.sheet = true;
            }
            Step::Sending => {
                spool.mark_sending(&uploaded())?;
                self.sending = true;
            }
            Step::Uploaded => {
                spool.mark_uploaded(&uploaded())?;
                self.uploaded = true;
            }
            Step::Reopen => unreachable!(),
        }
        Ok(())
    }

    fn take(&mut self, spool: &Spool, indices: &mut Indices) -> Result<i64, SpoolError> {
        if let Some(bound) = indices.wanted_bound(1) {
            spool.reserve(bound)?;
            indices.raise(bound);
        }
        let index = indices.take().unwrap();
        assert!(self.used.insert(index), "index {index} is used twice");
        Ok(index)
    }

    fn check(&mut self, spool: &Spool, left: &Left) -> Result<(), SpoolError> {
        let found: BTreeSet<i64> = left.groups.iter().copied().collect();
        assert!(found.is_superset(&self.durable), "lost: {:?}", self.durable.difference(&found));
        assert!(found.is_disjoint(&self.discarded), "came back: {:?}", self.discarded.intersection(&found));
        for index in &found {
            match spool.group(*index) {
                Err(off @ SpoolError::Disk { .. }) => return Err(off),
                group => assert_eq!(group.ok().as_ref(), self.attempted.get(index), "group {index} is torn"),
            }
        }
        // What was found is durable now: the folder was synced with it, or it survived a crash.
        self.durable = found;
        assert!(left.next_index.unwrap() > self.used.last().copied().unwrap_or(-1), "{left:?} would repeat an index");
        assert!(left.sheet.is_some() || !self.sheet, "the sheet is lost");
        assert!(left.sheet.iter().all(|found| *found == sheet()));
        assert!(left.sent.sending.is_some() || !self.sending, "what was being sent is forgotten");
        assert!(left.sent.uploaded.is_some() || !self.uploaded, "the upload is forgotten");
        assert!(left.sent.files().all(|found| *found == uploaded()));
        assert_eq!(left.lost, []);
        Ok(())
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Put),
        2 => Just(Step::Burn),
        1 => (0_usize..8).prop_map(Step::Discard),
        1 => Just(Step::Sheet),
        1 => Just(Step::Sending),
        1 => Just(Step::Uploaded),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..14)
}

fn spool_root() -> PathBuf {
    "/spool".into()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    /// The power goes after every single operation in turn; then the rest of the steps is done.
    #[test]
    fn whatever_is_lost_what_was_durable_is_found_and_no_index_is_used_twice(steps in steps(), choices: u64) {
        let whole = Arc::new(Simulated::default());
        Model::default().drive(&(whole.clone() as Arc<dyn Disk>), &spool_root(), &steps).unwrap();
        let operations = whole.0.lock().unwrap().operations;
        for fuel in 1..=operations {
            let simulated = Arc::new(Simulated::default());
            simulated.0.lock().unwrap().fuel = Some(fuel);
            let disk: Arc<dyn Disk> = simulated.clone();
            let mut model = Model::default();
            prop_assert!(model.drive(&disk, &spool_root(), &steps).is_err());
            simulated.crash(choices ^ fuel as u64);
            model.drive(&disk, &spool_root(), &steps).unwrap();
        }
    }

    /// The same on the real disk, where a crash of the process loses nothing that was written.
    #[test]
    fn the_real_disk_agrees_with_the_model(steps in steps(), fuel in 0_usize..120) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("spool");
        let mut model = Model::default();
        let _ = model.drive(&(Arc::new(Unplugged { fuel: fuel.into() }) as Arc<dyn Disk>), &root, &steps);
        model.drive(&(Arc::new(FileSystem) as Arc<dyn Disk>), &root, &steps).unwrap();
    }
}

fn on_disk(root: &Path, window: u64, budget: u64) -> (Spool, Left) {
    Spool::open(Arc::new(FileSystem), root, WALLET, window, &UnderWay::default(), budget).unwrap()
}

#[test]
fn past_windows_are_retired_and_named_unless_they_were_uploaded() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.txt"), "not ours").unwrap();
    let (spool, _) = on_disk(folder.path(), WINDOW, u64::MAX);
    spool.put(&record(0)).unwrap();
    spool.put(&record(1)).unwrap();
    let (spool, left) = on_disk(folder.path(), WINDOW + 30, u64::MAX);
    assert_eq!((left.lost, left.groups), (vec![Expired { window: WINDOW, groups: 2, sending: false }], vec![]));
    let mut other = record(0);
    other.header.window = WINDOW + 30;
    spool.put(&other).unwrap();
    spool.mark_sending(&uploaded()).unwrap();
    let (spool, left) = on_disk(folder.path(), WINDOW + 60, u64::MAX);
    assert_eq!(left.lost, [Expired { window: WINDOW + 30, groups: 1, sending: true }]);
    other.header.window = WINDOW + 60;
    spool.put(&other).unwrap();
    spool.mark_uploaded(&uploaded()).unwrap();
    assert_eq!(on_disk(folder.path(), WINDOW + 90, u64::MAX).1.lost, []);
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["690", "notes.txt"]);
}

#[test]
fn of_a_watched_window_what_was_sent_stays_until_it_is_forgotten_or_not_watched_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("spool");
    assert_eq!(sent(&FileSystem, &root).unwrap(), [], "before the first start there is none");
    let (spool, _) = on_disk(&root, WINDOW, u64::MAX);
    let bigger = Uploaded { groups: 3, ..uploaded() };
    spool.put(&record(0)).unwrap();
    spool.mark_uploaded(&uploaded()).unwrap();
    spool.mark_sending(&bigger).unwrap();
    let open = |window, watched: &[u64]| {
        let under_way = UnderWay { watched: watched.to_vec(), ..UnderWay::default() };
        Spool::open(Arc::new(FileSystem), &root, WALLET, window, &under_way, u64::MAX).unwrap().1.lost
    };
    assert_eq!(open(WINDOW + 30, &[WINDOW]), []);
    let found = sent(&FileSystem, &root).unwrap();
    let both = Sent { uploaded: Some(uploaded()), sending: Some(bigger.clone()), ..Sent::default() };
    assert_eq!(found, [(WINDOW, both.clone()), (WINDOW + 30, Sent::default())]);
    assert_eq!((both.files().count(), both.known()), (2, None), "the bucket has the one or the other");
    let names: Vec<_> = std::fs::read_dir(root.join("600")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "groups are not needed any more: {names:?}");

    forget(&FileSystem, &root, WINDOW, &uploaded(), true).unwrap();
    assert_eq!(sent(&FileSystem, &root).unwrap()[0], (WINDOW, Sent::default()));
    let (spool, _) = on_disk(&root, WINDOW + 60, u64::MAX);
    spool.mark_sending(&uploaded()).unwrap();
    spool.mark_uploaded(&uploaded()).unwrap();
    let known = sent(&FileSystem, &root).unwrap().pop().unwrap().1;
    assert_eq!((known.files().count(), known.known()), (1, Some(&uploaded())));
    open(WINDOW + 90, &[]);
    assert_eq!(sent(&FileSystem, &root).unwrap(), [(WINDOW + 90, Sent::default())]);
}

#[test]
fn with_a_withdrawn_file_its_groups_go_and_those_that_are_mined_anew_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = on_disk(folder.path(), WINDOW, u64::MAX);
    let left = || on_disk(folder.path(), WINDOW, u64::MAX).1;
    spool.put(&record(3)).unwrap();
    spool.keep_sheet(&sheet()).unwrap();
    spool.mark_uploaded(&uploaded()).unwrap();
    let other = Uploaded { sheet: WindowRecord { block_hash: "0xcd".into(), ..sheet() }, ..uploaded() };
    forget(&FileSystem, folder.path(), WINDOW, &other, true).unwrap();
    assert_eq!((left().groups, left().sent), (vec![3], Sent::default()));
    let another = Uploaded { sha256: "cd".into(), ..uploaded() };
    spool.mark_uploaded(&another).unwrap();
    forget(&FileSystem, folder.path(), WINDOW, &uploaded(), false).unwrap();
    assert_eq!((left().groups, left().sent.uploaded), (vec![3], Some(another)), "it was not this file, and not for its rows");
    spool.mark_uploaded(&uploaded()).unwrap();
    forget(&FileSystem, folder.path(), WINDOW, &uploaded(), true).unwrap();
    assert_eq!((left().groups, left().sent), (vec![], Sent::default()));
    assert_eq!(on_disk(folder.path(), WINDOW + 30, u64::MAX).1.lost, [], "what was withdrawn is not told as lost");
}

#[test]
fn a_window_whose_deadline_is_to_come_is_not_past_whatever_a_node_calls_the_present_one() {
    let folder = tempfile::tempdir().unwrap();
    let open = |window, now| {
        let under_way = UnderWay { now, ..UnderWay::default() };
        Spool::open(Arc::new(FileSystem), folder.path(), WALLET, window, &under_way, u64::MAX).unwrap().1
    };
    let (spool, _) = on_disk(folder.path(), WINDOW, u64::MAX);
    spool.put(&record(0)).unwrap();
    spool.keep_sheet(&WindowRecord { deadline: 1000.0, ..sheet() }).unwrap();
    assert_eq!(open(1 << 40, 900.0).lost, []);
    assert_eq!(open(WINDOW - 30, 900.0).lost, []);
    assert_eq!(open(WINDOW, 900.0).groups, [0]);
    assert_eq!(open(WINDOW + 30, 1000.5).lost.len(), 1);
    assert_eq!(open(WINDOW, 1001.0).groups, [] as [i64; 0]);
    // One that an absurd head has opened is removed by the next that is none.
    let (spool, _) = on_disk(folder.path(), 1 << 40, u64::MAX);
    spool.keep_sheet(&WindowRecord { deadline: 2000.0, ..sheet() }).unwrap();
    open(WINDOW + 60, 2001.0);
    assert!(!folder.path().join((1_u64 << 40).to_string()).exists());
}

#[test]
fn what_must_not_be_judged_is_found_again_for_as_long_as_its_file_is_watched() {
    let folder = tempfile::tempdir().unwrap();
    let condemned =
        |file: Uploaded| CondemnedFile { file, why: "its worker lies".into(), groups_too: false, anything_else: false };
    let (first, _) = on_disk(folder.path(), WINDOW, u64::MAX);
    first.mark_uploaded(&uploaded()).unwrap();
    let verdict = Verdict { worker: Some(1), below: 64, why: "it lies".into() };
    first.condemn(Some(verdict), vec![condemned(uploaded())]).unwrap();
    // The next run adds to it, and its own file is another one.
    let (second, left) = on_disk(folder.path(), WINDOW, u64::MAX);
    assert_eq!((left.sent.files().count(), left.sent.known()), (0, Some(&uploaded())));
    second.condemn(Some(Verdict { worker: None, below: 100, why: "nobody knows".into() }), vec![condemned(uploaded())]).unwrap();
    let better = Uploaded { sha256: "cd".into(), ..uploaded() };
    second.mark_sending(&better).unwrap();
    second.mark_uploaded(&better).unwrap();
    let under_way = UnderWay { watched: vec![WINDOW], ..UnderWay::default() };
    Spool::open(Arc::new(FileSystem), folder.path(), WALLET, WINDOW + 30, &under_way, u64::MAX).unwrap();
    let found = sent(&FileSystem, folder.path()).unwrap().remove(0).1;
    assert_eq!(found.files().collect::<Vec<_>>(), [&better]);
    assert_eq!(found.condemned.files, [condemned(uploaded())]);
    let verdicts =
        [(63, 1), (64, 1), (99, 1), (64, 2), (100, 1)].map(|(index, worker)| found.condemned.verdict_on(index, worker));
    assert_eq!(verdicts, [Some("it lies"), Some("nobody knows"), Some("nobody knows"), Some("nobody knows"), None]);
    // A record that cannot be read says that there was one.
    std::fs::write(folder.path().join("600/condemned.record"), "garbage").unwrap();
    let found = sent(&FileSystem, folder.path()).unwrap().remove(0).1;
    assert_eq!((found.files().count(), found.condemned.files.len()), (0, 1));
    assert!(found.condemned.verdict_on(7, 0).unwrap().contains("cannot be used"));
    on_disk(folder.path(), WINDOW + 60, u64::MAX);
    assert!(!folder.path().join("600").exists(), "nobody watches it any more");
}

#[test]
fn torn_and_foreign_groups_are_refused_and_an_unusable_bound_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = on_disk(folder.path(), WINDOW, u64::MAX);
    spool.put(&record(0)).unwrap();
    spool.put(&record(1)).unwrap();
    spool.reserve(64).unwrap();
    let path = |name: &str| folder.path().join(WINDOW.to_string()).join(name);
    let whole = std::fs::read(path("group-0000000.record")).unwrap();
    std::fs::write(path("group-0000000.record"), &whole[..whole.len() - 1]).unwrap();
    std::fs::copy(path("group-0000001.record"), path("group-0000002.record")).unwrap();
    let (spool, left) = on_disk(folder.path(), WINDOW, u64::MAX);
    assert_eq!((left.groups, left.next_index), (vec![0, 1, 2], Some(64)));
    assert!(spool.group(0).unwrap_err().to_string().contains("torn"));
    assert_eq!(spool.group(1).unwrap(), record(1));
    assert!(spool.group(2).unwrap_err().to_string().contains("it is group 1"));
    std::fs::write(path("next-index.record"), "garbage").unwrap();
    assert_eq!(on_disk(folder.path(), WINDOW, u64::MAX).1.next_index, None);
}

#[test]
fn the_budget_and_a_refusing_disk_are_errors_that_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let size = record(0).encode().unwrap().len() as u64;
    let (spool, _) = on_disk(folder.path(), WINDOW, size + 10);
    spool.put(&record(0)).unwrap();
    assert!(matches!(spool.put(&record(1)), Err(SpoolError::Budget { .. })));
    let (spool, left) = on_disk(folder.path(), WINDOW, size + 10);
    assert_eq!(left.groups, [0]);
    assert!(spool.put(&record(1)).unwrap_err().to_string().contains("spool.budget_mib"), "what is there counts");
    let unplugged = Arc::new(Unplugged { fuel: 0.into() });
    let error = Spool::open(unplugged, folder.path(), WALLET, WINDOW, &UnderWay::default(), 1).unwrap_err().to_string();
    assert!(error.contains("Read-only file system") && error.contains("free space"), "{error}");
}
