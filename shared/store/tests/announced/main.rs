//! What the body of a DELTA announces is not believed: in a process of its own, whose memory is looked at.

// The lint spares test functions only, not what they share.
#![allow(clippy::unwrap_used)]

use grail_store::checkpoint::sparse::{SparseFormat, SparseReader};
use serde_json::json;

/// The beginning of a frame: a window of a megabyte, one raw block that is not the last, and a content size that is freely invented.
fn announcing(content: u64, block: &[u8]) -> Vec<u8> {
    let header = (block.len() as u32) << 3;
    let magic = 0xFD2F_B528_u32;
    [&magic.to_le_bytes()[..], &[0b1100_0000, 10 << 3], &content.to_le_bytes(), &header.to_le_bytes()[..3], block].concat()
}

/// A body of two hundred bytes that announces 80 GB, in the frame's header and in its own.
fn of_eighty_gigabytes() -> Vec<u8> {
    let entries = 20_000_000_000_u64 / 3;
    let header = json!({"version": 2, "tensors": [{
        "name": "w", "shape": [4, 4], "num_nonzero": 1, "value_dtype": "float32", "indices_offset": 0,
        "indices_size": entries * 4, "values_offset": entries * 4, "values_size": entries * 4,
    }]});
    let header = header.to_string();
    let start = [&(header.len() as u32).to_le_bytes()[..], header.as_bytes()].concat();
    announcing(start.len() as u64 + entries * 8, &start)
}

#[test]
fn a_small_body_that_announces_eighty_gigabytes_is_refused_for_what_it_is() {
    let frame = of_eighty_gigabytes();
    assert!(frame.len() < 256, "{}", frame.len());
    let open = |compressed| SparseReader::open(&frame[..], compressed, SparseFormat::V2, 200 << 30).err().unwrap().to_string();
    let error = open(frame.len() as u64);
    assert!(error.contains("which its") && error.contains("cannot hold"), "{error}");
    // Were the file large enough, the tensor is not: entries are held against elements before anything is read.
    let error = open(1 << 30);
    assert!(error.contains("entries for the 16 elements"), "{error}");
}

/// What a shape has room for is not allocated either before it has come: this body ends at once.
#[test]
fn announced_entries_are_not_allocated() {
    let entries = u64::from(u32::MAX);
    let header = json!({"version": 2, "tensors": [{
        "name": "w", "shape": [entries], "num_nonzero": 1, "value_dtype": "float32", "indices_offset": 0,
        "indices_size": entries * 4, "values_offset": entries * 4, "values_size": entries * 4,
    }]});
    let header = header.to_string();
    let start = [&(header.len() as u32).to_le_bytes()[..], header.as_bytes()].concat();
    let frame = announcing(start.len() as u64 + entries * 8, &start);
    let before = address_space();
    for wanted in [true, false] {
        let mut reader = SparseReader::open(&frame[..], 1 << 30, SparseFormat::V2, 200 << 30).unwrap();
        let error = reader.next_tensor(|_| wanted).unwrap_err().to_string();
        assert!(error.contains("frame"), "{error}");
    }
    let grown = address_space().saturating_sub(before);
    assert!(grown < 4 << 30, "34 GB are announced, the peak grew by {grown} bytes");
}

/// The most address space that this process ever had.
fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}
