//! What must hold for a file as a whole before any row is looked at (grail-validation 4.2).

use std::collections::{BTreeMap, HashSet};

use super::head::RowHead;
use crate::constants::ROLLOUTS_PER_PROBLEM;

/// What the file must be of.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The miner.
    pub hotkey: &'a str,
    /// First block of the window.
    pub window_start: i64,
    /// Hash of that block, with `0x`.
    pub block_hash: &'a str,
}

/// The metadata of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileHead<'a> {
    /// Address of the writer.
    pub wallet: Option<&'a str>,
    /// First block of the window.
    pub window_start: Option<i64>,
}

/// The first thing that rejects a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StructureFailure {
    /// The metadata names another miner.
    #[error("The file's wallet is not the miner's hotkey.")]
    Wallet,
    /// The metadata names another window.
    #[error("The file's window_start is not the target window.")]
    Window,
    /// A row without a group.
    #[error("Row {row} has no rollout_group.")]
    NullGroup {
        /// Index of the row.
        row: usize,
    },
    /// A row of another window.
    #[error("The window_start of row {row} is not the target window.")]
    RowWindow {
        /// Index of the row.
        row: usize,
    },
    /// A row with another block hash.
    #[error("The block_hash of row {row} is not the hash of the window's first block.")]
    RowBlockHash {
        /// Index of the row.
        row: usize,
    },
    /// A nonce that an earlier row has; being absent counts as a value.
    #[error("The nonce of row {row} was used before.")]
    DuplicateNonce {
        /// Index of the row.
        row: usize,
    },
    /// A group that is not sixteen rows.
    #[error("Group {group} has {size} rows, not 16.")]
    GroupSize {
        /// The group.
        group: i64,
        /// Its rows.
        size: usize,
    },
}

impl StructureFailure {
    /// The reference's word for it, as in `file:duplicate_nonce`.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Wallet => "wallet_mismatch",
            Self::Window => "window_mismatch",
            Self::NullGroup { .. } => "null_rollout_group",
            Self::RowWindow { .. } => "window_start_mismatch",
            Self::RowBlockHash { .. } => "block_hash_mismatch",
            Self::DuplicateNonce { .. } => "duplicate_nonce",
            Self::GroupSize { .. } => "invalid_group_size",
        }
    }
}

/// Checks a file as a whole. An empty file passes; gaps between groups are fine.
///
/// # Errors
/// [`StructureFailure`] with the first rule that is broken, in the reference's order.
pub fn check_structure<'a>(
    expected: &Expected<'_>,
    file: &FileHead<'_>,
    rows: impl IntoIterator<Item = RowHead<'a>>,
) -> Result<(), StructureFailure> {
    if file.wallet != Some(expected.hotkey) {
        return Err(StructureFailure::Wallet);
    }
    if file.window_start != Some(expected.window_start) {
        return Err(StructureFailure::Window);
    }
    let mut nonces = HashSet::new();
    let mut sizes: BTreeMap<i64, usize> = BTreeMap::new();
    for (row, head) in rows.into_iter().enumerate() {
        let group = head.rollout_group.ok_or(StructureFailure::NullGroup { row })?;
        if head.window_start != Some(expected.window_start) {
            return Err(StructureFailure::RowWindow { row });
        }
        if head.block_hash != Some(expected.block_hash) {
            return Err(StructureFailure::RowBlockHash { row });
        }
        if !nonces.insert(head.nonce) {
            return Err(StructureFailure::DuplicateNonce { row });
        }
        *sizes.entry(group).or_default() += 1;
    }
    match sizes.into_iter().find(|(_, size)| *size != ROLLOUTS_PER_PROBLEM) {
        None => Ok(()),
        Some((group, size)) => Err(StructureFailure::GroupSize { group, size }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_absent_nonce_passes_and_two_do_not() {
        let expected = Expected { hotkey: "5x", window_start: 30, block_hash: "0x" };
        let file = FileHead { wallet: Some("5x"), window_start: Some(30) };
        let row = |nonce| RowHead {
            rollout_group: Some(4),
            window_start: Some(30),
            block_hash: Some("0x"),
            nonce,
            ..RowHead::default()
        };
        let rows = |absent: i64| (0..16).map(move |nonce| row((nonce >= absent).then_some(nonce)));
        assert_eq!(check_structure(&expected, &file, rows(0)), Ok(()));
        assert_eq!(check_structure(&expected, &file, rows(1)), Ok(()));
        assert_eq!(check_structure(&expected, &file, rows(2)), Err(StructureFailure::DuplicateNonce { row: 1 }));
        assert_eq!(check_structure(&expected, &file, rows(0).skip(1)), Err(StructureFailure::GroupSize { group: 4, size: 15 }));
        assert_eq!(check_structure(&expected, &file, []), Ok(()));
    }
}
