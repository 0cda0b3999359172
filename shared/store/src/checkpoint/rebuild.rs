//! A checkpoint from its base and what changed since: one pass over the base, bounded memory (grail-checkpoints 6).

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use safetensors::tensor::TensorInfo;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::Xxh3;

use super::CheckpointError;
use super::changes::{Changes, TensorChanges, safetensors_header};
use super::error::local;
use super::weights::{TensorPlace, file_sha256};

/// Bytes that are read, changed, hashed and written at once; a multiple of every type's width.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces in memory at once.
const PIECES: usize = 4;

/// What is known of a file of weights that was written.
pub(super) struct Rebuilt {
    /// XXH3-128 over its tensors.
    pub weights_hash: String,
    /// SHA-256 of the whole file.
    pub sha256: String,
}

/// Writes the tensors of `base` with `links` (oldest first) applied into the new safetensors file `target`. Values are copied
/// bit for bit, every tensor keeps its type. The file is not synced yet.
pub(super) fn rebuild(
    base: &BTreeMap<String, TensorPlace>,
    links: &[Changes],
    target: &Path,
) -> Result<Rebuilt, CheckpointError> {
    let (header, starts) = lay_out(base).map_err(|why| CheckpointError::Weights { path: target.to_owned(), why })?;
    let file = File::create(target).map_err(local(target))?;
    file.write_all_at(&header, 0).map_err(local(target))?;
    let data = header.len() as u64;
    let write = |tensor: &String, offset: u64, piece: &[u8]| {
        file.write_all_at(piece, data + starts[tensor] + offset).map_err(local(target))
    };
    // The tensors come in the order of the weights hash. Unless they are of different widths it is the file's, too.
    if !base.keys().map(|name| starts[name]).is_sorted() {
        let weights_hash = each_piece(base, links, |tensor, offset, piece| write(tensor, offset, &piece).map(|()| piece))?;
        return Ok(Rebuilt { weights_hash, sha256: file_sha256(target)? });
    }
    // SHA-256 costs more than all the rest: it is made beside it, of the pieces that are in memory anyway.
    std::thread::scope(|scope| {
        let (filled, to_hash) = sync_channel::<Vec<u8>>(PIECES);
        let (hashed, empty) = sync_channel(PIECES);
        (1..PIECES).for_each(|_| drop(hashed.send(Vec::new())));
        let sha256 = scope.spawn(move || {
            let mut hasher = Sha256::new_with_prefix(&header);
            for piece in to_hash {
                hasher.update(&piece);
                // Nobody waits for the last ones.
                let _ = hashed.send(piece);
            }
            hex::encode(hasher.finalize())
        });
        let weights_hash = each_piece(base, links, |tensor, offset, piece| {
            write(tensor, offset, &piece)?;
            Ok(filled.send(piece).ok().and_then(|()| empty.recv().ok()).unwrap_or_default())
        })?;
        drop(filled);
        let sha256 = sha256.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(Rebuilt { weights_hash, sha256 })
    })
}
/// Makes the new tensors piece by piece, in the order of the weights hash, which it returns. `take` gets each piece with its
/// tensor and its offset in there, and gives one back to be filled.
fn each_piece(
    base: &BTreeMap<String, TensorPlace>,
    links: &[Changes],
    mut take: impl FnMut(&String, u64, Vec<u8>) -> Result<Vec<u8>, CheckpointError>,
) -> Result<String, CheckpointError> {
    let mut hasher = Xxh3::new();
    let mut sources = HashMap::new();
    let mut piece = Vec::new();
    for (name, place) in base {
        let changes: Vec<TensorChanges> = links.iter().filter_map(|link| link.of(name).transpose()).collect::<Result<_, _>>()?;
        let source = match sources.entry(place.file.as_path()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(slot) => slot.insert(File::open(&place.file).map_err(local(&place.file))?),
        };
        let width = (place.dtype.bitsize() / 8).max(1) as u64;
        for offset in (0..place.length).step_by(PIECE_BYTES) {
            piece.resize(usize::try_from(place.length - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES), 0);
            source.read_exact_at(&mut piece, place.offset + offset).map_err(local(&place.file))?;
            changes.iter().for_each(|changes| changes.write_to(&mut piece, offset / width));
            hasher.update(&piece);
            piece = take(name, offset, piece)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{tensor_places, weights_hash};
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    #[test]
    fn both_hashes_are_those_of_the_file_whatever_the_order_of_its_tensors() {
        // "b" is wider than "a": in the second case it lies in front of it. Its bytes are more than all pieces in memory.
        let bytes: Vec<u8> = (0..PIECE_BYTES * (PIECES + 2) + 4).map(|index| (index % 251) as u8).collect();
        for wide in [Dtype::BF16, Dtype::F32] {
            let (base, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let view =
                |dtype: Dtype, bytes| TensorView::new(dtype, vec![<[u8]>::len(bytes) * 8 / dtype.bitsize()], bytes).unwrap();
            let tensors = [("a", view(Dtype::BF16, &bytes[..6])), ("b", view(wide, &bytes[..]))];
            safetensors::serialize_to_file(tensors, None, &base.path().join("model.safetensors")).unwrap();
            let target = other.path().join("model.safetensors");
            let rebuilt = rebuild(&tensor_places(base.path()).unwrap(), &[], &target).unwrap();
            assert_eq!(rebuilt.sha256, file_sha256(&target).unwrap());
            assert_eq!(rebuilt.weights_hash, weights_hash(base.path()).unwrap());
            assert_eq!(rebuilt.weights_hash, weights_hash(other.path()).unwrap());
        }
    }
}
