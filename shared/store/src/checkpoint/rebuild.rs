//! A checkpoint from its base and what changed since: one pass over the base, bounded memory (grail-checkpoints 6).

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use xxhash_rust::xxh3::Xxh3;

use super::CheckpointError;
use super::changes::{Changes, TensorChanges, safetensors_header};
use super::error::local;
use super::weights::TensorPlace;

/// Bytes that are read, changed, hashed and written at once; a multiple of every type's width.
const PIECE_BYTES: usize = 4 << 20;

/// Writes the tensors of `base` with `links` (oldest first) applied into the new safetensors file `target`, and returns
/// their weights hash. Values are copied bit for bit, every tensor keeps its type. The file is not synced yet.
pub(super) fn rebuild(base: &BTreeMap<String, TensorPlace>, links: &[Changes], target: &Path) -> Result<String, CheckpointError> {
    let (header, starts) = lay_out(base).map_err(|why| CheckpointError::Weights { path: target.to_owned(), why })?;
    let file = File::create(target).map_err(local(target))?;
    file.write_all_at(&header, 0).map_err(local(target))?;
    let mut hasher = Xxh3::new();
    let mut sources = HashMap::new();
    let mut piece = vec![0; PIECE_BYTES];
    // In the order of the hash, wherever in the file that is.
    for (name, place) in base {
        let changes: Vec<TensorChanges> = links.iter().filter_map(|link| link.of(name).transpose()).collect::<Result<_, _>>()?;
        let source = match sources.entry(place.file.as_path()) {
            std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::hash_map::Entry::Vacant(slot) => slot.insert(File::open(&place.file).map_err(local(&place.file))?),
        };
        let start = header.len() as u64 + starts[name];
        let width = (place.dtype.bitsize() / 8).max(1) as u64;
        for offset in (0..place.length).step_by(PIECE_BYTES) {
            let wanted = usize::try_from(place.length - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let bytes = &mut piece[..wanted];
            source.read_exact_at(bytes, place.offset + offset).map_err(local(&place.file))?;
            changes.iter().for_each(|changes| changes.write_to(bytes, offset / width));
            hasher.update(bytes);
            file.write_all_at(bytes, start + offset).map_err(local(target))?;
        }
    }
    Ok(format!("{:032x}", hasher.digest128()))
}

/// The new file's header, and where each tensor starts behind it: wide types first, so that all are aligned, then by name.
fn lay_out(base: &BTreeMap<String, TensorPlace>) -> Result<(Vec<u8>, HashMap<&String, u64>), String> {
    let mut order: Vec<(&String, &TensorPlace)> = base.iter().collect();
    order.sort_by_key(|(_, place)| std::cmp::Reverse(place.dtype.bitsize()));
    let (mut starts, mut tensors, mut end) = (HashMap::new(), Vec::new(), 0);
    for (name, place) in order {
        let data_offsets = (end, end + usize::try_from(place.length).map_err(|error| error.to_string())?);
        starts.insert(name, end as u64);
        end = data_offsets.1;
        tensors.push((name.clone(), TensorInfo { dtype: place.dtype, shape: place.shape.clone(), data_offsets }));
    }
    // Without it transformers refuses the file.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok((safetensors_header(Some(metadata), tensors)?, starts))
}
