//! A file of changes (what the supervisor makes of a DELTA's body), read one tensor at a time.
//!
//! A safetensors file: for a changed tensor `T` it has `T.positions` (u32, ascending, flat, row-major) and `T.values`.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use crate::checkpoint::kind;
use crate::delta::TensorDelta;
use crate::weight_file::{WeightFile, threads};
use crate::weights_error::WeightsError;

const POSITIONS: &str = ".positions";
const VALUES: &str = ".values";

/// An opened file of changes.
pub(crate) struct DeltaFile {
    file: WeightFile,
    tensors: BTreeMap<String, TensorInfo>,
    /// First byte of the data.
    data: u64,
}

impl DeltaFile {
    /// Opens a file and parses its header.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let (file, metadata, data) = WeightFile::open(path)?;
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok(Self { file, tensors, data })
    }

    /// The tensors that it changes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().filter_map(|name| name.strip_suffix(POSITIONS))
    }

    /// What it changes in one of them, if anything. Whether that fits is not judged here; that nobody has written to the file
    /// since it was opened is.
    pub fn changes(&self, name: &str) -> Result<Option<TensorDelta>, WeightsError> {
        let Some(positions) = self.tensors.get(&format!("{name}{POSITIONS}")) else { return Ok(None) };
        let values = self.part(name, VALUES)?;
        let wrong = |got| WeightsError::Dtype { path: self.file.path().to_path_buf(), name: name.to_owned(), got };
        if positions.dtype != Dtype::U32 {
            return Err(wrong(positions.dtype));
        }
        let bytes = self.bytes(positions)?;
        let change = TensorDelta {
            name: name.to_owned(),
            kind: kind(values.dtype).ok_or_else(|| wrong(values.dtype))?,
            positions: bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
            values: self.bytes(values)?,
        };
        self.file.unchanged()?;
        Ok(Some(change))
    }

    fn part(&self, name: &str, suffix: &str) -> Result<&TensorInfo, WeightsError> {
        let part = format!("{name}{suffix}");
        self.tensors.get(&part).ok_or_else(|| WeightsError::Missing {
            directory: self.file.path().to_path_buf(),
            name: part,
            want: Vec::new(),
        })
    }

    fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>, WeightsError> {
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file.read_in_parallel(self.data + start as u64, &mut bytes, threads())?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tch::{Device, Kind};

    use super::*;
    use crate::fixtures;
    use crate::model::{ApplyError, LoadOptions, Model, Precision};

    fn load(directory: &Path, precision: Precision) -> Model {
        Model::load(directory, LoadOptions { device: Device::Cpu, precision }).unwrap()
    }

    /// Writes a file of changes: tensor, positions, bf16 bits.
    fn write(path: &Path, changes: &[(&str, &[u32], &[u16])]) -> PathBuf {
        let changes: Vec<TensorDelta> = changes
            .iter()
            .map(|(name, positions, values)| TensorDelta {
                name: (*name).to_owned(),
                kind: Kind::BFloat16,
                positions: positions.to_vec(),
                values: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            })
            .collect();
        fixtures::write_changes(path, &changes)
    }

    #[test]
    fn files_are_applied_in_order_and_lead_to_the_whole_checkpoint() {
        for precision in [Precision::Bf16, Precision::F32] {
            let (folder, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let mut tensors = fixtures::weights(folder.path(), &fixtures::config(), 3, Dtype::BF16);
            fixtures::write(&folder.path().join("model.safetensors"), &tensors);
            let mut model = load(folder.path(), precision);
            let (norm, head) = ("model.norm.weight", "lm_head.weight");
            let files = [
                write(&folder.path().join("1"), &[(norm, &[0, 31], &[0x3f80, 0x8000]), (head, &[7], &[0x4000])]),
                write(&folder.path().join("2"), &[(norm, &[31], &[0x0001])]),
            ];
            let before = model.weights_hash().to_owned();
            let mut put = |name: &str, at: usize, value: u16| {
                tensors.get_mut(name).unwrap().2[2 * at..][..2].copy_from_slice(&value.to_le_bytes());
            };
            for (name, at, value) in [(norm, 0, 0x3f80), (norm, 31, 0x0001), (head, 7, 0x4000)] {
                put(name, at, value);
            }
            fixtures::weights(whole.path(), &fixtures::config(), 3, Dtype::BF16);
            fixtures::write(&whole.path().join("model.safetensors"), &tensors);
            let want = load(whole.path(), precision).weights_hash().to_owned();
            let error = model.apply_files(&files, &before).unwrap_err();
            assert!(matches!(&error, ApplyError::OtherHash { got, .. } if *got == want), "{error}");
            assert_eq!(model.weights_hash(), before, "what was there is put back");
            model.apply_files(&files, &want).unwrap();
            assert_eq!(model.weights_hash(), want);
        }
    }

    #[test]
    fn a_bad_file_is_refused_before_the_first_write_of_any() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = fixtures::weights(folder.path(), &fixtures::config(), 3, Dtype::BF16);
        fixtures::write(&folder.path().join("model.safetensors"), &tensors);
        let mut model = load(folder.path(), Precision::Bf16);
        let hash = model.weights_hash().to_owned();
        let good = write(&folder.path().join("good"), &[("model.norm.weight", &[1], &[0x3f80])]);
        let bad = folder.path().join("bad");
        write(&bad, &[("model.norm.weight", &[32], &[0x3f80])]);
        let error = model.apply_files(&[good.clone(), bad.clone()], &hash).unwrap_err();
        assert!(matches!(error, ApplyError::Refused(_)), "{error}");
        write(&bad, &[("model.other.weight", &[1], &[0x3f80])]);
        let error = model.apply_files(&[good.clone(), bad.clone()], &hash).unwrap_err();
        assert!(matches!(error, ApplyError::Refused(_)), "{error}");
        std::fs::write(&bad, "no safetensors").unwrap();
        for bad in [bad, folder.path().join("absent")] {
            let error = model.apply_files(&[good.clone(), bad], &hash).unwrap_err();
            assert!(matches!(error, ApplyError::File(_)), "{error}");
        }
        // Read the tensors again, not the hash that is remembered.
        model.apply_files(&[], &hash).unwrap();
        assert_eq!(model.weights_hash(), hash);
    }
}
