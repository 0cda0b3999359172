//! What is written is read, and nothing damaged is believed. The network's own bodies are in the conformance tests.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn tensor(name: &str, shape: &[u64], positions: &[u32]) -> SparseTensor {
    let values = positions.iter().flat_map(|position| (*position as u16).to_le_bytes()).collect();
    SparseTensor { name: name.into(), shape: shape.into(), value_type: ValueType::Bf16, positions: positions.into(), values }
}

fn read(frame: &[u8], format: SparseFormat) -> Result<Vec<SparseTensor>, SparseError> {
    let mut reader = SparseReader::open(frame, frame.len() as u64, format, 1 << 20)?;
    let mut tensors = Vec::new();
    while let Some(tensor) = reader.next_tensor(|_| true)? {
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn compressed(body: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(body, 1).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_read_in_every_format(
        positions in prop::collection::btree_set(0_u32..700_000, 0..200),
        (rows, columns) in prop::sample::select(vec![(700_000, 1), (7, 100_000), (100_000, 7), (1, 700_000)]),
    ) {
        let positions: Vec<u32> = positions.into_iter().collect();
        let tensors = [tensor("a", &[rows, columns], &positions), tensor("b", &[700_000], &positions)];
        for format in SparseFormat::ALL {
            let mut got = read(&compressed(&encode(&tensors, format)), format).unwrap();
            if positions.is_empty() && format == SparseFormat::V2 {
                got.clear();
            }
            let want: &[SparseTensor] = if positions.is_empty() { &[] } else { &tensors };
            prop_assert_eq!(&got[..], want);
        }
    }

    #[test]
    fn damaged_bytes_are_errors_and_never_panic(at in 0_usize..400, value: u8, cut in 0_usize..400) {
        let mut body = encode(&[tensor("a", &[30, 40], &[1, 2, 41, 1199])], SparseFormat::V31);
        let at = at % body.len();
        body[at] = value;
        let _ = read(&compressed(&body), SparseFormat::V31);
        let frame = compressed(&body);
        let _ = read(&frame[..cut.min(frame.len())], SparseFormat::V31);
        let mut frame = frame;
        let at = at % frame.len();
        frame[at] ^= value;
        let _ = read(&frame, SparseFormat::V31);
    }
}

/// A v3.1 body of one tensor of four rows of four, whose header is changed and whose data is given.
fn changed(change: impl FnOnce(&mut Value), data: &[u8]) -> Vec<u8> {
    let mut entry = json!({
        "name": "w", "shape": [4, 4], "num_nonzero": 2, "value_dtype": "bfloat16", "row_dtype": "uint8", "col_dtype": "uint16",
        "indices_offset": 0, "indices_size": 6, "rows_size": 2, "cols_size": 4, "values_offset": 6, "values_size": 4,
    });
    change(&mut entry);
    let header = json!({"version": 31, "tensors": [entry]}).to_string();
    compressed(&[&(header.len() as u32).to_le_bytes()[..], header.as_bytes(), data].concat())
}

#[test]
fn every_lie_is_refused_by_name() {
    let data = [1, 1, 1, 0, 2, 0, 9, 9, 9, 9];
    let good = read(&changed(|_| {}, &data), SparseFormat::V31).unwrap();
    assert_eq!(good[0].positions, [5, 10]);
    type Change = fn(&mut Value);
    let cases: [(Change, &[u8], &str); 18] = [
        (|entry| entry["shape"] = json!([]), &data, "0 sides"),
        (|entry| entry["shape"] = json!([65536, 65536]), &data, "more elements"),
        (|entry| entry["shape"] = json!([1, 1]), &data, "2 entries for the 1 elements"),
        (|entry| entry["shape"] = json!([2, 4]), &data, "position 10, want ascending positions below 8"),
        (|entry| entry["value_dtype"] = json!("float64"), &data, "float64"),
        (|entry| entry["row_dtype"] = json!("int64"), &data, "int64"),
        (|entry| entry["col_dtype"] = json!("uint8"), &data, "2 rows for 4 columns"),
        (|entry| entry["rows_size"] = Value::Null, &data, "rows_size"),
        (|entry| entry["rows_size"] = json!(3), &data, "3 bytes of rows and 4 of columns"),
        (|entry| entry["indices_offset"] = json!(1), &data, "overlap or leave a gap"),
        (|entry| entry["values_offset"] = json!(4), &data, "overlap or leave a gap"),
        (|entry| entry["values_size"] = json!(u64::MAX), &data, "leave the body"),
        (|entry| entry["values_size"] = json!(2), &data[..8], "2 bytes of values for 2 positions"),
        (|_| {}, &[1, 1, 1, 0, 2, 0, 9, 9, 9, 9, 0], "1 bytes of its data belong to no tensor"),
        (|_| {}, &data[..9], "leave the body"),
        (|_| {}, &[1, 0, 1, 0, 0, 0, 9, 9, 9, 9], "entry 1 is for position 5"),
        (|_| {}, &[1, 0, 1, 0, 3, 0, 9, 9, 9, 9], "column 4 of rows of 4"),
        (|entry| entry["name"] = Value::Null, &data, "header is unusable"),
    ];
    for (change, data, word) in cases {
        let error = read(&changed(change, data), SparseFormat::V31).unwrap_err().to_string();
        assert!(error.contains(word), "want {word:?}, got {error}");
    }
    let twice = [tensor("w", &[4], &[1]), tensor("w", &[4], &[2])];
    let error = read(&compressed(&encode(&twice, SparseFormat::V2)), SparseFormat::V2).unwrap_err().to_string();
    assert!(error.contains("listed twice"), "{error}");
    let backwards = encode(&[tensor("w", &[9], &[5])], SparseFormat::V2);
    let at = backwards.len() - 6;
    let negative = [&backwards[..at], &(-5_i32).to_le_bytes(), &backwards[at + 4..]].concat();
    let error = read(&compressed(&negative), SparseFormat::V2).unwrap_err().to_string();
    assert!(error.contains("position -5"), "{error}");
}

#[test]
fn a_body_may_not_be_larger_than_allowed() {
    let frame = compressed(&encode(&[tensor("a", &[30, 40], &[1, 2])], SparseFormat::V31));
    let error = SparseReader::open(&frame[..], frame.len() as u64, SparseFormat::V31, 10).err().unwrap().to_string();
    assert!(error.contains("more than the 10 allowed"), "{error}");
}

/// A model may have lost a tensor that a body still changes: its entries are passed over, not kept.
#[test]
fn tensors_that_nobody_wants_are_passed_over() {
    let frame = compressed(&encode(&[tensor("a", &[9], &[1]), tensor("b", &[9], &[2])], SparseFormat::V31));
    let mut reader = SparseReader::open(&frame[..], frame.len() as u64, SparseFormat::V31, 1 << 20).unwrap();
    assert_eq!(reader.next_tensor(|name| name == "b").unwrap().unwrap().positions, [2]);
    assert!(reader.next_tensor(|_| true).unwrap().is_none());
}
