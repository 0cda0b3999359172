//! Whether a claimed reward is close to the recomputed one (grail-validation 4.6).

/// Relative tolerance.
pub const RELATIVE_TOLERANCE: f64 = 0.02;
/// Absolute tolerance.
pub const ABSOLUTE_TOLERANCE: f64 = 1e-6;

/// Python's `math.isclose` with the protocol's tolerances; NaN is close to nothing, an infinity only to itself.
#[must_use]
pub fn is_close(claimed: f64, recomputed: f64) -> bool {
    if claimed == recomputed {
        return true;
    }
    if claimed.is_infinite() || recomputed.is_infinite() {
        return false;
    }
    let scale = claimed.abs().max(recomputed.abs());
    (claimed - recomputed).abs() <= (RELATIVE_TOLERANCE * scale).max(ABSOLUTE_TOLERANCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closeness_is_relative_with_a_floor() {
        assert!(is_close(0.9801, 1.0));
        assert!(!is_close(0.979, 1.0));
        assert!(is_close(0.0, 1e-6));
        assert!(!is_close(f64::NAN, f64::NAN));
        assert!(!is_close(1.0, f64::INFINITY));
    }
}
