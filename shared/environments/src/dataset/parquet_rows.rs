//! Parquet files: text columns by name.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};

use super::{DatasetError, Rows};

/// Reads a file's wanted columns; others are not decoded.
pub(super) fn read<const N: usize>(path: &Path, rows: &mut Rows<'_, N>) -> Result<(), DatasetError> {
    let unusable = |what: String| DatasetError::File { path: path.to_owned(), what };
    let file = File::open(path).map_err(|source| DatasetError::Unreadable { path: path.to_owned(), source })?;
    let reader = SerializedFileReader::new(file).map_err(|error| unusable(format!("it is no Parquet file: {error}")))?;
    let schema = reader.metadata().file_metadata().schema();
    let wanted = projection(schema, rows.columns).map_err(unusable)?;
    let iterator = reader.get_row_iter(Some(wanted)).map_err(|error| unusable(error.to_string()))?;
    for (index, row) in iterator.enumerate() {
        let bad = |what: String| DatasetError::Row { path: path.to_owned(), row: index + 1, what };
        let row = row.map_err(|error| bad(error.to_string()))?;
        let row = texts(row, rows.columns).map_err(bad)?;
        rows.push(row).map_err(bad)?;
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
