//! Reading a window file without trusting it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use grail_protocol::row::WindowRow;
use parquet::basic::{Compression, Type as Physical};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::{FileReader, RowGroupReader};
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::schema::types::ColumnDescriptor;

use super::pages::{BoundedPages, Budget};
use super::schema::{COLUMNS, Column, Leaf, blank_row};
use super::{WindowFile, WindowFileError, WindowMetadata, commitments};

/// Largest file that a validator looks at (grail-protocol 6.1).
pub const MAX_FILE_BYTES: usize = 350 * 1024 * 1024;
/// Rows of a file at most: ten times what a window may count.
pub const MAX_ROWS: usize = 50_000;
/// Elements of one column at most; 350 MiB cannot hold more honest tokens, their sketches alone take four bytes each.
const MAX_VALUES: u64 = 64_000_000;
/// Decompressed bytes over all columns at most.
const MAX_DECOMPRESSED: u64 = 3 << 30;
/// What every Parquet file begins and ends with.
pub const MAGIC: &[u8] = b"PAR1";
const SMALLEST_FILE: usize = 12;

/// Reads a window file of any codec, columns by name, extra columns ignored.
///
/// # Errors
/// [`WindowFileError::Corrupt`] for what a validator bans, [`WindowFileError::Unreadable`] for what it treats as absent;
/// a null in any leaf other than `rollout_group` belongs to the latter, and the message names column and row.
pub fn read_window(bytes: impl Into<Bytes>) -> Result<WindowFile, WindowFileError> {
    let bytes = bytes.into();
    check_envelope(&bytes)?;
    guarded(|| read(bytes))
}

/// The decoder is a large parser of hostile input; should it panic, that is this file's fault and no reason to stop.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, WindowFileError>) -> Result<T, WindowFileError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(WindowFileError::Unreadable("the Parquet decoder panicked on it".into())))
}

/// What a Parquet reader checks before it looks inside: failing here is the class that is banned.
pub(super) fn check_envelope(bytes: &[u8]) -> Result<(), WindowFileError> {
    let corrupt = |why: String| Err(WindowFileError::Corrupt(why));
    let size = bytes.len();
    if size < SMALLEST_FILE {
        return corrupt(format!("{size} bytes are too few for a Parquet file"));
    }
    if size > MAX_FILE_BYTES {
        return Err(unreadable(format!("{size} bytes are more than the {MAX_FILE_BYTES} of a window")));
    }
    let Some((footer, magic)) = bytes.last_chunk::<8>().map(|tail| tail.split_at(4)) else {
        return corrupt("no footer".into());
    };
    if magic != MAGIC {
        return corrupt("it does not end with Parquet's magic bytes, so it is cut short or not Parquet".into());
    }
    let footer = u32::from_le_bytes(footer.try_into().unwrap_or_default()) as usize;
    if footer > size - 8 {
        return corrupt(format!("its footer claims {footer} of {size} bytes"));
    }
    Ok(())
}

pub(super) fn unreadable(why: impl Into<String>) -> WindowFileError {
    WindowFileError::Unreadable(why.into())
}

fn damaged(error: &ParquetError) -> WindowFileError {
    unreadable(error.to_string())
}

fn read(bytes: Bytes) -> Result<WindowFile, WindowFileError> {
    let file = SerializedFileReader::new(bytes).map_err(|error| damaged(&error))?;
    let footer = file.metadata();
    check_footer(footer)?;
    let budget = Arc::new(Mutex::new(Budget { bytes: MAX_DECOMPRESSED, values: MAX_VALUES }));
    let mut rows = Vec::new();
    for index in 0..footer.num_row_groups() {
        let row_group = file.get_row_group(index).map_err(|error| damaged(&error))?;
        read_row_group(&mut rows, row_group.as_ref(), &budget)?;
    }
    let (metadata, window_length, inference_count) = metadata_of(footer)?;
    Ok(WindowFile { metadata, window_length, inference_count, rows })
}

/// The key-value metadata: who and when, blocks per window, rows as the writer counted them.
pub(super) fn metadata_of(footer: &ParquetMetaData) -> Result<(WindowMetadata, i64, i64), WindowFileError> {
    let metadata = WindowMetadata {
        wallet: key_value(footer, "wallet")?.to_owned(),
        window_start: number(footer, "window_start")?,
        timestamp: number(footer, "timestamp")?,
    };
    Ok((metadata, number(footer, "window_length")?, number(footer, "inference_count")?))
}

