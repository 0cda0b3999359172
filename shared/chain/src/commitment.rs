//! `Commitments.CommitmentOf`: what a hotkey has published, read exactly as validators read it (chain 4).

use scale_value::{Value, ValueDef};

use crate::metadata::Metadata;
use crate::storage::{Decoded, StorageError, bytes, field, number, value};

/// Characters of a bucket commitment.
pub const CHARACTERS: usize = 128;

/// One value of `Commitments.CommitmentOf`.
#[derive(Clone, PartialEq, Eq)]
pub struct Registration {
    /// Deposit.
    pub deposit: u64,
    /// Block of the last write.
    pub block: u64,
    /// The text that validators take for bucket credentials: exactly 128 characters. `None` where they see no commitment.
    pub text: Option<String>,
}

/// The text holds a read secret: public, but kept out of logs all the same.
impl std::fmt::Debug for Registration {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text.as_ref().map(|_| "(hidden)");
        formatter
            .debug_struct("Registration")
            .field("deposit", &self.deposit)
            .field("block", &self.block)
            .field("text", &text)
            .finish()
    }
}

impl Registration {
    /// Reads one value. Each is decoded by itself, so that an undecodable one spoils no other.
    ///
    /// # Errors
    /// When the bytes are no such value by the metadata at hand: validators see no commitment then.
    pub fn decode(metadata: &Metadata, encoded: &[u8]) -> Result<Self, StorageError> {
        let (pallet, item) = ("Commitments", "CommitmentOf");
        let registration = value(metadata, pallet, item, encoded)?;
        let absent =
            |part: &str| StorageError::Value { what: format!("{pallet}.{item}"), reason: format!("it has no usable {part}") };
        let whole = |name: &'static str| field(&registration, name).and_then(number).ok_or_else(|| absent(name));
        let info = field(&registration, "info").ok_or_else(|| absent("info"))?;
        let fields = field(info, "fields").ok_or_else(|| absent("fields"))?;
        Ok(Self { deposit: whole("deposit")?, block: whole("block")?, text: first_field(fields).and_then(readable) })
    }
}

/// Only the first field counts. The vector may be wrapped (`BoundedVec`).
fn first_field(fields: &Decoded) -> Option<&Decoded> {
    match &fields.value {
        ValueDef::Composite(composite) => first_field(composite.values().next()?),
        ValueDef::Variant(_) => Some(fields),
        _ => None,
    }
}

fn readable(data: &Decoded) -> Option<String> {
    let ValueDef::Variant(variant) = &data.value else { return None };
    // Raw and hash variants have one field of bytes; time-locked ones have two and cannot be read.
    let mut parts = variant.values.values();
    let text = String::from_utf8(bytes(parts.next().filter(|_| parts.len() == 0)?)?).ok()?;
    (text.chars().count() == CHARACTERS).then_some(text)
}

/// The `info` argument of `set_commitment`: one field, whose variant is chosen by **byte** length. What the runtime has no
/// variant for is refused where it is encoded.
#[must_use]
pub fn info(text: &[u8]) -> Value {
    let data = Value::unnamed_variant(format!("Raw{}", text.len()), [Value::from_bytes(text)]);
    Value::named_composite([("fields", Value::unnamed_composite([data]))])
}
