//! Sketches of hidden states: coefficients, buckets, the sixteen largest activations, comparison (grail-protocol 2.3 to 2.7).

use half::{bf16, f16};

use crate::constants::{PRIME_Q, PROOF_TOPK};
use crate::hexadecimal::{HexError, randomness_bytes};
use crate::prf::{SKETCH_LABEL, prf_array};

/// Tolerance of a comparison at position 0.
pub const TOLERANCE_BASE: f64 = 6000.0;
/// Growth of the tolerance with the square root of the position.
pub const TOLERANCE_GROWTH: f64 = 5.0;

/// Largest bucket of either sign.
pub const MAX_BUCKET: i32 = 7;

/// `|x| >= 2^(1.25 n) - 1` for n = 1..7, as the smallest `f32` that satisfies it; a table needs no logarithm and so no
/// agreement between mathematics libraries (grail-protocol 2.5).
const BUCKET_THRESHOLDS: [u32; 7] = [0x3fb0_6fe1, 0x4095_04f4, 0x4147_44fd, 0x41f8_0000, 0x4296_37f1, 0x4334_04f4, 0x43d6_c4fd];

const MAGNITUDE_BITS: u32 = 0x7fff_ffff;
const INFINITY_BITS: u32 = 0x7f80_0000;

/// The sixteen coefficients of one randomness, each in -127..=127 (grail-protocol 2.3).
pub type Coefficients = [i8; PROOF_TOPK];

/// A hidden vector too short for a sketch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A hidden vector has {size} activations, but a sketch takes {PROOF_TOPK}; the model is too small for proofs.")]
pub struct HiddenTooSmall {
    /// Activations of the vector.
    pub size: usize,
}

/// An activation in the dtype of the model; ties are ties of this dtype (grail-protocol 2.6).
pub trait Activation: Copy {
    /// The same number as `f32`, exactly.
    fn widen(self) -> f32;
}

impl Activation for f32 {
    fn widen(self) -> f32 {
        self
    }
}

impl Activation for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Activation for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// The coefficients that a miner's beacon randomness (hex) expands to (grail-protocol 2.3).
///
/// # Errors
/// [`HexError`] when the randomness is not hexadecimal; the empty text is legal here.
pub fn coefficients(randomness: &str) -> Result<Coefficients, HexError> {
    let raw: [u8; 2 * PROOF_TOPK] = prf_array(SKETCH_LABEL, &[&randomness_bytes(randomness)?]);
    let mut coefficients = [0; PROOF_TOPK];
    for (coefficient, pair) in coefficients.iter_mut().zip(raw.chunks_exact(2)) {
        // The reference takes the absolute value in 16 bits, where that of -32768 is -32768 itself.
        let word = i16::from_be_bytes([pair[0], pair[1]]).wrapping_abs();
        *coefficient = i8::try_from(i32::from(word).rem_euclid(255) - 127).unwrap_or(0);
    }
    Ok(coefficients)
}

/// The log-magnitude bucket of an activation, -7..=7; NaN is 0, infinities are 7 (grail-protocol 2.5).
#[must_use]
pub fn bucket<A: Activation>(activation: A) -> i32 {
    let value = activation.widen();
    let magnitude = value.to_bits() & MAGNITUDE_BITS;
    if magnitude > INFINITY_BITS {
        return 0;
    }
    let mut reached = 0;
    for threshold in BUCKET_THRESHOLDS {
        reached += i32::from(magnitude >= threshold);
    }
    if value < 0.0 { -reached } else { reached }
}

/// The positions of the sixteen largest activations by magnitude, ascending (grail-protocol 2.6). NaN counts as largest, then
/// infinity; of equal magnitudes at the border the lowest positions are taken.
///
/// # Errors
/// [`HiddenTooSmall`] below sixteen activations.
pub fn largest_activations<A: Activation>(hidden: &[A]) -> Result<[usize; PROOF_TOPK], HiddenTooSmall> {
    if hidden.len() < PROOF_TOPK {
        return Err(HiddenTooSmall { size: hidden.len() });
    }
    // Kept in descending order of rank, equal ranks in order of position.
    let mut best = [(0_u32, usize::MAX); PROOF_TOPK];
    for (position, activation) in hidden.iter().enumerate() {
        let rank = rank(*activation);
        if position >= PROOF_TOPK && rank <= best[PROOF_TOPK - 1].0 {
            continue;
        }
        let filled = position.min(PROOF_TOPK - 1);
        let mut slot = filled;
        while slot > 0 && best[slot - 1].0 < rank {
            best[slot] = best[slot - 1];
            slot -= 1;
        }
        best[slot] = (rank, position);
    }
    let mut positions = best.map(|(_, position)| position);
    positions.sort_unstable();
    Ok(positions)
}

