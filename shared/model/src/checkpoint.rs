//! The safetensors files of a checkpoint, mapped and judged as a whole before anything is copied out of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Kind, TchError, Tensor};
use xxhash_rust::xxh3::Xxh3Default;

use crate::native;

/// More shards than any model has.
const MAX_SHARDS: usize = 1024;

/// An index larger than this is not one.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Why the weights of a checkpoint are refused. Every case is found before a tensor is touched.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Neither `model.safetensors` nor an index is there.
    #[error("{directory}: holds neither model.safetensors nor model.safetensors.index.json; the checkpoint is incomplete")]
    NoWeights {
        /// The checkpoint's directory.
        directory: PathBuf,
    },
    /// A file cannot be opened or mapped.
    #[error("{path}: cannot be read: {source}; the checkpoint is incomplete, fetch it again")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is no safetensors file, is cut short, or its header lies.
    #[error("{path}: not a valid safetensors file: {source}; fetch the checkpoint again")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// The index is damaged or disagrees with its files.
    #[error("{path}: {reason}; fetch the checkpoint again")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that the configuration asks for is nowhere.
    #[error("{directory}: tensor {name} is missing (want shape {want:?}); the checkpoint does not fit its config.json")]
    Missing {
        /// The checkpoint's directory.
        directory: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape by the configuration.
        want: Vec<i64>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{path}: tensor {name} has shape {got:?}, want {want:?}; the checkpoint does not fit its config.json")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape in the file.
        got: Vec<i64>,
        /// Its shape by the configuration.
        want: Vec<i64>,
    },
    /// A tensor that no part of the model uses.
    #[error("{path}: tensor {name} is unexpected; the checkpoint does not fit its config.json")]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor is stored in a type that is no weight type.
    #[error("{path}: tensor {name} is stored as {got}, want BF16, F16 or F32")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type in the file.
        got: Dtype,
    },
    /// A weight is NaN or infinite; servers would answer nonsense with it and call it success.
    #[error("{path}: tensor {name} holds NaN or infinity at element {element}; the checkpoint is damaged or training diverged")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Row-major index of the first such element.
        element: usize,
    },
}

