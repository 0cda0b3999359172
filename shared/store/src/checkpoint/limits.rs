//! What whoever fetches a checkpoint allows.

use std::time::Duration;

use super::refused::Refused;

/// What a fetch may cost and whom it trusts.
#[derive(Clone, Debug)]
pub struct FetchLimits {
    /// Bytes of all files of one directory together, as announced by the bucket and again while unpacking.
    pub total_bytes: u64,
    /// SS58 address whose `manifest.sig` is required; `None` trusts the bucket's credentials alone.
    pub trainer: Option<String>,
    /// What need not be downloaded again, because it was found damaged and is still the same.
    pub refused: Refused,
    /// Another process that makes the same checkpoint and does not get on for so long is not waited for any more.
    pub patience: Duration,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self { total_bytes: 200 << 30, trainer: None, refused: Refused::default(), patience: Duration::from_secs(120) }
    }
}
