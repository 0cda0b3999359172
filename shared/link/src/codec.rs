//! The only file that knows which serialiser carries the messages.
//!
//! bincode 2.0.1 is the last release of an abandoned project; to replace it, change these two functions and raise
//! [`crate::PROTOCOL_VERSION`].

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::MAX_FRAME_BYTES;

/// A message that does not fit the form both sides agreed on.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A value that cannot be serialised.
    #[error("cannot encode a message: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// Bytes that are no message of the expected kind.
    #[error("cannot decode a message: {0}; do all programs come from the same build?")]
    Decode(#[from] bincode::error::DecodeError),
    /// Bytes after the end of the message.
    #[error("a message of {used} bytes came in a frame of {length} bytes; do all programs come from the same build?")]
    Trailing {
        /// Bytes that the message took.
        used: usize,
        /// Bytes of the frame's payload.
        length: usize,
    },
}

/// The limit bounds every allocation that a decoded length can ask for.
fn configuration() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_FRAME_BYTES>()
}

/// Serialises one message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    Ok(bincode::serde::encode_to_vec(message, configuration())?)
}

/// Restores one message, which must fill the whole payload.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    let (message, used) = bincode::serde::decode_from_slice(payload, configuration())?;
    if used == payload.len() { Ok(message) } else { Err(CodecError::Trailing { used, length: payload.len() }) }
}
