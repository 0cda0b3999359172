//! Where a stored tensor holds NaN or infinity, found at memory speed: by bits, eight bytes at a time.

use safetensors::Dtype;

/// The bits of one type in a word of eight bytes: the exponents, one unit of them, and the signs.
struct Lanes {
    exponents: u64,
    unit: u64,
    signs: u64,
    width: usize,
}

const BF16: Lanes = Lanes { exponents: 0x7f80_7f80_7f80_7f80, unit: 0x0080_0080_0080_0080, signs: SIGNS16, width: 2 };
const F16: Lanes = Lanes { exponents: 0x7c00_7c00_7c00_7c00, unit: 0x0400_0400_0400_0400, signs: SIGNS16, width: 2 };
const F32: Lanes = Lanes { exponents: 0x7f80_0000_7f80_0000, unit: 0x0080_0000_0080_0000, signs: SIGNS32, width: 4 };
const SIGNS16: u64 = 0x8000_8000_8000_8000;
const SIGNS32: u64 = 0x8000_0000_8000_0000;

/// Words that are judged together, without a branch in between.
const BLOCK: usize = 256;

impl Lanes {
    /// An exponent of all ones (NaN or infinity) and no other carries into the sign when a unit is added.
    fn carry(&self, word: u64) -> u64 {
        ((word & self.exponents) + self.unit) & self.signs
    }
}

/// Index of the first element that is NaN or infinite. `bytes` holds whole elements, little-endian; a type that is no weight
/// type has no such element.
pub(crate) fn first_non_finite(bytes: &[u8], dtype: Dtype) -> Option<usize> {
    let lanes = match dtype {
        Dtype::BF16 => BF16,
        Dtype::F16 => F16,
        Dtype::F32 => F32,
        _ => return None,
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let suspicious = words.chunks(BLOCK).position(|block| {
        let carried = block.iter().fold(0, |seen, word| seen | lanes.carry(u64::from_le_bytes(*word)));
        carried != 0
    });
    let (start, piece) = match suspicious {
        Some(block) => (block * BLOCK * 8, &bytes[block * BLOCK * 8..]),
        None => (bytes.len() - rest.len(), rest),
    };
    let element = piece.chunks_exact(lanes.width).position(|element| {
        let mut word = [0; 8];
        word[..lanes.width].copy_from_slice(element);
        lanes.carry(u64::from_le_bytes(word)) != 0
    });
    element.map(|element| start / lanes.width + element)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_the_plain_rule_finds(mut words: Vec<u16>, place: usize, pattern: u16) {
            words.resize(words.len() * 7 + 1, 0x1234);
            let place = place % words.len();
            words[place] = pattern;
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            prop_assert_eq!(
                first_non_finite(&bytes, Dtype::BF16),
                words.iter().position(|word| !bf16::from_bits(*word).is_finite())
            );
            prop_assert_eq!(first_non_finite(&bytes, Dtype::F16), words.iter().position(|word| !f16::from_bits(*word).is_finite()));
            let wide = &bytes[..bytes.len() / 4 * 4];
            let plain = wide.as_chunks::<4>().0.iter().position(|element| !f32::from_le_bytes(*element).is_finite());
            prop_assert_eq!(first_non_finite(wide, Dtype::F32), plain);
        }
    }

    #[test]
    fn the_last_elements_count_too() {
        for length in 1..20 {
            let mut values = vec![f32::MAX; length];
            *values.last_mut().unwrap() = f32::INFINITY;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(first_non_finite(&bytes, Dtype::F32), Some(length - 1));
        }
    }
}
