//! Writing a window file.

use std::io::Write;
use std::sync::Arc;

use grail_protocol::constants::WINDOW_LENGTH;
use grail_protocol::python_json::{self, DEFAULT, write_float};
use grail_protocol::row::WindowRow;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;

use super::schema::{COLUMNS, Leaf, SCHEMA};
use super::{WindowFileError, WindowMetadata, commitments};

/// Tokens that are collected before a row group is encoded. Twelve bytes each (token, log-probability, sketch) make about
/// 24 MB, and a window of 5,000 rows x 1,200 tokens ends as three row groups, of which only the last is left to encode at
/// the deadline.
const TOKENS_PER_ROW_GROUP: usize = 2_000_000;

/// Rows whose values are laid out at once; bounds the copies made while a column is encoded.
const ROWS_PER_BATCH: usize = 64;

/// Writes one window file, group by group.
pub struct WindowWriter<W: Write + Send> {
    file: SerializedFileWriter<W>,
    pending: Vec<WindowRow>,
    pending_tokens: usize,
    rows_written: usize,
}

impl<W: Write + Send> WindowWriter<W> {
    /// Starts the file. `sink` is buffered by the writer.
    ///
    /// # Errors
    /// [`WindowFileError::Write`] when the sink fails.
    pub fn new(sink: W, metadata: &WindowMetadata) -> Result<Self, WindowFileError> {
        let file = start(sink, metadata)?;
        Ok(Self { file, pending: Vec::new(), pending_tokens: 0, rows_written: 0 })
    }

    /// Adds the rows of one complete group; a row group is encoded whenever enough tokens have come together.
    ///
    /// # Errors
    /// [`WindowFileError::Write`] when the encoder or the sink fails; the file is then of no use.
    pub fn append_group(&mut self, rows: &[WindowRow]) -> Result<(), WindowFileError> {
        self.pending_tokens += rows.iter().map(|row| row.commit.tokens.len()).sum::<usize>();
        self.pending.extend_from_slice(rows);
        if self.pending_tokens >= TOKENS_PER_ROW_GROUP { self.write_row_group() } else { Ok(()) }
    }

    /// Rows appended so far.
    pub fn rows(&self) -> usize {
        self.rows_written + self.pending.len()
    }

    /// Encodes what is pending, writes the footer with `inference_count` = the rows appended, and returns the flushed sink.
    ///
    /// # Errors
    /// [`WindowFileError::Write`] when the encoder or the sink fails.
    pub fn finish(mut self) -> Result<W, WindowFileError> {
        if !self.pending.is_empty() {
            self.write_row_group()?;
        }
        finish(self.file, self.rows_written as i64)
    }

    fn write_row_group(&mut self) -> Result<(), WindowFileError> {
        let rows = std::mem::take(&mut self.pending);
        let mut row_group = self.file.next_row_group()?;
        for column in &COLUMNS {
            let missing = || ParquetError::General(format!("the schema has no column {}", column.path));
            let mut writer = row_group.next_column()?.ok_or_else(missing)?;
            write_column(&mut writer, &column.leaf, &rows)?;
            writer.close()?;
        }
        row_group.close()?;
        self.rows_written += rows.len();
        self.pending_tokens = 0;
        Ok(())
    }
}

/// Starts a file of the network's form: its schema, codec and metadata.
pub(super) fn start<W: Write + Send>(sink: W, metadata: &WindowMetadata) -> Result<SerializedFileWriter<W>, WindowFileError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut timestamp = String::new();
    write_float(metadata.timestamp, &mut timestamp);
    let text = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
    let properties = WriterProperties::builder()
        // Version 1.0 is what selects data page v1 and plain fall-back encodings.
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_dictionary_enabled(true)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_key_value_metadata(Some(vec![
            text("wallet", metadata.wallet.clone()),
            text("window_start", metadata.window_start.to_string()),
            text("window_length", WINDOW_LENGTH.to_string()),
            text("timestamp", timestamp),
        ]))
        .build();
    Ok(SerializedFileWriter::new(sink, schema, Arc::new(properties))?)
}

/// Writes the footer with `inference_count` = `rows`.
pub(super) fn finish<W: Write + Send>(mut file: SerializedFileWriter<W>, rows: i64) -> Result<W, WindowFileError> {
    file.append_key_value_metadata(KeyValue::new("inference_count".to_owned(), rows.to_string()));
    Ok(file.into_inner()?)
}

pub(super) fn write_column(writer: &mut SerializedColumnWriter<'_>, leaf: &Leaf, rows: &[WindowRow]) -> Result<(), ParquetError> {
    match leaf {
        Leaf::Int64(access) => write_plain::<Int64Type>(writer, rows, access.get),
        Leaf::Int32(access) => write_plain::<Int32Type>(writer, rows, access.get),
        Leaf::Double(access) => write_plain::<DoubleType>(writer, rows, access.get),
        Leaf::Bool(access) => write_plain::<BoolType>(writer, rows, access.get),
        Leaf::Text(get, _) => write_plain::<ByteArrayType>(writer, rows, |row| ByteArray::from(get(row))),
        Leaf::Int32List(list) => write_list::<Int32Type>(writer, rows, list.get),
        Leaf::FloatList(list) => write_list::<FloatType>(writer, rows, list.get),
        Leaf::Commitments => {
            write_plain::<ByteArrayType>(writer, rows, |row| ByteArray::from(commitments::to_text(&row.commit.commitments)))
        }
        Leaf::Beacon => write_plain::<ByteArrayType>(writer, rows, |row| {
            ByteArray::from(python_json::to_string(&row.commit.beacon, DEFAULT).into_bytes())
        }),
    }
}

fn write_plain<T: DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    rows: &[WindowRow],
    get: impl Fn(&WindowRow) -> T::T,
) -> Result<(), ParquetError> {
    let writer = writer.typed::<T>();
    let present = writer.get_descriptor().max_def_level();
    for batch in rows.chunks(ROWS_PER_BATCH) {
        let values: Vec<T::T> = batch.iter().map(&get).collect();
        writer.write_batch(&values, Some(&vec![present; batch.len()]), None)?;
    }
    Ok(())
}

fn write_list<T: DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    rows: &[WindowRow],
    get: impl Fn(&WindowRow) -> &[T::T],
) -> Result<(), ParquetError> {
    let writer = writer.typed::<T>();
    let present = writer.get_descriptor().max_def_level();
    let empty = writer.get_descriptor().repeated_ancestor_def_level() - 1;
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    for batch in rows.chunks(ROWS_PER_BATCH) {
        values.clear();
        definitions.clear();
        repetitions.clear();
        for row in batch {
            let list = get(row);
            values.extend_from_slice(list);
            // A list of n elements has n levels, the first of which starts the row; an empty one still has that one.
            repetitions.push(0);
            repetitions.resize(repetitions.len() + list.len().saturating_sub(1), 1);
            definitions.resize(repetitions.len(), if list.is_empty() { empty } else { present });
        }
        writer.write_batch(&values, Some(&definitions), Some(&repetitions))?;
    }
    Ok(())
}
