//! Round trips and hostile files.

use grail_protocol::row::{Commitments, WindowRow};
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use serde_json::json;

use super::schema::{COLUMNS, SCHEMA, blank_row};
use super::writer::write_column;
use super::{MAGIC, WindowFileError, WindowMetadata, WindowWriter, encode_group, outline, read_window, row_groups, splice};

fn metadata() -> WindowMetadata {
    WindowMetadata { wallet: "5Grwva".into(), window_start: 6_300_000, timestamp: 1_795_211_241.527_793_4 }
}

fn row(index: usize, tokens: usize) -> WindowRow {
    let mut row = blank_row();
    row.nonce = index as i64;
    row.block_hash = format!("0x{index:064x}");
    row.use_drand = index.is_multiple_of(2);
    row.rollout_group = (index / 16) as i64;
    row.rollout_index = (index % 16) as i32;
    row.commit.tokens = (0..tokens).map(|token| ((index * 7919 + token * 104_729) % 151_936) as i32).collect();
    let sketch = |token: usize| (index as u32).wrapping_mul(2_654_435_761).wrapping_add(token as u32 * 40_503) % 2_147_483_647;
    row.commit.commitments = Commitments::Sketches((0..tokens).map(sketch).collect());
    row.commit.beacon = json!({"randomness": format!("{index:x}"), "é": [1.5, null]});
    row.commit.rollout.token_logprobs = (0..tokens).map(|token| -1.0 / (1 + token + index) as f32).collect();
    row.commit.rollout.advantage = index as f64 / 3.0;
    row.timestamp = 1.5;
    row
}

