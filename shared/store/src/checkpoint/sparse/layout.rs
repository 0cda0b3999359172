//! A body's header: where the positions and values of each tensor are, judged before any of them is read.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{SparseError, SparseFormat, ValueType};

/// Tensors of a body at most; a large model has some thousands.
const MAX_TENSORS: usize = 1 << 17;
/// Sides of a tensor at most.
const MAX_SIDES: usize = 16;

/// The type that positions are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IndexType {
    U8,
    U16,
    I32,
}

impl IndexType {
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::I32 => "int32",
        }
    }

    /// An absent type means int32.
    fn named(name: Option<&str>) -> Option<Self> {
        let Some(name) = name else { return Some(Self::I32) };
        [Self::U8, Self::U16, Self::I32].into_iter().find(|index| index.name() == name)
    }

    pub fn width(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::I32 => 4,
        }
    }
}

/// How a tensor's positions are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Positions {
    /// Differences of flat positions.
    Flat,
    /// Differences of rows, then columns.
    RowsAndColumns(IndexType, IndexType),
}

/// What a header says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    /// The tensor.
    pub name: String,
    /// Its shape, at least one side.
    pub shape: Vec<u64>,
    /// Type of the values.
    pub value_type: ValueType,
    /// Changed elements.
    pub entries: u64,
    pub(super) positions: Positions,
    /// Bytes of all positions.
    pub(super) indices_size: u64,
}

impl TensorLayout {
    /// Elements of the tensor; they fit a position of four bytes.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Elements of a row.
    pub(super) fn columns(&self) -> u64 {
        self.shape.iter().skip(1).fold(1, |columns, side| columns.saturating_mul(*side))
    }

    /// Bytes of all values.
    pub fn values_size(&self) -> u64 {
        self.entries * self.value_type.width() as u64
    }
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    version: u64,
    #[serde(default)]
    tensors: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    shape: Vec<u64>,
    value_dtype: String,
    row_dtype: Option<String>,
    col_dtype: Option<String>,
    indices_offset: u64,
    indices_size: u64,
    rows_size: Option<u64>,
    cols_size: Option<u64>,
    values_offset: u64,
    values_size: u64,
}

/// Judges a header. `data` is the number of bytes that follow it.
pub(super) fn read_header(header: &[u8], format: SparseFormat, data: u64) -> Result<Vec<TensorLayout>, SparseError> {
    let header: Header = serde_json::from_slice(header).map_err(|error| SparseError::Header(error.to_string()))?;
    if header.version != format.version() {
        return Err(SparseError::Version { got: header.version, want: format.version() });
    }
    if header.tensors.len() > MAX_TENSORS {
        return Err(SparseError::Header(format!("it lists {} tensors, more than {MAX_TENSORS}", header.tensors.len())));
    }
    let (mut place, mut names, mut layouts) = (0, BTreeSet::new(), Vec::new());
    for entry in header.tensors {
        let name = entry.name.clone();
        let layout = judge(entry, format, &mut place, data).map_err(|why| SparseError::Tensor { name: name.clone(), why })?;
        if !names.insert(name.clone()) {
            return Err(SparseError::Tensor { name, why: "it is listed twice".into() });
        }
        layouts.push(layout);
    }
    if place != data {
        return Err(SparseError::Header(format!("{} bytes of its data belong to no tensor", data - place)));
    }
    Ok(layouts)
}

/// Judges one entry, which must begin at `place`, and moves `place` behind it.
fn judge(entry: Entry, format: SparseFormat, place: &mut u64, data: u64) -> Result<TensorLayout, String> {
    let sides = entry.shape.len();
    if sides == 0 || sides > MAX_SIDES {
        return Err(format!("its shape has {sides} sides"));
    }
    let elements = entry.shape.iter().try_fold(1_u64, |product, side| product.checked_mul(*side));
    let Some(elements) = elements.filter(|elements| *elements <= u64::from(u32::MAX)) else {
        return Err(format!("its shape {:?} has more elements than a position of four bytes can name", entry.shape));
    };
    let value_type =
        ValueType::named(&entry.value_dtype).ok_or_else(|| format!("values of type {:?} are not known", entry.value_dtype))?;
    let behind = entry.indices_size.checked_add(entry.values_size).and_then(|size| place.checked_add(size));
    let behind = behind.filter(|end| *end <= data).ok_or("its ranges leave the body")?;
    if entry.indices_offset != *place || entry.values_offset != *place + entry.indices_size {
        return Err(format!(
            "its ranges begin at {} and {}, want {} and {}: they overlap or leave a gap",
            entry.indices_offset,
            entry.values_offset,
            *place,
            *place + entry.indices_size
        ));
    }
    *place = behind;
    let (positions, entries) = positions_of(&entry, format)?;
    // Positions ascend, so there are no more of them than elements.
    if entries > elements {
        return Err(format!("{entries} entries for the {elements} elements of its shape {:?}", entry.shape));
    }
    if entry.values_size != entries * value_type.width() as u64 {
        return Err(format!("{} bytes of values for {entries} positions of type {}", entry.values_size, value_type.name()));
    }
    let indices_size = entry.indices_size;
    Ok(TensorLayout { name: entry.name, shape: entry.shape, value_type, entries, positions, indices_size })
}

/// How positions are stored, and how many there are.
fn positions_of(entry: &Entry, format: SparseFormat) -> Result<(Positions, u64), String> {
    if format == SparseFormat::V2 {
        return Ok((Positions::Flat, count(entry.indices_size, IndexType::I32, "positions")?));
    }
    let typed = |name: &Option<String>, what| {
        let name = name.as_deref().filter(|_| format == SparseFormat::V31);
        IndexType::named(name).ok_or_else(|| format!("{what} of type {name:?} are not known"))
    };
    let (rows, columns) = (typed(&entry.row_dtype, "rows")?, typed(&entry.col_dtype, "columns")?);
    let (Some(rows_size), Some(cols_size)) = (entry.rows_size, entry.cols_size) else {
        return Err("rows_size or cols_size is missing".into());
    };
    if rows_size.checked_add(cols_size) != Some(entry.indices_size) {
        return Err(format!("{rows_size} bytes of rows and {cols_size} of columns are not its {}", entry.indices_size));
    }
    let entries = count(rows_size, rows, "rows")?;
    let others = count(cols_size, columns, "columns")?;
    if entries != others {
        return Err(format!("{entries} rows for {others} columns"));
    }
    Ok((Positions::RowsAndColumns(rows, columns), entries))
}

fn count(bytes: u64, index: IndexType, what: &str) -> Result<u64, String> {
    if bytes.is_multiple_of(index.width()) {
        return Ok(bytes / index.width());
    }
    Err(format!("{bytes} bytes of {what} are no whole number of {}", index.name()))
}
