//! The safetensors files of a checkpoint, judged as a whole before anything is copied out of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::Deserialize;
use tch::Kind;
use twox_hash::xxhash3_128::Hasher as Xxh3;

use crate::finite::first_non_finite;
use crate::weight_file::{CHUNK, WeightFile, in_parallel, threads};
use crate::weights_error::WeightsError;

/// More shards than any model has.
const MAX_SHARDS: usize = 1024;

/// An index larger than this is not one.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// An opened checkpoint: names, types, shapes and places of its tensors, nothing copied.
#[derive(Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<i64>,
    /// First byte in the file.
    start: u64,
    bytes: usize,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or else every shard of `model.safetensors.index.json`, and parses every header.
    ///
    /// # Errors
    /// When a file is missing, damaged, or the index disagrees with its files.
    pub fn open(directory: &Path) -> Result<Self, WeightsError> {
        let mut checkpoint = Self { directory: directory.to_path_buf(), files: Vec::new(), tensors: BTreeMap::new() };
        let single = directory.join("model.safetensors");
        let index = directory.join("model.safetensors.index.json");
        if single.exists() {
            checkpoint.add(&single)?;
        } else if index.exists() {
            let weight_map = read_index(&index)?;
            let shards: BTreeSet<&String> = weight_map.values().collect();
            for shard in shards {
                checkpoint.add(&directory.join(shard))?;
            }
            checkpoint.agree_with(&index, &weight_map)?;
        } else {
            return Err(WeightsError::NoWeights { directory: directory.to_path_buf() });
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: &Path) -> Result<(), WeightsError> {
        let (file, metadata, data) = WeightFile::open(path)?;
        for (name, info) in metadata.tensors() {
            let shape = info.shape.iter().map(|&side| i64::try_from(side).unwrap_or(i64::MAX)).collect();
            let (start, end) = info.data_offsets;
            let entry =
                Entry { file: self.files.len(), dtype: info.dtype, shape, start: data + start as u64, bytes: end - start };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(WeightsError::Index { path: path.to_path_buf(), reason: format!("tensor {name} is in two files") });
            }
        }
        self.files.push(file);
        Ok(())
    }

    fn agree_with(&self, index: &Path, weight_map: &BTreeMap<String, String>) -> Result<(), WeightsError> {
        let wrong = |reason| Err(WeightsError::Index { path: index.to_path_buf(), reason });
        for (name, file) in weight_map {
            match self.tensors.get(name) {
                Some(entry) if self.path_of(entry) == self.directory.join(file) => {}
                Some(_) => return wrong(format!("tensor {name} is not in {file}, where the index puts it, but elsewhere")),
                None => return wrong(format!("tensor {name} is not in {file}, where the index puts it")),
            }
        }
        match self.tensors.keys().find(|name| !weight_map.contains_key(*name)) {
            Some(name) => wrong(format!("tensor {name} is in a file but not in the index")),
            None => Ok(()),
        }
    }

    /// Judges names, shapes and types against what a model expects, and refuses NaN and infinity. Tensors for which
    /// `ignorable` holds may be there without being expected.
    ///
    /// # Errors
    /// The first thing that does not fit, with tensor, file, want and got.
    pub fn check(&self, expected: &BTreeMap<String, Vec<i64>>, ignorable: impl Fn(&str) -> bool) -> Result<(), WeightsError> {
        for (name, want) in expected {
            let Some(entry) = self.tensors.get(name) else {
                let (directory, name, want) = (self.directory.clone(), name.clone(), want.clone());
                return Err(WeightsError::Missing { directory, name, want });
            };
            let path = || self.path_of(entry).to_path_buf();
            if entry.shape != *want {
                let (name, got, want) = (name.clone(), entry.shape.clone(), want.clone());
                return Err(WeightsError::Shape { path: path(), name, got, want });
            }
            if kind(entry.dtype).is_none() {
                return Err(WeightsError::Dtype { path: path(), name: name.clone(), got: entry.dtype });
            }
        }
        if let Some((name, entry)) = self.tensors.iter().find(|(name, _)| !expected.contains_key(*name) && !ignorable(name)) {
            return Err(WeightsError::Unexpected { path: self.path_of(entry).to_path_buf(), name: name.clone() });
        }
        self.refuse_non_finite(expected.keys())
    }

    fn refuse_non_finite<'a>(&self, names: impl Iterator<Item = &'a String>) -> Result<(), WeightsError> {
        let entries = names.filter_map(|name| self.tensors.get_key_value(name));
        let pieces: Vec<_> =
            entries.flat_map(|(name, entry)| (0..entry.bytes).step_by(CHUNK).map(move |offset| (name, entry, offset))).collect();
        in_parallel(threads(), pieces.len(), |index, buffer| {
            let (name, entry, offset) = pieces[index];
            buffer.resize(CHUNK.min(entry.bytes - offset), 0);
            self.files[entry.file].read(entry.start + offset as u64, buffer)?;
            match first_non_finite(buffer, entry.dtype) {
                None => Ok(()),
                Some(element) => {
                    let element = offset / (entry.dtype.bitsize() / 8) + element;
                    Err(WeightsError::NotFinite { path: self.path_of(entry).to_path_buf(), name: name.clone(), element })
                }
            }
        })
    }

    /// Refuses a checkpoint whose files somebody has written to since they were opened.
    ///
    /// # Errors
    /// [`WeightsError::Changed`] with the file.
    pub fn unchanged(&self) -> Result<(), WeightsError> {
        self.files.iter().try_for_each(WeightFile::unchanged)
    }

    fn path_of(&self, entry: &Entry) -> &Path {
        self.files[entry.file].path()
    }

    /// The tensors' names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The type a tensor is stored in, if it is a weight type.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.tensors.get(name).and_then(|entry| kind(entry.dtype))
    }

    /// Size of a tensor in its file; 0 if there is none.
    pub(crate) fn size(&self, name: &str) -> usize {
        self.tensors.get(name).map_or(0, |entry| entry.bytes)
    }

    /// Fills `bytes` with a tensor's raw little-endian bytes from byte `offset` of the tensor on.
    ///
    /// # Errors
    /// When there is no such tensor, it ends before `bytes` is full, or the file cannot be read.
    pub(crate) fn read(&self, name: &str, offset: usize, bytes: &mut [u8], threads: usize) -> Result<(), WeightsError> {
        let inside = self.tensors.get(name).filter(|entry| bytes.len() <= entry.bytes.saturating_sub(offset));
        let Some(entry) = inside else {
            let (directory, name) = (self.directory.clone(), name.to_owned());
            return Err(WeightsError::Missing { directory, name, want: Vec::new() });
        };
        self.files[entry.file].read_in_parallel(entry.start + offset as u64, bytes, threads)
    }

    /// XXH3-128 (seed 0, hex, big-endian digest) over the raw bytes of all tensors in ascending order of name: the
    /// `weights_hash` of a checkpoint's metadata.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn weights_hash(&self) -> Result<String, WeightsError> {
        let mut hasher = Xxh3::new();
        let mut buffer = vec![0; CHUNK];
        for entry in self.tensors.values() {
            for offset in (0..entry.bytes).step_by(CHUNK) {
                let piece = &mut buffer[..CHUNK.min(entry.bytes - offset)];
                self.files[entry.file].read(entry.start + offset as u64, piece)?;
                hasher.write(piece);
            }
        }
        Ok(hex128(hasher.finish_128()))
    }
}

/// 32 lower-case hex digits, most significant first.
pub(crate) fn hex128(digest: u128) -> String {
    format!("{digest:032x}")
}

pub(crate) fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F16 => Some(Kind::Half),
        Dtype::F32 => Some(Kind::Float),
        _ => None,
    }
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let failed = |source| WeightsError::Read { path: path.to_path_buf(), source };
    let wrong = |reason| WeightsError::Index { path: path.to_path_buf(), reason };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_INDEX_BYTES {
        return Err(wrong(format!("{bytes} bytes are too many for an index")));
    }
    let text = std::fs::read(path).map_err(failed)?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| wrong(format!("not a valid index: {error}")))?;
    let files: BTreeSet<&String> = index.weight_map.values().collect();
    if files.is_empty() || files.len() > MAX_SHARDS {
        return Err(wrong(format!("names {} files, want 1 to {MAX_SHARDS}", files.len())));
    }
    // A name that is a path could lead out of the checkpoint.
    if let Some(file) = files.iter().find(|file| Path::new(file.as_str()).file_name() != Some(file.as_ref())) {
        return Err(wrong(format!("{file:?} is not a plain file name")));
    }
    Ok(index.weight_map)
}
