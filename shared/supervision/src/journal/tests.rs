//! The journal on a real disk: what is found again after crashes, rotations and refusals.

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::event;

event! {
    /// Something is lost.
    GroupDropped, "group_dropped", lasting: false, warn "A group was dropped."
    {
        /// First block of the window.
        window: u64,
        /// The problem index.
        group: i64,
        /// Why.
        cause: String,
        /// What is known beyond that.
        detail: String,
    }
}

event! {
    /// Something else.
    GroupKept, "group_kept", lasting: false, debug "A group is kept."
    {
        /// The problem index.
        group: i64,
    }
}

fn dropped(group: i64) -> GroupDropped {
    GroupDropped { window: 30, group, cause: "too late".into(), detail: "\"quoted\"\nand more".into() }
}

fn write(folder: &Path, groups: std::ops::Range<i64>) {
    let journal = Journal::open(folder);
    for group in groups {
        journal.record(&dropped(group));
    }
    journal.flush(Duration::from_secs(20));
}

#[test]
fn records_are_found_again_in_order_over_restarts_and_a_torn_tail() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 0..3);
    let path = folder.path().join("journal.jsonl");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    write(folder.path(), 3..5);
    let reading = read(folder.path()).unwrap();
    assert_eq!(reading.damaged, 1);
    let groups: Vec<i64> = reading.entries.iter().map(|entry| entry.event::<GroupDropped>().unwrap().group).collect();
    assert_eq!(groups, [0, 1, 3, 4]);
    assert_eq!(reading.entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(reading.entries[0].event::<GroupKept>().is_none() && reading.entries[0].window() == Some(30));
}

#[test]
fn every_line_is_plain_json_for_other_tools() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 0..1);
    let text = std::fs::read_to_string(folder.path().join("journal.jsonl")).unwrap();
    let value: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!((&value["kind"], &value["data"]["group"]), (&json!("group_dropped"), &json!(0)));
}

#[test]
fn a_full_file_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 0..2);
    let path = folder.path().join("journal.jsonl");
    let mut text = std::fs::read(&path).unwrap();
    text.resize(16 * 1024 * 1024, b'\n');
    std::fs::write(&path, text).unwrap();
    write(folder.path(), 2..4);
    assert!(std::fs::metadata(&path).unwrap().len() < 1024);
    let reading = read(folder.path()).unwrap();
    let groups: Vec<i64> = reading.entries.iter().map(|entry| entry.event::<GroupDropped>().unwrap().group).collect();
    assert_eq!(groups, [0, 1, 2, 3]);
}

#[test]
fn a_disk_that_refuses_costs_the_journal_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let journal = Journal::open(&file);
    journal.record(&dropped(0));
    journal.flush(Duration::from_secs(20));
    assert_eq!(journal.counts()["group_dropped"], 1);
    assert!(read(&file).is_err());
}

#[test]
fn data_that_is_too_long_is_left_out_and_said_to_be() {
    let data = json!({ "window": 30, "why": "x".repeat(MAX_LINE) });
    let line = encode(&Entry { seq: 1, time: 1.5, kind: "k".into(), data });
    assert!(line.len() < 200);
    let entry = decode(line.as_bytes()).unwrap();
    assert_eq!((entry.window(), entry.data["left_out_bytes"].as_u64().unwrap() > MAX_LINE as u64), (Some(30), true));
    assert!(matches!(decode(&vec![b'x'; MAX_LINE + 1]), Err(LineError::TooLong(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lines_come_back_and_damage_is_seen(seq: u64, time in 0.0_f64..4e9, text: String, place: usize, bit in 0_u8..8) {
        let entry = Entry { seq, time, kind: "kind".into(), data: json!({ "text": text }) };
        let line = encode(&entry);
        prop_assert!(!line.contains('\n'));
        prop_assert_eq!(decode(line.as_bytes()).unwrap(), entry);
        let mut damaged = line.into_bytes();
        let place = place % damaged.len();
        damaged[place] ^= 1 << bit;
        prop_assert!(decode(&damaged).is_err());
    }

    #[test]
    fn any_bytes_are_a_record_or_an_error(bytes: Vec<u8>) {
        let _ = decode(&bytes);
    }
}