/// A mapped checkpoint: names, types, shapes and bytes, nothing copied.
#[derive(Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<i64>,
    start: usize,
    end: usize,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or else every shard of `model.safetensors.index.json`, and parses every header.
    ///
    /// # Errors
    /// When a file is missing, damaged, or the index disagrees with its files.
    pub fn open(directory: &Path) -> Result<Self, WeightsError> {
        let mut checkpoint = Self { directory: directory.to_path_buf(), files: Vec::new(), tensors: BTreeMap::new() };
        let single = directory.join("model.safetensors");
        let index = directory.join("model.safetensors.index.json");
        if single.exists() {
            checkpoint.add(single)?;
        } else if index.exists() {
            let weight_map = read_index(&index)?;
            let shards: BTreeSet<&String> = weight_map.values().collect();
            for shard in shards {
                checkpoint.add(directory.join(shard))?;
            }
            checkpoint.agree_with(&index, &weight_map)?;
        } else {
            return Err(WeightsError::NoWeights { directory: directory.to_path_buf() });
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), WeightsError> {
        let failed = |source| WeightsError::Read { path: path.clone(), source };
        let map = native::map(&File::open(&path).map_err(failed)?).map_err(failed)?;
        // The crate checks that the header fits the file, that every tensor lies inside it and that none overlap.
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|source| WeightsError::Format { path: path.clone(), source })?;
        let data = header + size_of::<u64>();
        for (name, info) in metadata.tensors() {
            let shape = info.shape.iter().map(|&side| i64::try_from(side).unwrap_or(i64::MAX)).collect();
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            let entry = Entry { file: self.files.len(), dtype: info.dtype, shape, start, end };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(WeightsError::Index { path, reason: format!("tensor {name} is in two files") });
            }
        }
        self.files.push((path, map));
        Ok(())
    }

    fn agree_with(&self, index: &Path, weight_map: &BTreeMap<String, String>) -> Result<(), WeightsError> {
        let wrong = |reason| Err(WeightsError::Index { path: index.to_path_buf(), reason });
        for (name, file) in weight_map {
            match self.tensors.get(name) {
                Some(entry) if self.files[entry.file].0 == self.directory.join(file) => {}
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
            let path = || self.files[entry.file].0.clone();
            if entry.shape != *want {
                let (name, got, want) = (name.clone(), entry.shape.clone(), want.clone());
                return Err(WeightsError::Shape { path: path(), name, got, want });
            }
            if kind(entry.dtype).is_none() {
                return Err(WeightsError::Dtype { path: path(), name: name.clone(), got: entry.dtype });
            }
        }
        if let Some((name, entry)) = self.tensors.iter().find(|(name, _)| !expected.contains_key(*name) && !ignorable(name)) {
            return Err(WeightsError::Unexpected { path: self.files[entry.file].0.clone(), name: name.clone() });
        }
        expected.keys().try_for_each(|name| self.refuse_non_finite(name))
    }

    fn refuse_non_finite(&self, name: &str) -> Result<(), WeightsError> {
        let Some(entry) = self.tensors.get(name) else { return Ok(()) };
        match first_non_finite(self.bytes_of(entry), entry.dtype) {
            None => Ok(()),
            Some(element) => {
                Err(WeightsError::NotFinite { path: self.files[entry.file].0.clone(), name: name.to_owned(), element })
            }
        }
    }

    fn bytes_of(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file].1[entry.start..entry.end]
    }

    /// The tensors' names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Raw little-endian bytes of a tensor as stored.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.tensors.get(name).map(|entry| self.bytes_of(entry))
    }

    /// The type a tensor is stored in, if it is a weight type.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.tensors.get(name).and_then(|entry| kind(entry.dtype))
    }

    /// Calls `read` with a view of a stored tensor (CPU, the file's type).
    ///
    /// # Errors
    /// When there is no such weight tensor or libtorch refuses the view.
    pub(crate) fn with_tensor<R>(&self, name: &str, read: impl FnOnce(&Tensor) -> R) -> Result<R, TchError> {
        let absent = || TchError::TensorNameNotFound(name.to_owned(), self.directory.display().to_string());
        let entry = self.tensors.get(name).ok_or_else(absent)?;
        native::with_view(self.bytes_of(entry), &entry.shape, kind(entry.dtype).ok_or_else(absent)?, read)
    }

    /// XXH3-128 (seed 0, hex, big-endian digest) over the raw bytes of all tensors in ascending order of name: the
    /// `weights_hash` of a checkpoint's metadata.
    pub fn weights_hash(&self) -> String {
        let mut hasher = Xxh3Default::new();
        self.tensors.values().for_each(|entry| hasher.update(self.bytes_of(entry)));
        hex128(hasher.digest128())
    }
}

/// 32 lower-case hex digits, most significant first.
pub(crate) fn hex128(digest: u128) -> String {
    format!("{digest:032x}")
}

fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F16 => Some(Kind::Half),
        Dtype::F32 => Some(Kind::Float),
        _ => None,
    }
}

/// Index of the first element whose exponent is all ones (NaN or infinity). Looks at bits only, so it runs at memory speed.
fn first_non_finite(bytes: &[u8], dtype: Dtype) -> Option<usize> {
    let find16 = |mask: u16| bytes.as_chunks::<2>().0.iter().position(|element| u16::from_le_bytes(*element) & mask == mask);
    match dtype {
        Dtype::BF16 => find16(0x7f80),
        Dtype::F16 => find16(0x7c00),
        Dtype::F32 => {
            let mask = 0x7f80_0000;
            bytes.as_chunks::<4>().0.iter().position(|element| u32::from_le_bytes(*element) & mask == mask)
        }
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
