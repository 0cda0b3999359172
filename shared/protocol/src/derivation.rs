//! What is derived from block hashes, hotkeys and tokens (grail-protocol 4).

use sha2::{Digest, Sha256};

use crate::constants::ROLLOUTS_PER_PROBLEM;

/// Unix second of round 1 of drand's quicknet (grail-protocol 4.1).
pub const DRAND_GENESIS_SECONDS: i64 = 1_692_803_367;
/// Seconds between two rounds of drand's quicknet (grail-protocol 4.1).
pub const DRAND_PERIOD_SECONDS: i64 = 3;

/// The randomness a miner works with (grail-protocol 4.1): 64 hex digits over the hash of block `window_start` (with its
/// `0x`) and the beacon's hex; without a beacon the block hash text itself, **with** `0x`, which must be stripped before it
/// goes into `beacon.randomness` ([`crate::hexadecimal::without_prefix`]).
#[must_use]
pub fn miner_randomness(block_hash: &str, drand_randomness: Option<&str>) -> String {
    drand_randomness.map_or_else(|| block_hash.to_owned(), |drand| combined(block_hash, drand))
}

/// The randomness a validator opens positions and samples groups with (grail-protocol 4.1): 64 hex digits over the hash of
/// block `window_start + 30` and, if there is one, the beacon's hex.
#[must_use]
pub fn validator_randomness(next_window_hash: &str, drand_randomness: Option<&str>) -> String {
    combined(next_window_hash, drand_randomness.unwrap_or_default())
}

fn combined(block_hash: &str, drand: &str) -> String {
    hex::encode(Sha256::new().chain_update(block_hash).chain_update(drand).finalize())
}

/// The environment seed of one problem (grail-protocol 4.2): the first four bytes, big-endian, of the SHA-256 of
/// `seed|<hotkey>:<window hash with 0x>:<problem index>`. All 16 rollouts of the group share it.
#[must_use]
pub fn environment_seed(hotkey: &str, window_hash: &str, problem_index: i64) -> u32 {
    let digest = Sha256::digest(format!("seed|{hotkey}:{window_hash}:{problem_index}"));
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// The nonce of one rollout, `group * 16 + index` (grail-protocol 3.5); `None` if it does not fit 64 bits.
#[must_use]
pub fn nonce(rollout_group: i64, rollout_index: u32) -> Option<i64> {
    rollout_group.checked_mul(ROLLOUTS_PER_PROBLEM as i64)?.checked_add(i64::from(rollout_index))
}

/// The text a rollout's row signature is made over, `|<block hash>|<nonce>` (grail-protocol 3.4); the seed in front is empty.
#[must_use]
pub fn challenge_text(block_hash: &str, nonce: i64) -> String {
    format!("|{block_hash}|{nonce}")
}

/// SHA-256 over the tokens as big-endian 32-bit words; larger and negative ids wrap (grail-protocol 3.2).
#[must_use]
pub fn hash_tokens<T: Copy + Into<i64>>(tokens: &[T]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let mut words = [0_u8; 1024];
    for chunk in tokens.chunks(words.len() / 4) {
        for (word, token) in words.chunks_exact_mut(4).zip(chunk) {
            // The low 32 bits, whatever the sign.
            word.copy_from_slice(&((*token).into() as u32).to_be_bytes());
        }
        hasher.update(&words[..chunk.len() * 4]);
    }
    hasher.finalize().into()
}

/// The digest by which equal completions are recognised, 64 hex digits (grail-protocol 4.3): SHA-256 of the compact JSON
/// list of `tokens[prompt_length:]` with Python's meaning of negative and missing starts. No tokens at all give `None`.
#[must_use]
pub fn completion_digest<T: Copy + Into<i64>>(tokens: &[T], prompt_length: Option<i64>) -> Option<String> {
    if tokens.is_empty() {
        return None;
    }
    let start = prompt_length.unwrap_or(0);
    let distance = usize::try_from(start.unsigned_abs()).unwrap_or(usize::MAX);
    let start = if start < 0 { tokens.len().saturating_sub(distance) } else { distance.min(tokens.len()) };
    let items: Vec<String> = tokens[start..].iter().map(|token| (*token).into().to_string()).collect();
    Some(hex::encode(Sha256::digest(format!("[{}]", items.join(",")))))
}

/// The quicknet round of a Unix second; 0 or less before the first one (grail-protocol 4.1).
#[must_use]
pub fn drand_round(unix_seconds: i64) -> i64 {
    unix_seconds.saturating_sub(DRAND_GENESIS_SECONDS).div_euclid(DRAND_PERIOD_SECONDS) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_wrap_to_32_bits() {
        assert_eq!(hash_tokens(&[-1_i64]), hash_tokens(&[u32::MAX]));
        assert_eq!(hash_tokens(&[7_i64 + (1 << 32)]), hash_tokens(&[7_i32]));
        let many: Vec<u32> = (0..1000).collect();
        let bytes: Vec<u8> = many.iter().flat_map(|token| token.to_be_bytes()).collect();
        assert_eq!(hash_tokens(&many), <[u8; 32]>::from(Sha256::digest(bytes)));
    }

    #[test]
    fn a_nonce_that_does_not_fit_is_none() {
        assert_eq!(nonce(3, 2), Some(50));
        assert_eq!(nonce(i64::MAX, 0), None);
    }

    #[test]
    fn rounds_floor_before_the_genesis() {
        assert_eq!((drand_round(DRAND_GENESIS_SECONDS), drand_round(DRAND_GENESIS_SECONDS - 1)), (1, 0));
    }
}
