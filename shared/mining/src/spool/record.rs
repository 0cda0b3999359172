//! What the spool writes, as bytes: everything in one sealed form, so that a torn or foreign file is told from a whole one.
//!
//! ```text
//!  "GRAILSP1" │ length of the header, u32 little-endian │ header, JSON │ payload │ SHA-256 of all before it
//! ```

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"GRAILSP1";
const LENGTH: usize = 4;
const SEAL: usize = 32;
/// A header names things; a kilobyte is a long one.
const MAX_HEADER: usize = 64 * 1024;
/// Largest record that is read: sixteen rollouts of 8,192 tokens take less than 4 MiB.
pub const MAX_RECORD: u64 = 64 * 1024 * 1024;

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Cut short, overwritten, or never finished.
    #[error("it is torn or damaged: {0}")]
    Torn(&'static str),
    /// Whole, but not what was expected there.
    #[error("it is no record of this program: {0}")]
    Foreign(String),
}

/// What a spooled group says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupHeader {
    /// The miner's address.
    pub wallet: String,
    /// First block of the window.
    pub window: u64,
    /// The problem index.
    pub index: i64,
    /// Window of the checkpoint it was generated and proved with.
    pub checkpoint_window: u64,
    /// Proof slot of the worker that proved it; its groups fall with it.
    pub worker: u32,
    /// Sum of its rewards.
    pub reward_sum: f64,
    /// Rollouts whose answer is right.
    pub successes: u32,
}

/// A complete group as it is spooled: its header, and a window file that holds nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRecord {
    /// What it is.
    pub header: GroupHeader,
    /// Sixteen rows, encoded as one row group.
    pub file: Bytes,
}

impl GroupRecord {
    /// The sealed bytes.
    ///
    /// # Errors
    /// When the header cannot be JSON: a reward that is no number.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        seal(&self.header, &self.file)
    }

    /// Reads sealed bytes; never panics, whatever they are.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let (header, payload) = unseal(bytes)?;
        Ok(Self { header, file: bytes.slice_ref(payload) })
    }
}

/// Header and payload as sealed bytes.
///
/// # Errors
/// [`RecordError::Foreign`] when the header cannot be JSON or is longer than any header is.
pub fn seal(header: &impl Serialize, payload: &[u8]) -> Result<Vec<u8>, RecordError> {
    let header = serde_json::to_vec(header).map_err(|error| RecordError::Foreign(error.to_string()))?;
    let length = u32::try_from(header.len()).ok().filter(|_| header.len() <= MAX_HEADER);
    let length = length.ok_or_else(|| RecordError::Foreign(format!("its header has {} bytes", header.len())))?;
    let mut bytes = Vec::with_capacity(MAGIC.len() + LENGTH + header.len() + payload.len() + SEAL);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(payload);
    let seal = Sha256::digest(&bytes);
    bytes.extend_from_slice(&seal);
    Ok(bytes)
}

/// Header and payload of sealed bytes.
///
/// # Errors
/// [`RecordError::Torn`] when the seal does not hold, [`RecordError::Foreign`] when it does and the header is another one.
pub fn unseal<Header: DeserializeOwned>(bytes: &[u8]) -> Result<(Header, &[u8]), RecordError> {
    let content = bytes.len().checked_sub(SEAL).ok_or(RecordError::Torn("it is too short"))?;
    let (content, seal) = bytes.split_at(content);
    let rest = content.strip_prefix(MAGIC).ok_or(RecordError::Torn("it does not begin like a record"))?;
    if Sha256::digest(content).as_slice() != seal {
        return Err(RecordError::Torn("its checksum is wrong"));
    }
    let (length, rest) = rest.split_first_chunk::<LENGTH>().ok_or(RecordError::Torn("it is too short"))?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_HEADER || length > rest.len() {
        return Err(RecordError::Torn("its header is longer than itself"));
    }
    let (header, payload) = rest.split_at(length);
    let header = serde_json::from_slice(header).map_err(|error| RecordError::Foreign(error.to_string()))?;
    Ok((header, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> GroupRecord {
        let header = GroupHeader {
            wallet: "5x".into(),
            window: 30,
            index: 7,
            checkpoint_window: 0,
            worker: 1,
            reward_sum: 3.5,
            successes: 4,
        };
        GroupRecord { header, file: Bytes::from_static(b"PAR1 and more PAR1") }
    }

    #[test]
    fn a_record_comes_back_and_every_damage_is_seen() {
        let bytes = record().encode().unwrap();
        assert_eq!(GroupRecord::decode(&bytes.clone().into()).unwrap(), record());
        for length in 0..bytes.len() {
            let torn = GroupRecord::decode(&bytes[..length].to_vec().into());
            assert!(matches!(torn, Err(RecordError::Torn(_))), "{length}");
        }
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 4;
            assert!(GroupRecord::decode(&damaged.into()).is_err(), "byte {place}");
        }
    }

    #[test]
    fn a_whole_record_of_another_kind_is_foreign() {
        let bytes = seal(&serde_json::json!({"wallet": "5x"}), b"").unwrap();
        assert!(matches!(GroupRecord::decode(&bytes.into()), Err(RecordError::Foreign(_))));
    }
}
