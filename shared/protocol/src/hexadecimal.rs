//! The lenient reading of randomness texts that every implementation must share (grail-protocol 2.2).

/// Longest randomness text that is read, in bytes; what the chain and the beacon give is 66 characters.
pub const MAX_TEXT_BYTES: usize = 65_536;

/// A text is not hexadecimal in the protocol's sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HexError {
    /// A character that is no hexadecimal digit, or half a byte before white space.
    #[error("Randomness is not hexadecimal at character {position} of its normalised text; give hex digits only.")]
    Digit {
        /// Offset in the text after normalisation.
        position: usize,
    },
    /// Nothing is left after normalisation where something is needed.
    #[error("Randomness is empty; give at least one hex digit.")]
    Empty,
    /// Far more text than any randomness has.
    #[error("Randomness has {length} characters, more than the {MAX_TEXT_BYTES} that are read; give a hash.")]
    TooLong {
        /// Length of the text in bytes.
        length: usize,
    },
}

/// The bytes of a randomness text (grail-protocol 2.2): white space around it is trimmed, every `0x` and then every `0X`
/// is deleted, an odd length is mended with one leading zero, white space between byte pairs is skipped. The empty text
/// gives no bytes.
///
/// # Errors
/// [`HexError::Digit`] for anything else than hex digits, [`HexError::TooLong`] for an absurd length.
pub fn randomness_bytes(text: &str) -> Result<Vec<u8>, HexError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(HexError::TooLong { length: text.len() });
    }
    let mut digits = text.trim_matches(is_space).replace("0x", "").replace("0X", "");
    if !digits.chars().count().is_multiple_of(2) {
        digits.insert(0, '0');
    }
    decode_pairs(digits.as_bytes())
}

/// [`randomness_bytes`] where no bytes at all are an error (the opened positions, grail-protocol 2.2).
///
/// # Errors
/// As [`randomness_bytes`], and [`HexError::Empty`].
pub fn nonempty_randomness_bytes(text: &str) -> Result<Vec<u8>, HexError> {
    let bytes = randomness_bytes(text)?;
    if bytes.is_empty() { Err(HexError::Empty) } else { Ok(bytes) }
}

/// The text without one leading `0x`, as `beacon.randomness` must be written (grail-validation 5).
#[must_use]
pub fn without_prefix(text: &str) -> &str {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text)
}

fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn decode_pairs(digits: &[u8]) -> Result<Vec<u8>, HexError> {
    let mut bytes = Vec::with_capacity(digits.len() / 2);
    let mut position = 0;
    while position < digits.len() {
        if is_space(char::from(digits[position])) {
            position += 1;
            continue;
        }
        let high = digit(digits, position)?;
        let low = digit(digits, position + 1)?;
        bytes.push(high << 4 | low);
        position += 2;
    }
    Ok(bytes)
}

fn digit(digits: &[u8], position: usize) -> Result<u8, HexError> {
    let value = digits.get(position).and_then(|byte| char::from(*byte).to_digit(16)).and_then(|value| u8::try_from(value).ok());
    value.ok_or(HexError::Digit { position })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_the_reference_does() {
        assert_eq!(randomness_bytes(" 0xABc \n").unwrap(), [0x0a, 0xbc]);
        assert_eq!(randomness_bytes("46  0f").unwrap(), [0x46, 0x0f]);
        assert_eq!(randomness_bytes("").unwrap(), [0_u8; 0]);
        assert_eq!(nonempty_randomness_bytes("0x"), Err(HexError::Empty));
        assert!(randomness_bytes("12 3").is_err());
        assert!(randomness_bytes("0xg1").is_err());
        assert!(randomness_bytes("é1").is_err());
    }
}
