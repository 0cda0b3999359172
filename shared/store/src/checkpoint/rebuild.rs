//! A checkpoint from its base and what changed since: one pass over the base, bounded memory (grail-checkpoints 6).

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::Scope;

use safetensors::tensor::TensorInfo;
use sha2::{Digest, Sha256};
use twox_hash::xxhash3_128::Hasher as Xxh3;

use super::CheckpointError;
use super::changes::{Changes, TensorChanges, safetensors_header};
use super::error::local;
use super::weights::{TensorPlace, file_sha256};

/// Bytes that are read, changed, hashed and written at once; a multiple of every type's width.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces in memory at once.
const PIECES: usize = 4;
/// Bytes that are written before the disk is told to begin with them.
const SYNC_BYTES: usize = 32 << 20;

/// What is known of a file of weights that was written.
pub(super) struct Rebuilt {
    /// XXH3-128 over its tensors.
    pub weights_hash: String,
    /// SHA-256 of the whole file.
    pub sha256: String,
}

/// Writes the tensors of `base` with `links` (oldest first) applied into the new safetensors file `path`. Values are copied
/// bit for bit, every tensor keeps its type.
pub(super) fn rebuild(base: &BTreeMap<String, TensorPlace>, links: &[Changes], path: &Path) -> Result<Rebuilt, CheckpointError> {
    let (header, starts) = lay_out(base).map_err(|why| CheckpointError::Weights { path: path.to_owned(), why })?;
    let file = &File::create(path).map_err(local(path))?;
    file.write_all_at(&header, 0).map_err(local(path))?;
    // The tensors come in the order of the weights hash. Unless they are of different widths it is the file's, too.
    let in_order = base.keys().map(|name| starts[name]).is_sorted();
    std::thread::scope(|scope| {
        let (written, to_sync) = sync_channel(1);
        let syncer = scope.spawn(move || to_sync.into_iter().try_for_each(|()| file.sync_data()));
        let mut target = Target { path, file, starts, data: header.len() as u64, unsynced: 0, written };
        let rebuilt = if in_order {
            hash_beside(scope, header, |take| {
                each_piece(base, links, |tensor, offset, piece| target.write(tensor, offset, &piece).map(|()| take(piece)))
            })?
        } else {
            let write = |tensor: &String, offset, piece: Vec<u8>| target.write(tensor, offset, &piece).map(|()| piece);
            Rebuilt { weights_hash: each_piece(base, links, write)?, sha256: file_sha256(path)? }
        };
        drop(target);
        syncer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(local(path))?;
        Ok(rebuilt)
    })
}

/// The file that is written.
struct Target<'a> {
    path: &'a Path,
    file: &'a File,
    /// Where each tensor starts in the data, which begins at `data`.
    starts: HashMap<&'a String, u64>,
    data: u64,
    /// Bytes that the disk was not told of.
    unsynced: usize,
    /// Has it sync what is written.
    written: SyncSender<()>,
}

impl Target<'_> {
    fn write(&mut self, tensor: &String, offset: u64, piece: &[u8]) -> Result<(), CheckpointError> {
        self.file.write_all_at(piece, self.data + self.starts[tensor] + offset).map_err(local(self.path))?;
        self.unsynced += piece.len();
        // The disk is busy from the first pieces on, so that little is left to wait for at the end.
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            // Full: the sync that is due finds these bytes as well.
            let _ = self.written.try_send(());
        }
        Ok(())
    }
}

/// Makes SHA-256 of a file that begins with `header` beside the rest, which costs less, of the pieces that are in memory anyway:
/// `make` hands them over in the file's order, gets used ones back, and returns the weights hash.
fn hash_beside<'scope>(
    scope: &'scope Scope<'scope, '_>,
    header: Vec<u8>,
    make: impl FnOnce(&mut dyn FnMut(Vec<u8>) -> Vec<u8>) -> Result<String, CheckpointError>,
) -> Result<Rebuilt, CheckpointError> {
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
    let weights_hash = make(&mut |piece| filled.send(piece).ok().and_then(|()| empty.recv().ok()).unwrap_or_default())?;
    drop(filled);
    let sha256 = sha256.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    Ok(Rebuilt { weights_hash, sha256 })
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
            hasher.write(&piece);
            piece = take(name, offset, piece)?;
        }
    }
    Ok(format!("{:032x}", hasher.finish_128()))
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
