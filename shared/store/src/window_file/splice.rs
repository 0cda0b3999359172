//! A window's file put together from groups that were encoded one by one while the window ran.
//!
//! ```text
//!  group 0 ─ encode_group ─▶ file of one row group ─┐
//!  group 1 ─ encode_group ─▶ file of one row group ─┼─ splice: chunks copied byte for byte, one new footer ─▶ window file
//!  …                                                ┘
//!  outline(file of a group) = what the window's file must hold at that place = outline(window file)
//! ```
//!
//! Nothing is encoded twice, so closing a window costs a copy. And because a row group's digest covers every byte and every
//! fact that decoding it depends on, a group that was read back and judged in its own file needs no second look.

use bytes::Bytes;
use grail_protocol::row::WindowRow;
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use twox_hash::xxhash3_128::Hasher as Xxh3;

use super::reader::{MAGIC, check_envelope, check_footer, guarded, metadata_of, unreadable};
use super::{WindowFileError, WindowMetadata, WindowWriter, writer};

/// What a file says of itself and holds, without any value decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// Wallet, window and time.
    pub metadata: WindowMetadata,
    /// Blocks per window, 30.
    pub window_length: i64,
    /// Rows that the writer counted.
    pub inference_count: i64,
    /// The row groups, in file order.
    pub row_groups: Vec<RowGroupOutline>,
}

/// One row group: equal digests mean that any reader decodes the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowGroupOutline {
    /// Rows.
    pub rows: i64,
    /// XXH3-128 over schema, row count, each chunk's codec, encodings and page places, and each chunk's bytes: it tells a file
    /// that was changed by accident, on its way through this host, not one that somebody made to deceive.
    pub digest: u128,
}

/// Encodes one complete group as a window file of its own.
///
/// # Errors
/// [`WindowFileError::Write`] when the encoder fails.
pub fn encode_group(metadata: &WindowMetadata, rows: &[WindowRow]) -> Result<Vec<u8>, WindowFileError> {
    let mut writer = WindowWriter::for_one_group(Vec::new(), metadata)?;
    writer.append_group(rows)?;
    writer.finish()
}

/// Puts the row groups of `files` into one file, in that order and without decoding them.
///
/// # Errors
/// [`WindowFileError::Unreadable`] when one of them is no window file of this program's form, [`WindowFileError::Write`] when
/// the encoder fails.
pub fn splice(metadata: &WindowMetadata, files: &[Bytes]) -> Result<Vec<u8>, WindowFileError> {
    // A file's own footer is about as long as its part of the new one.
    let size: usize = files.iter().map(Bytes::len).sum();
    let mut file = writer::start(Vec::with_capacity(size), metadata, writer::properties()?)?;
    let mut rows = 0;
    for bytes in files {
        let source = open(bytes)?;
        for group in source.metadata().row_groups() {
            rows += group.num_rows();
            let mut target = file.next_row_group()?;
            for column in group.columns() {
                target.append_column(bytes, finished(column, group.num_rows())?)?;
            }
            target.close()?;
        }
    }
    writer::finish(file, rows)
}

/// The bytes of a group's file that [`splice`] copies: behind [`MAGIC`], a window's file holds those of all its groups, one after
/// the other, in front of its footer.
///
/// # Errors
/// [`WindowFileError::Corrupt`] when it is no Parquet file.
pub fn row_groups(file: &Bytes) -> Result<Bytes, WindowFileError> {
    check_envelope(file)?;
    // The envelope is whole, so that there are such eight bytes, and they count a footer that is in the file.
    let tail = file.last_chunk::<8>().and_then(|tail| tail.first_chunk::<4>()).copied().unwrap_or_default();
    let end = file.len() - 8 - u32::from_le_bytes(tail) as usize;
    Ok(file.slice(MAGIC.len().min(end)..end))
}

/// Reads a file's footer and digests its row groups.
///
/// # Errors
/// As [`super::read_window`], for what can be seen without decoding.
pub fn outline(bytes: &Bytes) -> Result<Outline, WindowFileError> {
    guarded(|| {
        let source = open(bytes)?;
        let footer = source.metadata();
        let (metadata, window_length, inference_count) = metadata_of(footer)?;
        let schema = schema_text(footer);
        let digest = |group| digest(bytes, &schema, group);
        let row_groups = footer.row_groups().iter().map(digest).collect::<Result<_, _>>()?;
        Ok(Outline { metadata, window_length, inference_count, row_groups })
    })
}

fn open(bytes: &Bytes) -> Result<SerializedFileReader<Bytes>, WindowFileError> {
    check_envelope(bytes)?;
    let source = SerializedFileReader::new(bytes.clone()).map_err(|error| unreadable(error.to_string()))?;
    check_footer(source.metadata())?;
    Ok(source)
}

fn finished(column: &ColumnChunkMetaData, rows: i64) -> Result<ColumnCloseResult, ParquetError> {
    let count = |number: i64| u64::try_from(number).map_err(|error| ParquetError::General(error.to_string()));
    Ok(ColumnCloseResult {
        bytes_written: count(column.compressed_size())?,
        rows_written: count(rows)?,
        metadata: column.clone(),
        bloom_filter: None,
        column_index: None,
        offset_index: None,
    })
}

fn schema_text(footer: &ParquetMetaData) -> Vec<u8> {
    let mut text = Vec::new();
    parquet::schema::printer::print_schema(&mut text, footer.file_metadata().schema());
    text
}

fn digest(bytes: &Bytes, schema: &[u8], group: &RowGroupMetaData) -> Result<RowGroupOutline, WindowFileError> {
    let mut hasher = Xxh3::new();
    let mut part = |part: &[u8]| {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    };
    part(schema);
    part(&group.num_rows().to_le_bytes());
    for column in group.columns() {
        let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
        // Places count from the chunk's start: they are all that moves when a chunk is copied.
        let facts = (
            column.column_path().string(),
            column.compression(),
            column.encodings().collect::<Vec<_>>(),
            (column.num_values(), column.compressed_size(), column.uncompressed_size()),
            (column.data_page_offset() - start, column.dictionary_page_offset().is_some()),
        );
        part(format!("{facts:?}").as_bytes());
        part(chunk(bytes, start, column)?);
    }
    Ok(RowGroupOutline { rows: group.num_rows(), digest: hasher.finish_128() })
}

fn chunk<'a>(bytes: &'a Bytes, start: i64, column: &ColumnChunkMetaData) -> Result<&'a [u8], WindowFileError> {
    let place = usize::try_from(start).ok().zip(usize::try_from(column.compressed_size()).ok());
    let range = place.and_then(|(start, length)| bytes.get(start..start.checked_add(length)?));
    range.ok_or_else(|| unreadable(format!("column {} lies outside the file", column.column_path().string())))
}
