//! One record as one line of JSON that carries its own checksum:
//!
//! ```text
//!  {"seq":7,"time":1795229641.250,"kind":"group_kept","data":{…},"sum":"0f3a…"}
//!  └────────────── XXH3-64 of this, hex ────────────────────┘
//! ```

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use twox_hash::XxHash3_64;

use super::Event;

/// A file this long is put aside.
pub(super) const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Longest line, in bytes.
pub const MAX_LINE: usize = 64 * 1024;
const SUM: &str = ",\"sum\":\"";
const SUM_DIGITS: usize = 16;
const END: &str = "\"}";

/// One record of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts on over restarts; a gap means that records are missing.
    pub seq: u64,
    /// Unix seconds.
    pub time: f64,
    /// The event's name.
    pub kind: String,
    /// Its fields.
    pub data: Value,
}

/// Why a line is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Cut short or overwritten.
    #[error("the line is torn or damaged")]
    Torn,
    /// Longer than any record.
    #[error("the line has {0} bytes, a record has at most {MAX_LINE}")]
    TooLong(usize),
    /// Whole, but no record.
    #[error("the line is no record: {0}")]
    Foreign(String),
}

impl Entry {
    /// The event, if it is one of kind `E` and has its fields.
    pub fn event<E: Event + DeserializeOwned>(&self) -> Option<E> {
        (self.kind == E::KIND).then(|| E::deserialize(&self.data).ok()).flatten()
    }

    /// The window it belongs to, if to one.
    pub fn window(&self) -> Option<u64> {
        self.data.get("window").and_then(Value::as_u64)
    }
}

/// The line of a record, without its line feed. Data that would make it too long is left out and said to be.
pub fn encode(entry: &Entry) -> String {
    let text = |entry: &Entry| serde_json::to_string(entry).unwrap_or_default();
    let mut line = text(entry);
    if line.len() + SUM.len() + SUM_DIGITS + END.len() > MAX_LINE {
        let data = serde_json::json!({ "window": entry.window(), "left_out_bytes": line.len() });
        line = text(&Entry { data, ..entry.clone() });
    }
    // The closing brace comes after the checksum.
    line.pop();
    let sum = XxHash3_64::oneshot(line.as_bytes());
    line.push_str(&format!("{SUM}{sum:016x}{END}"));
    line
}

/// Reads a line without its line feed; never panics, whatever it is.
///
/// # Errors
/// [`LineError`]
pub fn decode(line: &[u8]) -> Result<Entry, LineError> {
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong(line.len()));
    }
    let body = line.len().checked_sub(SUM.len() + SUM_DIGITS + END.len()).ok_or(LineError::Torn)?;
    let (body, tail) = line.split_at(body);
    let digits = tail.strip_prefix(SUM.as_bytes()).and_then(|tail| tail.strip_suffix(END.as_bytes())).ok_or(LineError::Torn)?;
    if format!("{:016x}", XxHash3_64::oneshot(body)).as_bytes() != digits {
        return Err(LineError::Torn);
    }
    let mut text = body.to_vec();
    text.push(b'}');
    serde_json::from_slice(&text).map_err(|error| LineError::Foreign(error.to_string()))
}
