//! What is kept, judged and taken out again.

use grail_protocol::keys::Hotkey;

use super::*;
use crate::gate;
use crate::spool::{FileSystem, UnderWay, WindowRecord};

/// A disk that is only slow holds up no test, and changes what it finds as little.
const LONG: Duration = Duration::from_secs(120);

fn patient(judge: Judge, spool: Spool) -> Harvest {
    let disk = SideThread::start("test", 64).unwrap();
    let harvest = Harvest::new(judge, Some(Arc::new(spool)), disk, Journal::default(), Board::default());
    harvest.state().disk_patience = Some(LONG);
    harvest
}

pub(in crate::window) fn harvest(folder: &std::path::Path, budget: u64) -> (Arc<Harvest>, Vec<i64>) {
    let hotkey = Hotkey::from_uri("//Alice").unwrap();
    let (spool, left) = Spool::open(Arc::new(FileSystem), folder, hotkey.address(), 600, &UnderWay::default(), budget).unwrap();
    (Arc::new(patient(gate::tests::judge(&hotkey), spool)), left.groups)
}

pub(in crate::window) fn group(index: i64, worker: u32) -> Group {
    Group { index, worker, rows: gate::tests::rows(&Hotkey::from_uri("//Alice").unwrap(), index) }
}

fn indices(kept: Vec<Kept>) -> Vec<i64> {
    kept.into_iter().map(|kept| kept.record.header.index).collect()
}

#[tokio::test]
async fn kept_groups_are_found_again_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = harvest(folder.path(), u64::MAX);
    assert!(first.keep(group(4, 0)).await.unwrap() && first.keep(group(9, 1)).await.unwrap());
    let (second, left) = harvest(folder.path(), u64::MAX);
    second.clone().recover(left).await;
    assert!(second.keep(group(12, 0)).await.unwrap());
    assert_eq!(second.groups(), 3);
    assert_eq!(indices(second.close()), [4, 9, 12]);
    assert_eq!(second.keep(group(13, 0)).await, Err(Dropped::TooLate), "a closed window takes no more");
}

#[tokio::test]
async fn a_record_that_has_gone_is_said_to_have_gone_and_the_others_count() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = harvest(folder.path(), u64::MAX);
    assert!(first.keep(group(4, 0)).await.unwrap() && first.keep(group(9, 1)).await.unwrap());
    let (second, left) = harvest(folder.path(), u64::MAX);
    second.spool.as_ref().unwrap().discard(4).unwrap();
    let why = second.recover_one(4).unwrap_err();
    assert!(why.contains("not in the spool any more"), "{why}");
    second.clone().recover(left).await;
    assert_eq!(indices(second.close()), [9]);
}

#[tokio::test]
async fn a_distrusted_workers_groups_are_gone_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = harvest(folder.path(), u64::MAX);
    for (index, worker) in [(0, 0), (1, 1), (2, 0), (3, 1)] {
        first.keep(group(index, worker)).await.unwrap();
    }
    assert_eq!(first.distrust(1, 4, "it lies").await, 2);
    assert_eq!(first.keep(group(4, 1)).await, Err(Dropped::Distrusted));
    assert_eq!(indices(first.close()), [0, 2]);
    assert_eq!(harvest(folder.path(), u64::MAX).1, [0, 2], "on disk too");
}

fn sent_before() -> Sent {
    let sheet =
        WindowRecord { block_hash: "0xab".into(), checkpoint_window: 570, vocab_size: 9, max_positions: 99, deadline: 1.5 };
    let file = Uploaded { key: "key".into(), groups: 2, bytes: 80, sha256: "ab".into(), sheet };
    let other = Uploaded { key: "of another wallet".into(), sha256: "cd".into(), ..file.clone() };
    Sent { uploaded: Some(file), sending: Some(other), ..Sent::default() }
}

/// A run after one that has sent a file; with the spool as the next run finds it.
fn second_run(folder: &std::path::Path) -> (Arc<Harvest>, Vec<i64>) {
    let hotkey = Hotkey::from_uri("//Alice").unwrap();
    let (spool, left) = Spool::open(Arc::new(FileSystem), folder, hotkey.address(), 600, &UnderWay::default(), u64::MAX).unwrap();
    let harvest = patient(gate::tests::judge(&hotkey), spool);
    let condemned = left.sent.condemned;
    (Arc::new(harvest.after(&Sent { condemned, ..sent_before() }, "key")), left.groups)
}

