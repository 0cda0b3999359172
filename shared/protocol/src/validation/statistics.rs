//! Median and quantile as numpy computes them.

/// The middle of ascending values, or the mean of the middle pair; `None` of nothing.
pub(super) fn median(ascending: &[f64]) -> Option<f64> {
    let middle = ascending.len() / 2;
    let upper = *ascending.get(middle)?;
    if ascending.len() % 2 == 1 {
        return Some(upper);
    }
    // Written without subtraction, so that two infinities stay infinite.
    Some((ascending[middle - 1] + upper) / 2.0)
}

/// The linearly interpolated quantile of ascending values; `None` of nothing.
pub(super) fn quantile(ascending: &[f64], share: f64) -> Option<f64> {
    let place = share * (ascending.len().checked_sub(1)? as f64);
    let below = place.floor();
    let fraction = place - below;
    let low = *ascending.get(below as usize)?;
    let high = *ascending.get(below as usize + 1).unwrap_or(&low);
    // numpy interpolates from the nearer end.
    Some(if fraction >= 0.5 { high - (high - low) * (1.0 - fraction) } else { low + (high - low) * fraction })
}

/// The values in ascending order, NaN last.
pub(super) fn ascending(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.collect();
    // Signs of NaN carry no meaning; all of them sort behind infinity.
    sorted.sort_by(|one, other| one.is_nan().cmp(&other.is_nan()).then(one.total_cmp(other)));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let values = ascending([4.0, 1.0, 3.0, 2.0].into_iter());
        assert_eq!(median(&values), Some(2.5));
        assert!((quantile(&values, 0.1).unwrap() - 1.3).abs() < 1e-12);
        assert_eq!((median(&[]), quantile(&[], 0.1), quantile(&[7.0], 0.9)), (None, None, Some(7.0)));
        assert!(ascending([-f64::NAN, 1.0].into_iter())[1].is_nan());
    }
}