/// Orders magnitudes as integers; every NaN is the same.
fn rank<A: Activation>(activation: A) -> u32 {
    (activation.widen().to_bits() & MAGNITUDE_BITS).min(INFINITY_BITS + 1)
}

/// The sketch of one hidden vector, in `[0, 2^31 - 1)` (grail-protocol 2.6).
///
/// # Errors
/// [`HiddenTooSmall`] below sixteen activations.
pub fn sketch<A: Activation>(hidden: &[A], coefficients: &Coefficients) -> Result<u32, HiddenTooSmall> {
    let positions = largest_activations(hidden)?;
    let dot = positions
        .into_iter()
        .zip(coefficients)
        .map(|(position, coefficient)| bucket(hidden[position]) * i32::from(*coefficient))
        .sum();
    Ok(reduce(dot))
}

/// A signed dot product modulo 2^31 - 1.
#[must_use]
pub fn reduce(dot: i32) -> u32 {
    let modulus = i64::from(PRIME_Q);
    u32::try_from(i64::from(dot).rem_euclid(modulus)).unwrap_or(0)
}

/// The largest distance accepted at an absolute position of the sequence: `trunc(6000 + 5 sqrt(position))`
/// (grail-protocol 2.7).
#[must_use]
pub fn tolerance(position: usize) -> u32 {
    (TOLERANCE_BASE + TOLERANCE_GROWTH * (position as f64).sqrt()) as u32
}

/// The distance of two sketches around the circle of 2^31 - 1; both must be below it (grail-protocol 2.7).
#[must_use]
pub fn distance(one: u32, other: u32) -> u32 {
    let difference = one.abs_diff(other);
    difference.min(PRIME_Q.saturating_sub(difference))
}

/// A claimed sketch as JSON, if it is one: an integer in `[0, 2^31 - 1)`. The reference also takes larger and negative
/// integers, floats and booleans; no honest prover writes them (grail-protocol 2.7).
#[must_use]
pub fn claimed_sketch(commitment: &serde_json::Value) -> Option<u32> {
    commitment.get("sketch")?.as_u64().and_then(|sketch| u32::try_from(sketch).ok()).filter(|sketch| *sketch < PRIME_Q)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive<A: Activation>(hidden: &[A]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..hidden.len()).collect();
        order.sort_by_key(|position| (std::cmp::Reverse(rank(hidden[*position])), *position));
        order.truncate(PROOF_TOPK);
        order.sort_unstable();
        order
    }

    #[test]
    fn buckets_keep_their_sign_and_their_edges() {
        assert_eq!([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 31.0, -31.0, 30.999].map(bucket), [0, 7, -7, 0, 4, -4, 3]);
        assert_eq!(bucket(bf16::from_bits(0x4335)), 6);
    }

    #[test]
    fn sixteen_activations_are_the_least() {
        assert_eq!(largest_activations(&[1.0_f32; 15]), Err(HiddenTooSmall { size: 15 }));
        assert_eq!(largest_activations(&[1.0_f32; 40]).unwrap(), std::array::from_fn(|index| index));
    }

    #[test]
    fn tolerance_and_distance_are_those_of_the_specification() {
        assert_eq!([0, 1, 2, 100, 8192].map(tolerance), [6000, 6005, 6007, 6050, 6452]);
        assert_eq!(distance(PRIME_Q - 1, 1), 2);
    }

    proptest! {
        #[test]
        fn the_choice_equals_a_sort(values in proptest::collection::vec(-4_i8..4, 16..80), special in 0_usize..16) {
            let mut hidden: Vec<bf16> = values.iter().map(|value| bf16::from_f32(f32::from(*value))).collect();
            hidden[special] = if special % 2 == 0 { bf16::NAN } else { bf16::NEG_INFINITY };
            prop_assert_eq!(largest_activations(&hidden).unwrap().to_vec(), naive(&hidden));
        }

        #[test]
        fn the_choice_equals_a_sort_of_any_floats(hidden in proptest::collection::vec(any::<f32>(), 16..80)) {
            prop_assert_eq!(largest_activations(&hidden).unwrap().to_vec(), naive(&hidden));
        }

        #[test]
        fn a_bucket_is_the_truncated_logarithm(value in -1000.0_f32..1000.0) {
            let exact = (f64::from(value).abs() + 1.0).log2() * 0.8;
            prop_assume!((exact - exact.round()).abs() > 1e-6);
            let expected = (exact as i32).min(MAX_BUCKET) * if value < 0.0 { -1 } else { 1 };
            prop_assert_eq!(bucket(value), expected);
        }

        #[test]
        fn distance_is_symmetric_and_at_most_half_the_circle(one in 0..PRIME_Q, other in 0..PRIME_Q) {
            prop_assert_eq!(distance(one, other), distance(other, one));
            prop_assert!(distance(one, other) <= PRIME_Q / 2);
            prop_assert_eq!(distance(one, one), 0);
        }
    }
}
