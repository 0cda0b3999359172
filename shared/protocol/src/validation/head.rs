//! A row without its commit: the fields that place, name and sign a rollout (grail-validation 4.2 and 4.5).

use serde_json::Value;

use crate::derivation::challenge_text;
use crate::keys::{KeyScheme, verify};
use crate::row::WindowRow;

/// A borrowed view of one row; a field that is absent, null or of another kind is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowHead<'a> {
    /// First block of the window.
    pub window_start: Option<i64>,
    /// Hash of that block, with `0x`.
    pub block_hash: Option<&'a str>,
    /// Unique in the file.
    pub nonce: Option<i64>,
    /// Problem index.
    pub rollout_group: Option<i64>,
    /// Window of the checkpoint.
    pub checkpoint_window: Option<i64>,
    /// Text under the row signature.
    pub challenge: Option<&'a str>,
    /// Address that signed it.
    pub hotkey: Option<&'a str>,
    /// The row signature, hex.
    pub signature: Option<&'a str>,
}

impl<'a> From<&'a WindowRow> for RowHead<'a> {
    fn from(row: &'a WindowRow) -> Self {
        Self {
            window_start: Some(row.window_start),
            block_hash: Some(&row.block_hash),
            nonce: Some(row.nonce),
            rollout_group: Some(row.rollout_group),
            checkpoint_window: Some(row.checkpoint_window),
            challenge: Some(&row.challenge),
            hotkey: Some(&row.hotkey),
            signature: Some(&row.signature),
        }
    }
}

impl<'a> RowHead<'a> {
    /// The view of a row as JSON.
    #[must_use]
    pub fn from_value(row: &'a Value) -> Self {
        let integer = |key: &str| row.get(key).and_then(Value::as_i64);
        let text = |key: &str| row.get(key).and_then(Value::as_str);
        Self {
            window_start: integer("window_start"),
            block_hash: text("block_hash"),
            nonce: integer("nonce"),
            rollout_group: integer("rollout_group"),
            checkpoint_window: integer("checkpoint_window"),
            challenge: text("challenge"),
            hotkey: text("hotkey"),
            signature: text("signature"),
        }
    }
}

/// What a row's head must agree with.
#[derive(Clone, Copy, Debug)]
pub struct HeadContext<'a> {
    /// Scheme of row signatures; the network verifies sr25519.
    pub scheme: KeyScheme,
    /// The miner under validation.
    pub hotkey: &'a str,
    /// First block of the target window.
    pub window_start: i64,
    /// Hash of that block, with `0x`.
    pub block_hash: &'a str,
    /// Window of the loaded checkpoint, if known.
    pub checkpoint_window: Option<i64>,
}

/// Why a row's head rejects its miner; a hard failure without a reason text in the reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFailure {
    /// Made with another checkpoint.
    #[error("The row was made with the checkpoint of window {found:?}, but the loaded one is of window {expected}.")]
    CheckpointWindow {
        /// Window in the row.
        found: Option<i64>,
        /// Window of the loaded checkpoint.
        expected: i64,
    },
    /// Another window.
    #[error("The row is of window {found:?}, not {expected}.")]
    Window {
        /// Window in the row.
        found: Option<i64>,
        /// Target window.
        expected: i64,
    },
    /// Another block hash.
    #[error("The row's block_hash is not the hash of the window's first block.")]
    BlockHash,
    /// No nonce.
    #[error("The row has no integer nonce.")]
    Nonce,
    /// The signature does not hold.
    #[error("The row signature does not hold for its challenge and hotkey.")]
    Signature,
    /// The signature holds, but over another text or by another key than this row's.
    #[error("The row signature is by {hotkey} over {challenge}, not by the miner over this row's block hash and nonce.")]
    Foreign {
        /// Address in the row.
        hotkey: String,
        /// Challenge in the row.
        challenge: String,
    },
    /// No group.
    #[error("The row has no integer rollout_group.")]
    Group,
}

impl HeadFailure {
    /// Whether it counts as an invalid signature.
    #[must_use]
    pub fn is_signature(&self) -> bool {
        matches!(self, Self::Signature | Self::Foreign { .. })
    }
}

/// Whether a row signature holds for the texts supplied, and nothing more, as the reference checks it (grail-protocol 3.4):
/// three non-empty texts, and the signature of `hotkey` over `challenge`.
#[must_use]
pub fn verify_challenge(scheme: KeyScheme, hotkey: &str, challenge: &str, signature: &str) -> bool {
    !hotkey.is_empty()
        && !challenge.is_empty()
        && !signature.is_empty()
        && verify(scheme, hotkey, challenge.as_bytes(), signature)
}

/// Checks a row's head and gives its group. Beyond the reference, the signed text must be this row's and the signer the
/// miner: no honest row differs, and a row that does must not leave our own gate.
///
/// # Errors
/// [`HeadFailure`] with the first rule that is broken.
pub fn check_head(context: &HeadContext<'_>, row: &RowHead<'_>) -> Result<i64, HeadFailure> {
    if let Some(expected) = context.checkpoint_window
        && row.checkpoint_window != Some(expected)
    {
        return Err(HeadFailure::CheckpointWindow { found: row.checkpoint_window, expected });
    }
    if row.window_start != Some(context.window_start) {
        return Err(HeadFailure::Window { found: row.window_start, expected: context.window_start });
    }
    if row.block_hash != Some(context.block_hash) {
        return Err(HeadFailure::BlockHash);
    }
    let nonce = row.nonce.ok_or(HeadFailure::Nonce)?;
    let (Some(hotkey), Some(challenge), Some(signature)) = (row.hotkey, row.challenge, row.signature) else {
        return Err(HeadFailure::Signature);
    };
    if !verify_challenge(context.scheme, hotkey, challenge, signature) {
        return Err(HeadFailure::Signature);
    }
    if hotkey != context.hotkey || challenge != challenge_text(context.block_hash, nonce) {
        let brief = |text: &str| text.chars().take(120).collect();
        return Err(HeadFailure::Foreign { hotkey: brief(hotkey), challenge: brief(challenge) });
    }
    row.rollout_group.ok_or(HeadFailure::Group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Hotkey;

    #[test]
    fn a_signed_head_passes_until_it_is_another_rows() {
        let alice = Hotkey::from_uri("//Alice").unwrap();
        let challenge = challenge_text("0xab", 17);
        let signature = hex::encode(alice.sign(challenge.as_bytes()));
        let context = HeadContext {
            scheme: KeyScheme::Sr25519,
            hotkey: alice.address(),
            window_start: 30,
            block_hash: "0xab",
            checkpoint_window: Some(0),
        };
        let row = RowHead {
            window_start: Some(30),
            block_hash: Some("0xab"),
            nonce: Some(17),
            rollout_group: Some(1),
            checkpoint_window: Some(0),
            challenge: Some(&challenge),
            hotkey: Some(alice.address()),
            signature: Some(&signature),
        };
        assert_eq!(check_head(&context, &row), Ok(1));
        assert_eq!(check_head(&context, &RowHead { rollout_group: None, ..row }), Err(HeadFailure::Group));
        assert!(matches!(check_head(&context, &RowHead { nonce: Some(18), ..row }), Err(HeadFailure::Foreign { .. })));
        assert_eq!(check_head(&context, &RowHead { challenge: Some("|0xab|18"), ..row }), Err(HeadFailure::Signature));
        assert!(matches!(
            check_head(&context, &RowHead { checkpoint_window: None, ..row }),
            Err(HeadFailure::CheckpointWindow { .. })
        ));
    }
}
