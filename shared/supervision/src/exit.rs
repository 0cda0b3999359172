//! Why a command ended, and the exit code that says so. The numbers are documented in the README and do not change.

use std::process::ExitCode;

/// A command could not do its work. The message is complete: what, which value, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Settings that cannot work (exit code 64).
    #[error("{0}")]
    Configuration(String),
    /// Input data that cannot be used: dataset, checkpoint directory (exit code 65).
    #[error("{0}")]
    Data(String),
    /// Something outside does not answer or refuses: bucket, port, program (exit code 69).
    #[error("{0}")]
    Unavailable(String),
    /// A mistake of this program or of the operating system (exit code 70).
    #[error("{0}")]
    Internal(String),
    /// Another supervisor works on the same state folder (exit code 75).
    #[error("{0}")]
    Locked(String),
    /// Every child of a kind is quarantined: nothing is left to work with (exit code 76).
    #[error("{0}")]
    Exhausted(String),
    /// The wallet is missing or unreadable (exit code 77).
    #[error("{0}")]
    Wallet(String),
    /// The chain refuses this hotkey or cannot be used (exit code 1).
    #[error("{0}")]
    Chain(String),
}

impl Failure {
    /// The documented exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Chain(_) => 1,
            Self::Configuration(_) => 64,
            Self::Data(_) => 65,
            Self::Unavailable(_) => 69,
            Self::Internal(_) => 70,
            Self::Locked(_) => 75,
            Self::Exhausted(_) => 76,
            Self::Wallet(_) => 77,
        }
    }

    /// For an error of the operating system in a place where none is expected.
    pub fn internal(doing: &str, error: impl std::fmt::Display) -> Self {
        Self::Internal(format!("cannot {doing}: {error}"))
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        Self::from(failure.code())
    }
}
