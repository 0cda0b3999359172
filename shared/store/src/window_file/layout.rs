//! How a window file is laid out on disk: for diagnosis and for comparison with the network's own files.

use std::collections::BTreeMap;

use bytes::Bytes;
use parquet::basic::LogicalType;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;

use super::WindowFileError;

/// The footer's description of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowLayout {
    /// Rows of each row group.
    pub row_groups: Vec<i64>,
    /// Key-value metadata.
    pub key_values: BTreeMap<String, String>,
    /// Columns of the first row group, empty if there is none.
    pub columns: Vec<ColumnLayout>,
}

/// One column chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnLayout {
    /// Dotted path of the leaf.
    pub path: String,
    /// Physical type, e.g. `INT64`.
    pub physical: String,
    /// `String` or `None`, the only annotations of a leaf here.
    pub logical: String,
    /// Maximum definition level.
    pub max_definition: i16,
    /// Maximum repetition level.
    pub max_repetition: i16,
    /// Compression without its level, e.g. `ZSTD`.
    pub codec: String,
    /// Encodings of its pages.
    pub encodings: Vec<String>,
    /// Whether it has a dictionary page.
    pub has_dictionary: bool,
    /// Whether it has statistics.
    pub has_statistics: bool,
}

/// Reads a file's footer.
///
/// # Errors
/// [`WindowFileError::Unreadable`].
pub fn layout(bytes: impl Into<Bytes>) -> Result<WindowLayout, WindowFileError> {
    let unreadable = |error: parquet::errors::ParquetError| WindowFileError::Unreadable(error.to_string());
    let file = SerializedFileReader::new(bytes.into()).map_err(unreadable)?;
    let footer = file.metadata();
    let entries = footer.file_metadata().key_value_metadata().into_iter().flatten();
    Ok(WindowLayout {
        row_groups: footer.row_groups().iter().map(|group| group.num_rows()).collect(),
        key_values: entries.map(|entry| (entry.key.clone(), entry.value.clone().unwrap_or_default())).collect(),
        columns: footer.row_groups().first().map(|group| group.columns().iter().map(column).collect()).unwrap_or_default(),
    })
}

fn column(chunk: &ColumnChunkMetaData) -> ColumnLayout {
    let leaf = chunk.column_descr();
    let codec = chunk.compression().to_string();
    ColumnLayout {
        path: leaf.path().string(),
        physical: leaf.physical_type().to_string(),
        logical: if matches!(leaf.logical_type_ref(), Some(LogicalType::String)) { "String" } else { "None" }.to_owned(),
        max_definition: leaf.max_def_level(),
        max_repetition: leaf.max_rep_level(),
        codec: codec.split('(').next().unwrap_or_default().to_owned(),
        encodings: chunk.encodings().map(|encoding| encoding.to_string()).collect(),
        has_dictionary: chunk.dictionary_page_offset().is_some(),
        has_statistics: chunk.statistics().is_some(),
    }
}
