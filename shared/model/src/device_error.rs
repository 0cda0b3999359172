//! Which errors are the device's and not the checkpoint's: those that libtorch threw. Everything else was found by reading.

use tch::TchError;

use crate::model::{ApplyError, LoadError, ReloadError};
use crate::transfer::CopyError;

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
