//! The pseudo-random function of the protocol: SHAKE-256 over a label and parts (grail-protocol 2.1).

use shake::{ExtendableOutput, Shake256, Update, XofReader};

/// Longest output that may be asked for, in bytes.
pub const MAX_OUTPUT_BYTES: usize = 65_536;
/// Label of the sketch coefficients.
pub const SKETCH_LABEL: &[u8] = b"sketch";
/// Label of the opened positions.
pub const OPEN_LABEL: &[u8] = b"open";

const SEPARATOR: &[u8] = b"||";

/// The PRF was asked for more than it gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The PRF gives at most {MAX_OUTPUT_BYTES} bytes, but {asked} were asked for; ask for fewer.")]
pub struct TooLong {
    /// Bytes asked for.
    pub asked: usize,
}

/// The first `length` bytes of SHAKE-256 over `label || "||" || part0 || "||" || part1 …` (grail-protocol 2.1). Without
/// parts the separator after the label is still there. There is no length framing.
///
/// # Errors
/// [`TooLong`] when more than 65,536 bytes are asked for.
pub fn prf(label: &[u8], parts: &[&[u8]], length: usize) -> Result<Vec<u8>, TooLong> {
    if length > MAX_OUTPUT_BYTES {
        return Err(TooLong { asked: length });
    }
    let mut output = vec![0; length];
    reader(label, parts).read(&mut output);
    Ok(output)
}

/// [`prf`] with a length that is known when the program is built, at most 65,536.
#[must_use]
pub fn prf_array<const LENGTH: usize>(label: &[u8], parts: &[&[u8]]) -> [u8; LENGTH] {
    const { assert!(LENGTH <= MAX_OUTPUT_BYTES) }
    let mut output = [0; LENGTH];
    reader(label, parts).read(&mut output);
    output
}

fn reader(label: &[u8], parts: &[&[u8]]) -> impl XofReader {
    let mut hasher = Shake256::default();
    hasher.update(label);
    hasher.update(SEPARATOR);
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            hasher.update(SEPARATOR);
        }
        hasher.update(part);
    }
    hasher.finalize_xof()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_without_parts_keeps_its_separator() {
        let expected = "ae408d9d1a29f6161474bfffdd9650931ea392859e92b83be4b67f640e9f9be6";
        assert_eq!(hex::encode(prf_array::<32>(SKETCH_LABEL, &[])), expected);
    }

    #[test]
    fn more_than_the_limit_is_refused() {
        assert_eq!(prf(b"", &[], MAX_OUTPUT_BYTES).unwrap().len(), MAX_OUTPUT_BYTES);
        assert_eq!(prf(b"", &[], MAX_OUTPUT_BYTES + 1), Err(TooLong { asked: MAX_OUTPUT_BYTES + 1 }));
    }
}
