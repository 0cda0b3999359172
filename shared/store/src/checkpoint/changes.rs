//! The changes of one link as a plain file: what a delta's body says, decoded and judged once, for everybody who applies it.
//!
//! A safetensors file. For each changed tensor `T` it has `T.positions` (u32, ascending, flat, row-major) and `T.values` (the new
//! values in the tensor's type). Whoever holds the weights of the checkpoint before reads it by position and needs no more
//! memory than its largest tensor takes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata as Header, TensorInfo};

use super::CheckpointError;
use super::error::local;
use super::sparse::{SparseError, SparseFormat, SparseReader, TensorLayout, ValueType};
use super::weights::{TensorPlace, tensor_places_of};

const POSITIONS: &str = ".positions";
const VALUES: &str = ".values";

/// Why a link cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Sparse(#[from] SparseError),
    #[error("tensor {name}: {why}")]
    Misfit { name: String, why: String },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

fn dtype(value: ValueType) -> Dtype {
    match value {
        ValueType::Bf16 => Dtype::BF16,
        ValueType::F16 => Dtype::F16,
        ValueType::F32 => Dtype::F32,
    }
}

/// Opens a compressed body and judges its header, before anything large is fetched or read.
pub(super) fn open_body(body: &Path, format: SparseFormat, limit: u64) -> Result<SparseReader<BufReader<File>>, LinkError> {
    let file = File::open(body).map_err(local(body))?;
    let compressed = file.metadata().map_err(local(body))?.len();
    Ok(SparseReader::open(BufReader::with_capacity(1 << 17, file), compressed, format, limit)?)
}

/// Decodes `body` into the changes file `target`, as far as it concerns the tensors of `base`; others are passed over, as the
/// network's own reader does. Returns the number of changed elements.
pub(super) fn decode(
    mut body: SparseReader<BufReader<File>>,
    base: &BTreeMap<String, TensorPlace>,
    target: &Path,
) -> Result<u64, LinkError> {
    for layout in body.layouts() {
        let Some(place) = base.get(&layout.name) else { continue };
        judge(layout, place).map_err(|why| LinkError::Misfit { name: layout.name.clone(), why })?;
    }
    let concerned = || body.layouts().iter().filter(|layout| base.contains_key(&layout.name));
    let entries = concerned().map(|layout| layout.entries).sum();
    let header = header(concerned())?;
    let file = File::create(target).map_err(local(target))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.write_all(&header).map_err(local(target))?;
    let mut positions = Vec::new();
    while let Some(tensor) = body.next_tensor(|name| base.contains_key(name))? {
        positions.resize(tensor.positions.len() * 4, 0);
        for (bytes, position) in positions.as_chunks_mut().0.iter_mut().zip(&tensor.positions) {
            *bytes = position.to_le_bytes();
        }
        file.write_all(&positions).and_then(|()| file.write_all(&tensor.values)).map_err(local(target))?;
    }
    // Not synced: see where its directory is put.
    file.flush().map_err(local(target))?;
    Ok(entries)
}

fn judge(layout: &TensorLayout, place: &TensorPlace) -> Result<(), String> {
    let shape: Vec<u64> = place.shape.iter().map(|side| *side as u64).collect();
    if shape != layout.shape {
        return Err(format!("shape {:?}, its base has {shape:?}", layout.shape));
    }
    if dtype(layout.value_type) != place.dtype {
        return Err(format!("values of type {}, its base is stored as {:?}", layout.value_type.name(), place.dtype));
    }
    Ok(())
}

fn header<'a>(layouts: impl Iterator<Item = &'a TensorLayout>) -> Result<Vec<u8>, LinkError> {
    let mut tensors = Vec::new();
    let mut end = 0;
    let mut add = |name: String, dtype: Dtype, entries: u64, size: u64| {
        let data_offsets = (end, end + size as usize);
        end = data_offsets.1;
        tensors.push((name, TensorInfo { dtype, shape: vec![entries as usize], data_offsets }));
    };
    for layout in layouts {
        add(format!("{}{POSITIONS}", layout.name), Dtype::U32, layout.entries, layout.entries * 4);
        add(format!("{}{VALUES}", layout.name), dtype(layout.value_type), layout.entries, layout.values_size());
    }
    Ok(safetensors_header(None, tensors).map_err(SparseError::Header)?)
}

/// A safetensors file's first bytes: the header's length and the header, padded to eight bytes.
pub(super) fn safetensors_header(
    metadata: Option<HashMap<String, String>>,
    tensors: Vec<(String, TensorInfo)>,
) -> Result<Vec<u8>, String> {
    let header = Header::new(metadata, tensors).map_err(|error| error.to_string())?;
    let mut text = serde_json::to_string(&header).map_err(|error| error.to_string())?;
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    Ok([&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat())
}

/// A changes file that is open.
pub(super) struct Changes {
    path: PathBuf,
    file: File,
    places: BTreeMap<String, TensorPlace>,
}

/// What changed in one tensor.
pub(super) struct TensorChanges {
    positions: Vec<u32>,
    values: Vec<u8>,
    width: usize,
}

impl Changes {
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let places = tensor_places_of(path)?.into_iter().collect();
        Ok(Self { path: path.to_owned(), file: File::open(path).map_err(local(path))?, places })
    }

    /// The changes of a tensor, if there are any.
    pub(super) fn of(&self, tensor: &str) -> Result<Option<TensorChanges>, CheckpointError> {
        let place = |suffix: &str| self.places.get(&format!("{tensor}{suffix}"));
        let (Some(positions), Some(values)) = (place(POSITIONS), place(VALUES)) else { return Ok(None) };
        let positions: Vec<u32> =
            self.read(positions)?.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let width = values.dtype.bitsize() / 8;
        Ok(Some(TensorChanges { positions, values: self.read(values)?, width }))
    }

    fn read(&self, place: &TensorPlace) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = vec![0; usize::try_from(place.length).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, place.offset).map_err(local(&self.path))?;
        Ok(bytes)
    }
}

impl TensorChanges {
    /// Writes what falls into `piece`, the bytes of the tensor from element `first` on.
    pub(super) fn write_to(&self, piece: &mut [u8], first: u64) {
        if self.width == 4 { self.scatter::<4>(piece, first) } else { self.scatter::<2>(piece, first) }
    }

    fn scatter<const WIDTH: usize>(&self, piece: &mut [u8], first: u64) {
        let elements = piece.as_chunks_mut::<WIDTH>().0;
        let values = self.values.as_chunks::<WIDTH>().0;
        let begin = self.positions.partition_point(|position| u64::from(*position) < first);
        for (position, value) in self.positions[begin..].iter().zip(&values[begin..]) {
            // Judged: positions are ascending.
            match elements.get_mut((u64::from(*position) - first) as usize) {
                Some(element) => *element = *value,
                None => break,
            }
        }
    }
}

/// Reads the `format` of a `delta_metadata.json`.
pub(super) fn format_of(document: &Path) -> Result<Result<SparseFormat, String>, CheckpointError> {
    #[derive(serde::Deserialize)]
    struct DeltaMetadata {
        format: String,
    }
    const LIMIT: u64 = 64 << 20;
    let mut text = Vec::new();
    File::open(document).and_then(|file| file.take(LIMIT).read_to_end(&mut text)).map_err(local(document))?;
    let read = serde_json::from_slice::<DeltaMetadata>(&text);
    Ok(match read {
        Err(error) => Err(format!("has an unreadable delta_metadata.json ({error})")),
        Ok(metadata) => SparseFormat::named(&metadata.format)
            .ok_or_else(|| format!("is of format {:?}, which this version does not know", metadata.format)),
    })
}
