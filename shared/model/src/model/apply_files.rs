//! Files of changes into resident weights, and back out of them when they lead elsewhere.

use std::path::PathBuf;

use super::{ApplyError, Model};
use crate::delta_file::DeltaFile;

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
                let change = file.changes(name).map_err(ApplyError::File)?;
                change.map_or(Ok(()), |change| self.weights.check_change(&change))?;
            }
        }
        let found = self.weights.exchange(&files).map_err(ApplyError::Unfit)?;
        let got = self.weights.hash().to_owned();
        if got == want {
            return Ok(());
        }
        self.weights.put_back(&files, found).map_err(ApplyError::Unfit)?;
        Err(ApplyError::OtherHash { got, want: want.to_owned() })
    }
}