pub(super) fn check_footer(footer: &ParquetMetaData) -> Result<(), WindowFileError> {
    let mut rows = 0_usize;
    for row_group in footer.row_groups() {
        let count = usize::try_from(row_group.num_rows()).map_err(|_| unreadable("a row group has a negative row count"))?;
        rows = rows.saturating_add(count);
        // Their decoders unpack a page to whatever is in it, and a window file is a stranger's.
        let unbounded = |chunk: &&ColumnChunkMetaData| matches!(chunk.compression(), Compression::BROTLI(_) | Compression::LZ4);
        if let Some(chunk) = row_group.columns().iter().find(unbounded) {
            let (column, codec) = (chunk.column_path(), chunk.compression());
            return Err(unreadable(format!("its column {column} is compressed as {codec}, which is not unpacked here")));
        }
    }
    if rows > MAX_ROWS {
        return Err(unreadable(format!("it claims {rows} rows, more than the {MAX_ROWS} allowed")));
    }
    Ok(())
}

fn key_value<'a>(footer: &'a ParquetMetaData, key: &str) -> Result<&'a str, WindowFileError> {
    let entries = footer.file_metadata().key_value_metadata().into_iter().flatten();
    let value = entries.filter(|entry| entry.key == key).find_map(|entry| entry.value.as_deref());
    value.ok_or_else(|| unreadable(format!("its metadata has no {key}")))
}

fn number<T: std::str::FromStr>(footer: &ParquetMetaData, key: &str) -> Result<T, WindowFileError> {
    let text = key_value(footer, key)?;
    text.trim().parse().map_err(|_| unreadable(format!("its metadata says {key} = {text:?}, which is no number")))
}

/// A column chunk to read: where it is, what it is called, and the first row it belongs to.
struct Chunk<'a> {
    row_group: &'a dyn RowGroupReader,
    index: usize,
    column: &'a Column,
    first_row: usize,
    budget: &'a Arc<Mutex<Budget>>,
}

fn read_row_group(
    rows: &mut Vec<WindowRow>,
    row_group: &dyn RowGroupReader,
    budget: &Arc<Mutex<Budget>>,
) -> Result<(), WindowFileError> {
    let first_row = rows.len();
    let count = usize::try_from(row_group.metadata().num_rows()).map_err(|_| unreadable("negative row count"))?;
    rows.resize_with(first_row + count, blank_row);
    // A null group is the one null that is banned: look for it before anything else can fail.
    let (groups, others): (Vec<_>, Vec<_>) = COLUMNS.iter().partition(|column| column.path == "rollout_group");
    for column in groups.into_iter().chain(others) {
        let index = leaf_index(row_group, column)?;
        Chunk { row_group, index, column, first_row, budget }.fill(&mut rows[first_row..])?;
    }
    Ok(())
}

/// The leaf that carries `column`. A list's leaf is the only one below the list's path, whatever its inner names are.
fn leaf_index(row_group: &dyn RowGroupReader, column: &Column) -> Result<usize, WindowFileError> {
    let (physical, is_list) = match column.leaf {
        Leaf::Int64(_) => (Physical::INT64, false),
        Leaf::Int32(_) => (Physical::INT32, false),
        Leaf::Double(_) => (Physical::DOUBLE, false),
        Leaf::Bool(_) => (Physical::BOOLEAN, false),
        Leaf::Text(..) | Leaf::Commitments | Leaf::Beacon => (Physical::BYTE_ARRAY, false),
        Leaf::Int32List(_) => (Physical::INT32, true),
        Leaf::FloatList(_) => (Physical::FLOAT, true),
    };
    let wanted: Vec<&str> = column.path.split('.').collect();
    let matches = |leaf: &ColumnDescriptor| {
        let parts = leaf.path().parts();
        parts.len() >= wanted.len() && parts.iter().zip(&wanted).all(|(part, want)| part == want)
    };
    let metadata = row_group.metadata();
    let schema = metadata.schema_descr();
    let found = schema.columns().iter().position(|leaf| matches(leaf));
    let index = found.ok_or_else(|| unreadable(format!("column {} is missing", column.path)))?;
    let leaf = schema.column(index);
    let right_shape = leaf.max_rep_level() == i16::from(is_list) && (is_list || leaf.path().parts().len() == wanted.len());
    if leaf.physical_type() != physical || !right_shape {
        let kind = if is_list { "a list of " } else { "" };
        return Err(unreadable(format!("column {} is {}, not {kind}{physical}", column.path, leaf.physical_type())));
    }
    Ok(index)
}

