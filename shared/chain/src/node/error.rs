//! Why a node gave no answer.

use grail_secrets::Address;

use crate::metadata::MetadataError;
use crate::storage::StorageError;
use crate::tls::TlsError;

/// Why a node gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is no connection.
    #[error("no node answers: {0}")]
    Down(String),
    /// The connection ended before the answer.
    #[error("the connection ended before {method} was answered: {reason}")]
    Lost {
        /// The request.
        method: &'static str,
        /// How it ended.
        reason: String,
    },
    /// No answer in time.
    #[error("{method} was not answered within {seconds} s")]
    Late {
        /// The request.
        method: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The node answered with an error.
    #[error("the node refuses {method}: {message} (code {code})")]
    Refused {
        /// The request.
        method: &'static str,
        /// JSON-RPC's code.
        code: i64,
        /// The node's words, cut.
        message: String,
    },
    /// The node's answer is not what the request is documented to give.
    #[error("the node's answer to {method} is not understood: {reason}")]
    Answer {
        /// The request.
        method: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// The node belongs to another network.
    #[error(
        "the node {endpoint} belongs to another network: its block 0 is {found}, this network's is {expected}; correct chain.endpoint or chain.network"
    )]
    OtherNetwork {
        /// The node.
        endpoint: Address,
        /// Its block 0.
        found: String,
        /// The network's block 0.
        expected: String,
    },
    /// The node's newest block is too old to work with.
    #[error("the node has told no new block for {seconds} s (last was block {number})")]
    Stale {
        /// Since then.
        seconds: u64,
        /// The block.
        number: u64,
    },
    /// A value or key does not go with the runtime's metadata.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The metadata lacks something or cannot be read.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl NodeError {
    /// Whether the same question may be answered later, by another node if not by this one.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.is_a_lie() || matches!(self, Self::Down(_) | Self::Lost { .. } | Self::Late { .. } | Self::Stale { .. })
    }

    /// Whether the answer is one that no honest node gives, or none that goes with the runtime it told: it is left for the next.
    #[must_use]
    pub fn is_a_lie(&self) -> bool {
        match self {
            Self::Answer { .. } => true,
            Self::Metadata(error) => matches!(error, MetadataError::Undecodable(_) | MetadataError::Excess(_)),
            Self::Storage(error) => match error {
                StorageError::Excess { .. } | StorageError::Value { .. } => true,
                StorageError::Metadata(_) | StorageError::Arguments { .. } => false,
            },
            _ => false,
        }
    }

    pub(crate) fn answer(method: &'static str, reason: impl Into<String>) -> Self {
        Self::Answer { method, reason: reason.into() }
    }
}
