//! Parquet files: text columns by name, in every compression that the format's readers know but LZO.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType};
use parquet::column::page::Page;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};

use super::{DatasetError, MAX_SPLIT_BYTES, Rows};

/// What is unpacked at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Reads a file's wanted columns; others are not decoded.
pub(super) fn read<const N: usize>(path: &Path, rows: &mut Rows<'_, N>) -> Result<(), DatasetError> {
    let unusable = |what: String| DatasetError::File { path: path.to_owned(), what };
    let unreadable = |source| DatasetError::Unreadable { path: path.to_owned(), source };
    let file = Arc::new(File::open(path).map_err(unreadable)?);
    let reader = SerializedFileReader::new(file.try_clone().map_err(unreadable)?)
        .map_err(|error| unusable(format!("it is no Parquet file: {error}")))?;
    let schema = reader.metadata().file_metadata().schema();
    let wanted = projection(schema, rows.columns).map_err(unusable)?;
    let columns = rows.columns;
    let is_wanted = |chunk: &ColumnChunkMetaData| columns.contains(&chunk.column_path().string().as_str());
    let groups = reader.metadata().row_groups();
    let chunks = groups.iter().flat_map(|group| group.columns().iter().map(|chunk| (chunk, group.num_rows())));
    let mut left = MAX_SPLIT_BYTES as u64;
    for (chunk, rows) in chunks.filter(|(chunk, _)| is_wanted(chunk)) {
        refuse_bomb(&file, chunk, rows, &mut left).map_err(unusable)?;
    }
    let iterator = reader.get_row_iter(Some(wanted)).map_err(|error| unusable(error.to_string()))?;
    for (index, row) in iterator.enumerate() {
        let bad = |what: String| DatasetError::Row { path: path.to_owned(), row: index + 1, what };
        let row = row.map_err(|error| bad(error.to_string()))?;
        let row = texts(row, rows.columns).map_err(bad)?;
        rows.push(row).map_err(bad)?;
    }
    Ok(())
}

/// A page of these says how long it is, and its decoder unpacks whatever is in it: it is unpacked once to nowhere, in a bounded
/// way. `left` is how much more the split may have.
pub(super) fn refuse_bomb(file: &Arc<File>, chunk: &ColumnChunkMetaData, rows: i64, left: &mut u64) -> Result<(), String> {
    let said = |error: ParquetError| error.to_string();
    let unpack: fn(&[u8]) -> Box<dyn Read + '_> = match chunk.compression() {
        Compression::BROTLI(_) => |packed| Box::new(brotli_decompressor::Decompressor::new(packed, PIECE_BYTES)),
        Compression::GZIP(_) => |packed| Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        _ => return Ok(()),
    };
    let packed = chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build().map_err(said)?;
    let rows = usize::try_from(rows).map_err(|_| "a row group has a negative number of rows".to_owned())?;
    for page in SerializedPageReader::new(Arc::clone(file), &packed, rows, None).map_err(said)? {
        let page = page.map_err(said)?;
        let levels = match &page {
            Page::DataPageV2 { is_compressed: false, .. } => continue,
            Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => def_levels_byte_len + rep_levels_byte_len,
            Page::DataPage { .. } | Page::DictionaryPage { .. } => 0,
        };
        let values = page.buffer().get(levels as usize..).unwrap_or_default();
        let unpacked = std::io::copy(&mut unpack(values).take(*left + 1), &mut std::io::sink());
        let unpacked = unpacked.map_err(|error| format!("a page of `{}` cannot be unpacked: {error}", chunk.column_path()))?;
        *left = left.checked_sub(unpacked).ok_or_else(|| format!("it unpacks to more than {MAX_SPLIT_BYTES} bytes"))?;
    }
    Ok(())
}

/// The part of `schema` with the wanted columns, each of which must be there once and be text.
fn projection<const N: usize>(schema: &Type, columns: [&str; N]) -> Result<Type, String> {
    let fields = columns.iter().map(|column| text_field(schema, column)).collect::<Result<Vec<_>, _>>()?;
    Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(|error| error.to_string())
}

fn text_field(schema: &Type, column: &str) -> Result<TypePtr, String> {
    let mut named = schema.get_fields().iter().filter(|field| field.name() == column);
    let field = named.next().ok_or_else(|| {
        let found: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
        format!("it has no column `{column}` (found: {})", found.join(", "))
    })?;
    if named.next().is_some() {
        return Err(format!("it has two columns `{column}`"));
    }
    let info = field.get_basic_info();
    let text = info.converted_type() == ConvertedType::UTF8 || info.logical_type_ref() == Some(&LogicalType::String);
    if !field.is_primitive() || !text {
        return Err(format!("its column `{column}` is not text"));
    }
    Ok(Arc::clone(field))
}

/// The row's texts in the order of `columns`: the reader gives them in the file's order.
fn texts<const N: usize>(row: Row, columns: [&str; N]) -> Result<[String; N], String> {
    let mut found: [Option<String>; N] = [const { None }; N];
    for (name, field) in row.into_columns() {
        let Some(column) = columns.iter().position(|column| *column == name) else { continue };
        match field {
            Field::Str(text) => found[column] = Some(text),
            // A column that only carries the newer annotation arrives undecoded.
            Field::Bytes(bytes) => {
                let text = String::from_utf8(bytes.data().to_vec());
                found[column] = Some(text.map_err(|error| format!("the column `{name}`: {error}"))?);
            }
            Field::Null => return Err(format!("the column `{name}` is null")),
            _ => return Err(format!("the column `{name}` is not text")),
        }
    }
    match found.iter().position(Option::is_none) {
        Some(missing) => Err(format!("the column `{}` is missing", columns[missing])),
        None => Ok(found.map(Option::unwrap_or_default)),
    }
}