impl Chunk<'_> {
    fn fill(&self, rows: &mut [WindowRow]) -> Result<(), WindowFileError> {
        match &self.column.leaf {
            Leaf::Int64(access) => self.plain::<Int64Type>(rows, always(access.put)),
            Leaf::Int32(access) => self.plain::<Int32Type>(rows, always(access.put)),
            Leaf::Double(access) => self.plain::<DoubleType>(rows, always(access.put)),
            Leaf::Bool(access) => self.plain::<BoolType>(rows, always(access.put)),
            Leaf::Text(_, put) => self.plain::<ByteArrayType>(rows, |row, value| utf8(&value).map(|text| put(row, text))),
            Leaf::Int32List(list) => self.list::<Int32Type>(rows, list.put),
            Leaf::FloatList(list) => self.list::<FloatType>(rows, list.put),
            Leaf::Commitments => self.plain::<ByteArrayType>(rows, |row, value| {
                row.commit.commitments = commitments::from_text(value.data()).map_err(|error| error.to_string())?;
                Ok(())
            }),
            Leaf::Beacon => self.plain::<ByteArrayType>(rows, |row, value| {
                row.commit.beacon = serde_json::from_slice(value.data()).map_err(|error| error.to_string())?;
                Ok(())
            }),
        }
    }

    fn plain<T: DataType>(
        &self,
        rows: &mut [WindowRow],
        put: impl Fn(&mut WindowRow, T::T) -> Result<(), String>,
    ) -> Result<(), WindowFileError> {
        let levels = self.levels::<T>(rows.len())?;
        let mut values = levels.values.into_iter();
        for (offset, row) in rows.iter_mut().enumerate() {
            let defined = levels.definitions.get(offset).is_none_or(|level| *level == levels.present);
            let value = if defined { values.next() } else { None };
            let value = value.ok_or_else(|| self.null(offset))?;
            put(row, value).map_err(|why| self.wrong(offset, &why))?;
        }
        Ok(())
    }

    fn list<T: DataType>(&self, rows: &mut [WindowRow], put: impl Fn(&mut WindowRow, Vec<T::T>)) -> Result<(), WindowFileError> {
        let levels = self.levels::<T>(rows.len())?;
        let mut values = levels.values.into_iter();
        let mut start = 0;
        for (offset, row) in rows.iter_mut().enumerate() {
            let rest = levels.repetitions.get(start + 1..).unwrap_or_default();
            let end = start + 1 + rest.iter().take_while(|level| **level != 0).count();
            let definitions = levels.definitions.get(start..end).ok_or_else(|| self.null(offset))?;
            start = end;
            let empty = definitions.len() == 1 && definitions[0] == levels.empty;
            let length = if empty { 0 } else { definitions.len() };
            if !empty && definitions.iter().any(|level| *level != levels.present) {
                return Err(self.null(offset));
            }
            put(row, values.by_ref().take(length).collect());
        }
        Ok(())
    }

    /// Decodes the chunk, which must hold exactly `count` records.
    fn levels<T: DataType>(&self, count: usize) -> Result<Levels<T::T>, WindowFileError> {
        let located = |error: ParquetError| unreadable(format!("column {}: {error}", self.column.path));
        let descriptor = self.row_group.metadata().column(self.index).column_descr_ptr();
        let pages = self.row_group.get_column_page_reader(self.index).map_err(located)?;
        let pages = BoundedPages { pages, budget: Arc::clone(self.budget), values: 0 };
        let mut levels = Levels {
            values: Vec::new(),
            definitions: Vec::new(),
            repetitions: Vec::new(),
            present: descriptor.max_def_level(),
            empty: descriptor.repeated_ancestor_def_level() - 1,
        };
        let mut reader = ColumnReaderImpl::<T>::new(descriptor, Box::new(pages));
        let mut records = 0;
        while records < count {
            let (read, ..) = reader
                .read_records(count - records, Some(&mut levels.definitions), Some(&mut levels.repetitions), &mut levels.values)
                .map_err(located)?;
            if read == 0 {
                let why = format!("column {} holds {records} rows, its row group {count}", self.column.path);
                return Err(unreadable(why));
            }
            records += read;
        }
        Ok(levels)
    }

    fn null(&self, offset: usize) -> WindowFileError {
        let row = self.first_row + offset;
        if self.column.path == "rollout_group" {
            return WindowFileError::Corrupt(format!("row {row} has a null rollout_group"));
        }
        unreadable(format!("row {row} has a null {}", self.column.path))
    }

    fn wrong(&self, offset: usize, why: &str) -> WindowFileError {
        unreadable(format!("row {} has a wrong {}: {why}", self.first_row + offset, self.column.path))
    }
}

/// One decoded column chunk: values that are there, and the levels that say where the others are missing.
struct Levels<T> {
    values: Vec<T>,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
    /// Definition level of a value that is there.
    present: i16,
    /// Definition level of a list without elements.
    empty: i16,
}

/// An accessor whose value cannot be wrong.
fn always<T>(put: fn(&mut WindowRow, T)) -> impl Fn(&mut WindowRow, T) -> Result<(), String> {
    move |row, value| {
        put(row, value);
        Ok(())
    }
}

fn utf8(value: &ByteArray) -> Result<String, String> {
    value.as_utf8().map(str::to_owned).map_err(|_| "not UTF-8".to_owned())
}
