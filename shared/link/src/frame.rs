//! The envelope of a message: magic, version, length, checksum, payload.
//!
//! ```text
//!  bytes 0..2   magic "GR"
//!  bytes 2..4   protocol version, little-endian
//!  bytes 4..8   payload length, little-endian, at most MAX_FRAME_BYTES
//!  bytes 8..12  CRC-32 of the payload, little-endian
//! ```

/// Raised whenever a message or the serialiser changes; both sides must agree.
pub const PROTOCOL_VERSION: u16 = 4;
/// Largest payload: a group of 16 rollouts of 8,192 tokens with sketches, log-probabilities and probabilities takes 2 MiB.
pub const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 12;
const MAGIC: [u8; 2] = *b"GR";

/// A frame that must not be believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer does not speak this protocol at all.
    #[error("the peer sent {0:02x?} where a frame begins with {MAGIC:02x?}: it is not a grail program")]
    Magic([u8; 2]),
    /// The peer was built from another version.
    #[error("the peer speaks link version {theirs}, this program {PROTOCOL_VERSION}: install programs of one build")]
    Version {
        /// The version in the peer's frame.
        theirs: u16,
    },
    /// A length that no message has.
    #[error("a frame of {0} bytes is larger than the limit of {MAX_FRAME_BYTES}")]
    TooLarge(usize),
    /// The payload is not what was sent.
    #[error("a frame's checksum is {found:08x} where its header says {stated:08x}")]
    Checksum {
        /// Computed over the payload.
        found: u32,
        /// Stated in the header.
        stated: u32,
    },
    /// Fewer bytes than the header promises.
    #[error("a frame ends before its payload does")]
    Truncated,
}

/// The decoded first bytes of a frame.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Payload length in bytes, within the limit.
    pub length: usize,
    checksum: u32,
}

impl Header {
    /// Judges a header before anything is allocated for its payload.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [m0, m1, v0, v1, l0, l1, l2, l3, c0, c1, c2, c3] = bytes;
        if [m0, m1] != MAGIC {
            return Err(FrameError::Magic([m0, m1]));
        }
        let theirs = u16::from_le_bytes([v0, v1]);
        if theirs != PROTOCOL_VERSION {
            return Err(FrameError::Version { theirs });
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(FrameError::TooLarge(length));
        }
        Ok(Self { length, checksum: u32::from_le_bytes([c0, c1, c2, c3]) })
    }

    /// Compares length and checksum with the payload that came.
    pub fn check(&self, payload: &[u8]) -> Result<(), FrameError> {
        if payload.len() != self.length {
            return Err(FrameError::Truncated);
        }
        let found = crc32fast::hash(payload);
        if found == self.checksum { Ok(()) } else { Err(FrameError::Checksum { found, stated: self.checksum }) }
    }
}

/// Header and payload in one buffer, so that a frame leaves in one write.
pub fn encode(payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_FRAME_BYTES);
    let length = length.ok_or(FrameError::TooLarge(payload.len()))?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    frame.extend_from_slice(payload);
    Ok(frame)
}
