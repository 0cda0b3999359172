//! Why an environment cannot be opened.

use std::path::PathBuf;

use crate::dataset::DatasetError;
use crate::task::Split;

/// Why an environment cannot be opened. Each means: do not mine this checkpoint's windows.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// An id that the protocol does not register.
    #[error("Unknown environment id `{id}` (known: {known}). Every miner fails in it; do not mine this checkpoint.")]
    Unknown {
        /// The id.
        id: String,
        /// The registered ids.
        known: String,
    },
    /// A registered id without rules here.
    #[error("The environment `{id}` has no rules in this version (built: {built}). Do not mine this checkpoint.")]
    NotBuilt {
        /// The id.
        id: &'static str,
        /// The ids that have rules.
        built: String,
    },
    /// `env_params` is no object.
    #[error("env_params must be a JSON object, got {found}. Do not mine this checkpoint.")]
    Params {
        /// The value, as JSON.
        found: String,
    },
    /// A split that the environment does not have.
    #[error("The environment `{id}` has no split {found}: it must be {accepted}. Do not mine this checkpoint.")]
    Split {
        /// The environment.
        id: &'static str,
        /// The value, as JSON.
        found: String,
        /// What would have been accepted.
        accepted: &'static str,
    },
    /// A split that ends up without rows.
    #[error("The split `{split}` of {path} is empty: {why}. Use a larger data set.")]
    EmptySplit {
        /// The data set.
        path: PathBuf,
        /// The split.
        split: Split,
        /// The rule that left it empty.
        why: String,
    },
    /// The data set cannot be used.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

impl EnvironmentError {
    pub(crate) fn split(id: &'static str, found: &str, accepted: &'static str) -> Self {
        Self::Split { id, found: format!("`{found}`"), accepted }
    }
}
