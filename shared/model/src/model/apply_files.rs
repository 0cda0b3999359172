//! Files of changes into resident weights, and back out of them when they lead elsewhere.

use std::path::PathBuf;

use super::{ApplyError, Model};
use crate::delta::TensorDelta;
use crate::delta_file::DeltaFile;
use crate::transfer::CopyError;

impl Model {
    /// Writes files of changes into the resident tensors, in this order, bit for bit, and hashes everything that is resident
    /// then. All files are judged whole before the first write. If the hash is not `want`, what was there before is put back.
    /// Positions of one tensor and the old values of all changes are in memory.
    ///
    /// # Errors
    /// [`ApplyError::Refused`], [`ApplyError::File`] and [`ApplyError::OtherHash`] leave the old weights serving; after
    /// [`ApplyError::Unfit`] the model must be dropped.
    pub fn apply_files(&mut self, paths: &[PathBuf], want: &str) -> Result<(), ApplyError> {
        let _guard = tch::no_grad_guard();
        self.weights.takes_changes()?;
        let opened: Result<Vec<DeltaFile>, _> = paths.iter().map(|path| DeltaFile::open(path)).collect();
        let files = opened.map_err(ApplyError::File)?;
        for file in &files {
            for name in file.names() {
                self.weights.check_change(&file.read(name).map_err(ApplyError::File)?)?;
            }
            file.unchanged().map_err(ApplyError::File)?;
        }
        let before = self.exchange(&files).map_err(ApplyError::Unfit)?;
        let got = self.weights.hash().to_owned();
        if got == want {
            return Ok(());
        }
        self.put_back(&files, before).map_err(ApplyError::Unfit)?;
        Err(ApplyError::OtherHash { got, want: want.to_owned() })
    }

    /// Writes judged files; returns what was there before, in the order of writing.
    fn exchange(&mut self, files: &[DeltaFile]) -> Result<Vec<Vec<u8>>, CopyError> {
        let mut before = Vec::new();
        for file in files {
            for name in file.names() {
                let change = file.read(name)?;
                // What was judged is what is written.
                file.unchanged()?;
                before.push(self.weights.exchange(&change)?);
            }
        }
        self.weights.hash_again()?;
        Ok(before)
    }

    /// Takes the writing of `files` back, the last first.
    fn put_back(&mut self, files: &[DeltaFile], mut before: Vec<Vec<u8>>) -> Result<(), CopyError> {
        let written: Vec<(&DeltaFile, &str)> = files.iter().flat_map(|file| file.names().map(move |name| (file, name))).collect();
        for (file, name) in written.into_iter().rev() {
            let change = TensorDelta { values: before.pop().unwrap_or_default(), ..file.read(name)? };
            file.unchanged()?;
            self.weights.write(&change)?;
        }
        self.weights.hash_again()
    }
}