fn file_of(groups: &[Vec<WindowRow>]) -> Vec<u8> {
    let mut writer = WindowWriter::new(Vec::new(), &metadata()).unwrap();
    for group in groups {
        writer.append_group(group).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn rows_come_back_as_they_were_written() {
    let mut odd = row(33, 0);
    odd.commit.commitments = Commitments::Other(json!({"not": "a list"}));
    odd.hotkey = "späť".into();
    let groups =
        vec![(0..16).map(|index| row(index, 40 + index)).collect(), (16..32).map(|index| row(index, 1)).collect(), vec![odd]];
    let file = read_window(file_of(&groups)).unwrap();
    assert_eq!(file.metadata, metadata());
    assert_eq!((file.window_length, file.inference_count), (30, 33));
    assert_eq!(file.rows, groups.concat());
}

#[test]
fn a_long_window_is_written_as_few_row_groups_and_read_whole() {
    let groups: Vec<Vec<WindowRow>> =
        (0..3).map(|group| (0..16).map(|index| row(group * 16 + index, 70_000)).collect()).collect();
    let bytes = file_of(&groups);
    let reader = parquet::file::serialized_reader::SerializedFileReader::new(bytes::Bytes::from(bytes.clone())).unwrap();
    assert_eq!(parquet::file::reader::FileReader::metadata(&reader).num_row_groups(), 2);
    assert_eq!(read_window(bytes).unwrap().rows, groups.concat());
}

/// A foreign file: `schema` may order and name columns its own way; columns that are unknown, and `null`, hold only nulls.
fn foreign_file(schema: &str, null: &str, rows: &[WindowRow]) -> Vec<u8> {
    packed_file(schema, null, rows, Compression::UNCOMPRESSED)
}

fn packed_file(schema: &str, null: &str, rows: &[WindowRow], codec: Compression) -> Vec<u8> {
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let text = |key: &str, value: &str| KeyValue::new(key.to_owned(), value.to_owned());
    let keys = [("wallet", "w"), ("window_start", "30"), ("window_length", "30"), ("inference_count", "2"), ("timestamp", "1.5")];
    let properties = WriterProperties::builder().set_key_value_metadata(Some(keys.map(|(key, value)| text(key, value)).to_vec()));
    let properties = properties.set_compression(codec).build();
    let mut file = SerializedFileWriter::new(Vec::new(), schema, std::sync::Arc::new(properties)).unwrap();
    let leaves: Vec<String> = file.schema_descr().columns().iter().map(|leaf| leaf.path().string()).collect();
    let mut row_group = file.next_row_group().unwrap();
    for path in leaves {
        let mut writer = row_group.next_column().unwrap().unwrap();
        let known = COLUMNS.iter().find(|column| path == column.path || path.starts_with(&format!("{}.", column.path)));
        match known.filter(|column| column.path != null) {
            Some(column) => write_column(&mut writer, &column.leaf, rows).unwrap(),
            None => write_nulls(writer.untyped(), rows.len()),
        }
        writer.close().unwrap();
    }
    row_group.close().unwrap();
    file.into_inner().unwrap()
}

fn write_nulls(writer: &mut ColumnWriter<'_>, rows: usize) {
    let levels = vec![0; rows];
    let levels = (Some(levels.as_slice()), Some(levels.as_slice()));
    match writer {
        ColumnWriter::BoolColumnWriter(writer) => writer.write_batch(&[], levels.0, levels.1),
        ColumnWriter::Int32ColumnWriter(writer) => writer.write_batch(&[], levels.0, levels.1),
        ColumnWriter::Int64ColumnWriter(writer) => writer.write_batch(&[], levels.0, levels.1),
        ColumnWriter::FloatColumnWriter(writer) => writer.write_batch(&[], levels.0, levels.1),
        ColumnWriter::DoubleColumnWriter(writer) => writer.write_batch(&[], levels.0, levels.1),
        ColumnWriter::ByteArrayColumnWriter(writer) => writer.write_batch(&[], levels.0, levels.1),
        _ => panic!("not a type of window files"),
    }
    .unwrap();
}

#[test]
fn a_null_is_refused_with_its_column_and_only_a_null_group_is_banned() {
    let rows = [row(0, 3), row(1, 2)];
    assert_eq!(read_window(foreign_file(SCHEMA, "", &rows)).unwrap().rows, rows);
    for column in &COLUMNS {
        let error = read_window(foreign_file(SCHEMA, column.path, &rows)).unwrap_err();
        assert_eq!(matches!(error, WindowFileError::Corrupt(_)), column.path == "rollout_group", "{error}");
        assert!(error.to_string().contains(column.path) && error.to_string().contains("row 0"), "{error}");
    }
}

#[test]
fn files_of_every_codec_are_read_whose_decoder_has_a_bound() {
    let rows = [row(0, 3), row(1, 2)];
    let file = |codec| read_window(packed_file(SCHEMA, "", &rows, codec));
    for codec in [Compression::SNAPPY, Compression::GZIP(Default::default()), Compression::ZSTD(Default::default())] {
        assert_eq!(file(codec).unwrap().rows, rows, "{codec}");
    }
    assert_eq!(file(Compression::LZ4_RAW).unwrap().rows, rows);
    for codec in [Compression::BROTLI(Default::default()), Compression::LZ4] {
        let error = file(codec).unwrap_err();
        let refused = matches!(&error, WindowFileError::Unreadable(why) if why.contains("which is not unpacked here"));
        assert!(refused, "{codec}: {error}");
    }
}

#[test]
fn columns_are_found_by_name_and_checked_by_type() {
    let rows = [row(0, 3), row(1, 0)];
    // Other order, an extra column, required fields, other names inside the list.
    let moved = SCHEMA.replace("  optional int64 window_start;\n", "");
    let moved = moved.replace(
        "  optional binary challenge",
        "  optional int32 extra;\n  required int64 window_start;\n  optional binary challenge",
    );
    let moved = moved.replace("repeated group list { optional int32 element; }", "repeated group array { required int32 item; }");
    assert_eq!(read_window(foreign_file(&moved, "", &rows)).unwrap().rows, rows);
    let missing = SCHEMA.replace("int64 block;", "int64 blocks;");
    assert!(read_window(foreign_file(&missing, "", &rows)).unwrap_err().to_string().contains("block is missing"));
    let other_type = SCHEMA.replace("int64 block;", "int32 block;");
    let error = read_window(foreign_file(&other_type, "block", &rows)).unwrap_err();
    assert!(error.to_string().contains("block is INT32, not INT64"), "{error}");
}

#[test]
fn a_window_without_rows_is_a_valid_file() {
    let file = read_window(file_of(&[])).unwrap();
    assert_eq!((file.rows.len(), file.inference_count), (0, 0));
}

#[test]
fn truncated_files_are_corrupt_and_never_panic() {
    let bytes = file_of(&[(0..16).map(|index| row(index, 64)).collect()]);
    for length in (0..bytes.len()).step_by(97) {
        let error = read_window(bytes[..length].to_vec()).unwrap_err();
        assert!(matches!(error, WindowFileError::Corrupt(_)), "{length}: {error}");
    }
}

#[test]
fn flipped_bits_never_panic_or_hang() {
    let bytes = file_of(&[(0..16).map(|index| row(index, 64)).collect()]);
    let footer = bytes.len().saturating_sub(4_000);
    for position in (0..footer).step_by(97).chain((footer..bytes.len()).step_by(3)) {
        for bit in [0, 3, 7] {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1 << bit;
            // Damage may hide in statistics or padding; what counts is that the answer is a value or an error.
            let _ = read_window(damaged);
        }
    }
}

#[test]
fn too_large_files_are_refused_before_they_are_parsed() {
    let error = read_window(vec![0; super::MAX_FILE_BYTES + 1]).unwrap_err();
    assert!(matches!(error, WindowFileError::Unreadable(_)));
}

#[test]
fn groups_that_were_encoded_one_by_one_make_one_file_with_the_same_rows_and_digests() {
    let groups: Vec<Vec<WindowRow>> =
        (0..5).map(|group| (0..16).map(|index| row(group * 16 + index, 33 + index)).collect()).collect();
    let encoded: Vec<bytes::Bytes> = groups.iter().map(|rows| encode_group(&metadata(), rows).unwrap().into()).collect();
    let file = bytes::Bytes::from(splice(&metadata(), &encoded).unwrap());
    let bodies: Vec<bytes::Bytes> = encoded.iter().map(|group| row_groups(group).unwrap()).collect();
    assert!(file.starts_with(&[MAGIC, &bodies.concat()].concat()), "what a window's file begins with is known before its end");
    let read = read_window(file.clone()).unwrap();
    assert_eq!(read.rows, groups.concat());
    assert_eq!((read.metadata, read.window_length, read.inference_count), (metadata(), 30, 80));
    let whole = outline(&file).unwrap();
    assert_eq!((whole.metadata, whole.inference_count), (metadata(), 80));
    let parts: Vec<_> = encoded.iter().map(|bytes| outline(bytes).unwrap().row_groups[0]).collect();
    assert_eq!(whole.row_groups, parts);
    assert!(parts[1..].iter().all(|part| part.digest != parts[0].digest && part.rows == 16));
}

#[test]
fn a_group_by_itself_has_no_dictionary_of_its_log_probabilities() {
    let bytes = encode_group(&metadata(), &(0..16).map(|index| row(index, 40)).collect::<Vec<_>>()).unwrap();
    let columns = super::layout(bytes).unwrap().columns;
    let plain: Vec<&str> = columns.iter().filter(|column| !column.has_dictionary).map(|column| column.path.as_str()).collect();
    // Parquet has no dictionaries of booleans.
    assert_eq!(plain, ["use_drand", "commit.rollout.success", "commit.rollout.token_logprobs.list.element"]);
}

#[test]
fn a_changed_byte_of_a_row_group_changes_its_digest() {
    let rows: Vec<WindowRow> = (0..16).map(|index| row(index, 40)).collect();
    let bytes = encode_group(&metadata(), &rows).unwrap();
    let before = outline(&bytes.clone().into()).unwrap();
    let footer = u32::from_le_bytes(bytes[bytes.len() - 8..][..4].try_into().unwrap()) as usize;
    for place in (4..bytes.len() - 8 - footer).step_by(101) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        assert_ne!(outline(&damaged.into()).unwrap().row_groups, before.row_groups, "byte {place}");
    }
}

#[test]
fn outlines_and_splices_of_damaged_files_are_errors_and_never_panic() {
    let bytes = encode_group(&metadata(), &(0..16).map(|index| row(index, 40)).collect::<Vec<_>>()).unwrap();
    assert!(splice(&metadata(), &[bytes[..bytes.len() / 2].to_vec().into()]).is_err());
    for place in (0..bytes.len()).step_by(13) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x81;
        let _ = outline(&damaged.into());
    }
}
