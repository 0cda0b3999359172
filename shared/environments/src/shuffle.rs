//! Rows of a source's train split that the protocol sets aside.

/// The seed of every shuffle that chooses them.
pub(crate) const SHUFFLE_SEED: u64 = 42;

/// The rows at `indices` or, without `keep`, all others; in their order.
pub(crate) fn chosen<Row>(rows: Vec<Row>, indices: &[usize], keep: bool) -> Vec<Row> {
    let mut set_aside = vec![false; rows.len()];
    for &index in indices {
        set_aside[index] = true;
    }
    rows.into_iter().zip(set_aside).filter(|(_, aside)| *aside == keep).map(|(row, _)| row).collect()
}
