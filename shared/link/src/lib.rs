//! Framed, versioned messages between the supervisor and its children.
//!
//! ```text
//!  supervisor: Listener::bind ── spawn child with --socket ──▶ Listener::accept (checks pid and user of the peer)
//!  child:      Connection::connect ── Hello ──▶ supervisor, then commands one way and results the other
//! ```
//!
//! One enum per direction ([`message`]); one file knows the serialiser ([`codec`]); every length that comes from the other
//! process is bounded before it is believed ([`frame`]).
#![forbid(unsafe_code)]

mod codec;
mod connection;
mod frame;
pub mod message;

pub use codec::CodecError;
pub use connection::{Connection, Inbox, LinkError, Listener, MAX_SOCKET_PATH, Outbox};
pub use frame::{FrameError, MAX_FRAME_BYTES, PROTOCOL_VERSION};

/// The decoder of one frame, for fuzzing and for tests that feed it hostile bytes.
///
/// # Errors
/// When the bytes are not exactly one frame that holds one `T`.
pub fn decode_frame<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, LinkError> {
    let (header, payload) = bytes.split_at_checked(frame::HEADER_BYTES).ok_or(FrameError::Truncated)?;
    let header = frame::Header::decode(header.try_into().map_err(|_| FrameError::Truncated)?)?;
    header.check(payload)?;
    Ok(codec::decode(payload)?)
}

/// The encoder that belongs to [`decode_frame`].
///
/// # Errors
/// When the message is larger than a frame may be.
pub fn encode_frame<T: serde::Serialize>(message: &T) -> Result<Vec<u8>, LinkError> {
    Ok(frame::encode(&codec::encode(message)?)?)
}
