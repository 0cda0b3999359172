//! Which errors are the device's and not the checkpoint's: those that libtorch threw. Everything else was found by reading.

use grail_faults::Fault;
use tch::TchError;

use crate::model::{ApplyError, LoadError, ReloadError};
use crate::transfer::CopyError;

/// What libtorch's error says of the device. Its exceptions reach this side of its C interface as texts only.
pub fn fault(error: &TchError) -> Option<Fault> {
    match error {
        TchError::Torch(text) => Fault::in_text(text),
        error => Fault::in_text(&error.to_string()),
    }
}

/// Whether a smaller batch may do.
pub(crate) fn is_out_of_memory(error: &TchError) -> bool {
    fault(error).is_some_and(Fault::is_memory)
}

impl CopyError {
    fn of_libtorch(&self) -> Option<&TchError> {
        match self {
            Self::Torch(error) => Some(error),
            Self::File(_) => None,
        }
    }
}

impl LoadError {
    /// What libtorch said, where it was libtorch that failed.
    pub fn of_libtorch(&self) -> Option<&TchError> {
        match self {
            Self::Torch { source, .. } => Some(source),
            Self::Config(_) | Self::Weights(_) => None,
        }
    }
}

impl ReloadError {
    /// What libtorch said, where it was libtorch that failed.
    pub fn of_libtorch(&self) -> Option<&TchError> {
        match self {
            Self::Refused(error) => error.of_libtorch(),
            Self::Unfit { source, .. } => source.of_libtorch(),
            Self::OtherModel { .. } => None,
        }
    }
}

impl ApplyError {
    /// What libtorch said, where it was libtorch that failed.
    pub fn of_libtorch(&self) -> Option<&TchError> {
        match self {
            Self::Unfit(source) => source.of_libtorch(),
            Self::Refused(_) | Self::OtherHash { .. } | Self::File(_) => None,
        }
    }
}