#[tokio::test]
async fn a_verdict_on_groups_concerns_what_was_sent_before_and_is_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = harvest(folder.path(), u64::MAX);
    for (index, worker) in [(0, 0), (1, 1), (2, 0)] {
        first.keep(group(index, worker)).await.unwrap();
    }
    let (second, left) = second_run(folder.path());
    assert!(!second.is_tainted() && second.take_condemned().is_empty());
    // Before anything of the spool was read: those of the worker are refused as they come.
    assert_eq!(second.distrust(1, 64, "it lies").await, 0);
    let condemned = second.take_condemned();
    assert_eq!(condemned.iter().map(|one| one.file.sha256.as_str()).collect::<Vec<_>>(), ["ab"], "only what is ours");
    assert!(second.is_tainted() && second.take_condemned().is_empty(), "it is given out once");
    drop(second);
    // Killed here. What the third run makes with the same slot is another process's work.
    let (third, _) = second_run(folder.path());
    assert!(!third.is_tainted(), "what was sent is on record as condemned");
    third.clone().recover(left).await;
    third.keep(group(64, 1)).await.unwrap();
    assert_eq!(indices(third.close()), [0, 2, 64]);
    let (fourth, left) = second_run(folder.path());
    fourth.clone().recover(left).await;
    assert_eq!(fourth.hold_back(65, "nobody knows who is right").await, 3);
    assert_eq!(fourth.keep(group(65, 0)).await, Err(Dropped::Distrusted));
    assert_eq!((indices(fourth.close()), harvest(folder.path(), u64::MAX).1), (vec![], vec![]), "on disk too");
}

#[tokio::test]
async fn a_kept_group_that_the_gate_refuses_later_condemns_what_was_sent_with_it() {
    for (spoil, tainted) in [("signature", true), ("checkpoint", false)] {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = harvest(folder.path(), u64::MAX);
        first.keep(group(4, 0)).await.unwrap();
        let mut record = first.spool.as_ref().unwrap().group(4).unwrap();
        let mut rows = group(4, 0).rows;
        match spoil {
            "signature" => rows[3].signature = rows[2].signature.clone(),
            _ => rows.iter_mut().for_each(|row| row.checkpoint_window -= 30),
        }
        record.file = encode_group(&first.metadata(7.0), &rows).unwrap().into();
        first.spool.as_ref().unwrap().put(&record).unwrap();
        let (second, left) = second_run(folder.path());
        second.clone().recover(left).await;
        assert_eq!((second.groups(), second.is_tainted()), (0, tainted), "{spoil}");
        let why = second.take_condemned().pop().map(|condemned| condemned.why).unwrap_or_default();
        assert_eq!(why.contains("group 4") && why.contains("row 3"), tainted, "{spoil}: {why}");
        let noted = second_run(folder.path()).0.sent.condemned.clone();
        assert_eq!(noted.files.len(), usize::from(tainted), "{spoil}: it is on disk");
    }
}

#[tokio::test]
async fn a_disk_that_refuses_costs_durability_and_not_the_group() {
    let folder = tempfile::tempdir().unwrap();
    let (full, _) = harvest(folder.path(), 10);
    assert_eq!(full.keep(group(0, 0)).await, Ok(false));
    assert_eq!((full.groups(), harvest(folder.path(), 10).1), (1, vec![]));
    assert_eq!(full.on_willing_disk(|spool| spool.reserve(64)).await, None, "it is left alone for a while");
    assert_eq!(full.on_disk(|spool| spool.reserve(64)).await, Some(()));
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_one_group_and_takes_them_in_their_order_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let (hanging, _) = harvest(folder.path(), u64::MAX);
    let (release, held) = std::sync::mpsc::channel::<()>();
    assert!(hanging.disk.offer(move || held.recv().unwrap_or_default()));
    // The thread is at it: what follows counts from here.
    while hanging.disk.held_up().is_zero() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Whoever waits for the disk is cut off, as at the end of a window: the group is there all the same.
    let is_kept = async {
        while hanging.worker_of(0).is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        biased;
        () = is_kept => {}
        kept = hanging.keep(group(0, 0)) => assert_eq!(kept, Ok(false)),
    }
    let patience = hanging.disk.held_up() + Duration::from_millis(500);
    hanging.state().disk_patience = Some(patience);
    assert_eq!(hanging.keep(group(1, 1)).await, Ok(false));
    assert!(hanging.disk.held_up() >= patience, "from here on nobody waits for it");
    for index in 2..12 {
        assert_eq!(hanging.keep(group(index, 0)).await, Ok(false));
    }
    assert_eq!(hanging.distrust(1, 12, "it lies").await, 1);
    release.send(()).unwrap();
    while !hanging.disk.is_idle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    hanging.state().disk_patience = Some(LONG);
    assert_eq!(hanging.on_disk(|_| Ok(())).await, Some(()));
    assert_eq!(harvest(folder.path(), u64::MAX).1, [0], "the second one was taken out before its turn came");
    assert_eq!(hanging.keep(group(12, 0)).await, Ok(true));
    assert_eq!(indices(hanging.close()), [vec![0], (2..=12).collect()].concat());
}

#[tokio::test]
async fn what_the_gate_doubts_is_not_kept_and_not_recovered() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = harvest(folder.path(), u64::MAX);
    let mut spoilt = group(5, 0);
    spoilt.rows[3].signature = spoilt.rows[2].signature.clone();
    assert!(matches!(first.keep(spoilt).await, Err(Dropped::Gate(why)) if why.contains("row 3")));
    first.keep(group(6, 0)).await.unwrap();
    let path = folder.path().join("600/group-0000006.record");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[700] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (second, left) = harvest(folder.path(), u64::MAX);
    second.clone().recover(left).await;
    assert_eq!(second.groups(), 0);
    assert!(!path.exists(), "what cannot be used is removed");
}
