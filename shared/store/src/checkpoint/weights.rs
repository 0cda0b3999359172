//! Safetensors files and the hash over their tensors (grail-checkpoints 6).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use grail_process::Meter;
use safetensors::Dtype;
use safetensors::tensor::Metadata as Header;
use sha2::{Digest, Sha256};
use twox_hash::xxhash3_128::Hasher as Xxh3;

use super::CheckpointError;
use super::error::local;

/// Header bytes at most; the format's own libraries set the same limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const PIECE_BYTES: usize = 4 << 20;
/// A config.json has a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The output head, and the embedding that it is where the two are tied.
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Where one tensor's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlace {
    /// The file.
    pub file: PathBuf,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its sides.
    pub shape: Vec<usize>,
}

impl TensorPlace {
    /// The tensor's bytes.
    ///
    /// # Errors
    /// [`CheckpointError::Local`].
    pub fn read(&self) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = vec![0; usize::try_from(self.length).unwrap_or(0)];
        let file = File::open(&self.file).map_err(local(&self.file))?;
        file.read_exact_at(&mut bytes, self.offset).map_err(local(&self.file))?;
        Ok(bytes)
    }
}

/// SHA-256 of a file, lower-case hex, streamed.
///
/// # Errors
/// [`CheckpointError::Local`].
pub fn file_sha256(path: &Path) -> Result<String, CheckpointError> {
    file_sha256_metered(path, &Meter::default())
}

/// As [`file_sha256`]; counts the bytes.
pub(super) fn file_sha256_metered(path: &Path, meter: &Meter) -> Result<String, CheckpointError> {
    let mut file = File::open(path).map_err(local(path))?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).map_err(local(path))? {
            0 => return Ok(hex::encode(hasher.finalize())),
            read => {
                hasher.update(&piece[..read]);
                meter.add(read as u64);
            }
        }
    }
}

/// xxh3-128 (seed 0, canonical big-endian hex) over the raw bytes of tensors in ascending order of name.
pub fn hash_tensors<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by_key(|(name, _)| *name);
    let mut hasher = Xxh3::new();
    tensors.iter().for_each(|(_, bytes)| hasher.write(bytes));
    format!("{:032x}", hasher.finish_128())
}

/// [`hash_tensors`] over every `*.safetensors` file of `dir`, streamed. Names, shapes and types are not part of it.
///
/// # Errors
/// [`CheckpointError::Weights`] for a file that is not safetensors or a tensor that is there twice.
pub fn weights_hash(dir: &Path) -> Result<String, CheckpointError> {
    hash_places(tensor_places(dir)?.into_values(), &Meter::default())
}

/// As [`weights_hash`], of the live state of a model whose output head is its embedding: there the head has a name of its own,
/// although no file holds it. `None` for any other model.
pub(super) fn tied_weights_hash(dir: &Path) -> Result<Option<String>, CheckpointError> {
    let Ok(config) = File::open(dir.join("config.json")) else { return Ok(None) };
    let config: serde_json::Value = serde_json::from_reader(config.take(MAX_CONFIG_BYTES)).unwrap_or_default();
    let mut places = tensor_places(dir)?;
    let embedding = places.get(EMBEDDING).filter(|_| config["tie_word_embeddings"] == true && !places.contains_key(HEAD));
    let Some(head) = embedding.cloned() else { return Ok(None) };
    places.insert(HEAD.to_owned(), head);
    hash_places(places.into_values(), &Meter::default()).map(Some)
}

/// The same over tensors in ascending order of name; counts the bytes.
pub(super) fn hash_places(places: impl Iterator<Item = TensorPlace>, meter: &Meter) -> Result<String, CheckpointError> {
    let mut hasher = Xxh3::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut open: Option<(PathBuf, File)> = None;
    for place in places {
        if open.as_ref().is_none_or(|(path, _)| *path != place.file) {
            open = Some((place.file.clone(), File::open(&place.file).map_err(local(&place.file))?));
        }
        if let Some((path, file)) = &mut open {
            hash_range(&mut hasher, file, &place, &mut piece).map_err(local(path.as_path()))?;
            meter.add(place.length);
        }
    }
    Ok(format!("{:032x}", hasher.finish_128()))
}

