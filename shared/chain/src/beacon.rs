//! drand's quicknet (chain 10): rounds are verified, because a relay may lie.

use drand_verify::{G2PubkeyRfc, Pubkey, derive_randomness};
use grail_protocol::derivation::{DRAND_GENESIS_SECONDS, DRAND_PERIOD_SECONDS};
use serde::Deserialize;

/// Which chain of drand, in paths of relays.
pub const CHAIN_HASH: &str = "52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971";
/// The chain's public key: a compressed point of G2.
const PUBLIC_KEY: &str = "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d1064510d1fec758\
                          c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a";
/// Hex digits of a signature: a compressed point of G1.
const SIGNATURE_DIGITS: usize = 96;
/// Rounds that an answer to "latest" may differ from the clock: two minutes, as a chain's head may.
pub const ROUND_TOLERANCE: u64 = 40;

/// A round as a relay serves it. Its randomness is not believed but computed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Round {
    /// Number.
    pub round: u64,
    /// 64 hex digits.
    pub randomness: String,
    /// 96 hex digits.
    pub signature: String,
}

/// Why a round is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoundError {
    /// Not 96 hex digits.
    #[error("the signature of round {round} has {digits} characters; it must be {SIGNATURE_DIGITS} hex digits")]
    Form {
        /// The round.
        round: u64,
        /// Characters of what was served.
        digits: usize,
    },
    /// Not a signature of drand's over this round.
    #[error("the signature of round {0} is not drand's")]
    Signature(u64),
    /// The served randomness is not the hash of the signature.
    #[error("the randomness of round {0} does not belong to its signature")]
    Randomness(u64),
    /// A real round, but not of now.
    #[error("round {round} was served where round {expected} is due; the relay lags, or this machine's clock is wrong")]
    Time {
        /// The round.
        round: u64,
        /// By the clock.
        expected: u64,
    },
}

/// The newest round at a time in Unix seconds; 1 before the first.
#[must_use]
pub fn round_at(unix_seconds: f64) -> u64 {
    let since = (unix_seconds - DRAND_GENESIS_SECONDS as f64).max(0.0);
    (since / DRAND_PERIOD_SECONDS as f64).floor() as u64 + 1
}

impl Round {
    /// Checks signature and randomness, and gives the randomness as 64 lower-case hex digits.
    ///
    /// # Errors
    /// When either is not what drand made for this round.
    pub fn verified(&self) -> Result<String, RoundError> {
        let form = || RoundError::Form { round: self.round, digits: self.signature.len() };
        let mut signature = [0; SIGNATURE_DIGITS / 2];
        hex::decode_to_slice(&self.signature, &mut signature).map_err(|_| form())?;
        if !public_key().is_some_and(|key| key.verify(self.round, b"", &signature).unwrap_or(false)) {
            return Err(RoundError::Signature(self.round));
        }
        let randomness = hex::encode(derive_randomness(&signature));
        if randomness.eq_ignore_ascii_case(&self.randomness) { Ok(randomness) } else { Err(RoundError::Randomness(self.round)) }
    }

    /// As [`Round::verified`], for an answer to "latest" at a time in Unix seconds.
    ///
    /// # Errors
    /// Also when it is a round of another time.
    pub fn verified_at(&self, unix_seconds: f64) -> Result<String, RoundError> {
        let expected = round_at(unix_seconds);
        if self.round.abs_diff(expected) > ROUND_TOLERANCE {
            return Err(RoundError::Time { round: self.round, expected });
        }
        self.verified()
    }
}

fn public_key() -> Option<G2PubkeyRfc> {
    let mut bytes = [0; 96];
    hex::decode_to_slice(PUBLIC_KEY, &mut bytes).ok()?;
    G2PubkeyRfc::from_fixed(bytes).ok()
}
