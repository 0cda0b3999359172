//! Writing a body, as a trainer does.

use grail_protocol::python_json::{Style, to_string};
use serde_json::{Value, json};

use super::layout::IndexType;
use super::{SparseFormat, SparseTensor};

/// Not sorted, no spaces: the order of keys is the format's.
const COMPACT: Style = Style { spaced: false, sorted: false };

/// The body before compression. Tensors are written in ascending order of name; those without entries are left out except in
/// v2, as the network's own writer does.
pub fn encode(tensors: &[SparseTensor], format: SparseFormat) -> Vec<u8> {
    let mut tensors: Vec<&SparseTensor> = tensors.iter().collect();
    tensors.sort_by(|one, other| one.name.cmp(&other.name));
    tensors.retain(|tensor| format == SparseFormat::V2 || !tensor.positions.is_empty());
    let mut data = Vec::new();
    let entries: Vec<Value> = tensors.iter().map(|tensor| append(tensor, format, &mut data)).collect();
    let header = to_string(&json!({"version": format.version(), "tensors": entries}), COMPACT);
    [&(header.len() as u32).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// Appends one tensor's positions and values, and describes where they are.
fn append(tensor: &SparseTensor, format: SparseFormat, data: &mut Vec<u8>) -> Value {
    let mut entry = json!({
        "name": tensor.name,
        "shape": tensor.shape,
        "num_nonzero": tensor.positions.len(),
        "value_dtype": tensor.value_type.name(),
    });
    let offset = data.len();
    match format {
        SparseFormat::V2 => {
            write(data, &steps(&tensor.positions), IndexType::I32);
            entry["indices_offset"] = json!(offset);
            entry["indices_size"] = json!(data.len() - offset);
        }
        SparseFormat::V3 | SparseFormat::V31 => {
            let (rows, columns) = rows_and_columns(tensor);
            let narrow = format == SparseFormat::V31;
            let row_type = if narrow { narrowest(&rows, IndexType::U8) } else { IndexType::I32 };
            let column_type = if narrow { narrowest(&columns, IndexType::U16) } else { IndexType::I32 };
            if narrow {
                entry["row_dtype"] = json!(row_type.name());
                entry["col_dtype"] = json!(column_type.name());
            }
            write(data, &rows, row_type);
            let middle = data.len();
            write(data, &columns, column_type);
            entry["indices_offset"] = json!(offset);
            entry["indices_size"] = json!(data.len() - offset);
            entry["rows_size"] = json!(middle - offset);
            entry["cols_size"] = json!(data.len() - middle);
        }
    }
    entry["values_offset"] = json!(data.len());
    entry["values_size"] = json!(tensor.values.len());
    data.extend_from_slice(&tensor.values);
    entry
}

fn steps(positions: &[u32]) -> Vec<u32> {
    let before = std::iter::once(0).chain(positions.iter().copied());
    positions.iter().zip(before).map(|(position, before)| position - before).collect()
}

fn rows_and_columns(tensor: &SparseTensor) -> (Vec<u32>, Vec<u32>) {
    // A position fits four bytes, so a row and a column do.
    let width = u32::try_from(tensor.shape.iter().skip(1).product::<u64>()).unwrap_or(u32::MAX).max(1);
    let (mut rows, mut columns) = (Vec::new(), Vec::new());
    let mut before = None;
    for position in &tensor.positions {
        let (row, column) = (position / width, position % width);
        let (last_row, last_column) = before.unwrap_or((0, 0));
        let goes_on = before.is_some() && row == last_row;
        rows.push(row - last_row);
        columns.push(if goes_on { column - last_column } else { column });
        before = Some((row, column));
    }
    (rows, columns)
}

/// The narrowest type from `least` on that holds every number.
fn narrowest(numbers: &[u32], least: IndexType) -> IndexType {
    match numbers.iter().max().copied().unwrap_or(0) {
        0..=255 => least,
        256..=65535 => IndexType::U16,
        _ => IndexType::I32,
    }
}

fn write(data: &mut Vec<u8>, numbers: &[u32], index: IndexType) {
    let width = index.width() as usize;
    numbers.iter().for_each(|number| data.extend_from_slice(&number.to_le_bytes()[..width]));
}