fn hash_range(hasher: &mut Xxh3, file: &mut File, place: &TensorPlace, piece: &mut [u8]) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(place.offset))?;
    let mut left = place.length;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        file.read_exact(&mut piece[..wanted])?;
        hasher.write(&piece[..wanted]);
        left -= wanted as u64;
    }
    Ok(())
}

/// Every tensor of every `*.safetensors` file of `dir`, by name.
///
/// # Errors
/// As [`weights_hash`]; also when there is no such file.
pub fn tensor_places(dir: &Path) -> Result<BTreeMap<String, TensorPlace>, CheckpointError> {
    tensor_places_among(dir, &weight_files(dir)?)
}

/// As [`tensor_places`], of these files of `dir`.
pub(super) fn tensor_places_among(dir: &Path, files: &[PathBuf]) -> Result<BTreeMap<String, TensorPlace>, CheckpointError> {
    let mut places = BTreeMap::new();
    if files.is_empty() {
        return Err(CheckpointError::Weights { path: dir.to_owned(), why: "there is no *.safetensors file".into() });
    }
    for file in files {
        for (name, place) in tensor_places_of(file)? {
            if places.insert(name.clone(), place).is_some() {
                return Err(CheckpointError::Weights {
                    path: file.clone(),
                    why: format!("tensor {name} is in another file too"),
                });
            }
        }
    }
    Ok(places)
}

/// The `*.safetensors` files of `dir`, sorted.
pub(super) fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(local(dir))? {
        let path = entry.map_err(local(dir))?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The tensors of one file; the library checks that shapes, types and offsets agree and leave no gap.
pub(super) fn tensor_places_of(path: &Path) -> Result<Vec<(String, TensorPlace)>, CheckpointError> {
    let wrong = |why: String| CheckpointError::Weights { path: path.to_owned(), why };
    let mut file = File::open(path).map_err(local(path))?;
    let size = file.metadata().map_err(local(path))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| wrong(format!("{size} bytes are too few")))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > size.saturating_sub(8) {
        return Err(wrong(format!("its header claims {length} of {size} bytes")));
    }
    let mut header = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact(&mut header).map_err(local(path))?;
    let header: Header = serde_json::from_slice(&header).map_err(|error| wrong(error.to_string()))?;
    let start = 8 + length;
    if start + header.data_len() as u64 != size {
        return Err(wrong(format!("its tensors need {} bytes, it has {}", header.data_len(), size - start)));
    }
    let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (begin, end) = info.data_offsets;
        let place = TensorPlace {
            file: path.to_owned(),
            offset: start + begin as u64,
            length: (end - begin) as u64,
            dtype: info.dtype,
            shape: info.shape.clone(),
        };
        (name, place)
    };
    Ok(header.tensors().into_iter().map(place).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tensors_hash_to_the_known_constant() {
        assert_eq!(hash_tensors([]), "99aa06d3014798d86001c324468d497f");
        assert_eq!(hash_tensors([("b", &b"2"[..]), ("a", b"1")]), hash_tensors([("a", &b"12"[..])]));
    }

    #[test]
    fn damaged_headers_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let header = br#"{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
        let file = [&(header.len() as u64).to_le_bytes()[..], header, &[1, 2]].concat();
        std::fs::write(&path, &file).unwrap();
        assert_eq!(weights_hash(dir.path()).unwrap(), hash_tensors([("w", &[1_u8, 2][..])]));
        for length in 0..file.len() {
            std::fs::write(&path, &file[..length]).unwrap();
            assert!(weights_hash(dir.path()).is_err(), "{length}");
        }
        std::fs::write(&path, [&u64::MAX.to_le_bytes()[..], header].concat()).unwrap();
        assert!(weights_hash(dir.path()).is_err());
    }
}
