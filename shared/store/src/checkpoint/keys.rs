//! Object keys and which checkpoint a window uses (grail-checkpoints 1 and 3).

use super::CheckpointError;
use crate::bucket::Bucket;

/// Everything about checkpoints is below this prefix.
pub const PREFIX: &str = "grail/checkpoints/";

/// Key of `name` in the FULL directory of `window`.
pub fn full_key(window: u64, name: &str) -> String {
    format!("{PREFIX}checkpoint-{window}/FULL/{name}")
}

/// Key of `name` in the DELTA directory of `window`.
pub fn delta_key(window: u64, name: &str) -> String {
    format!("{PREFIX}checkpoint-{window}/DELTA/{name}")
}

/// Key of the empty object that says `window` was completely uploaded in window `ready`.
pub fn ready_key(window: u64, ready: u64) -> String {
    format!("{PREFIX}checkpoint-{window}/READY-{ready}")
}

/// Reads a READY marker's key as `(window, ready)`; anything else is `None`.
pub fn parse_ready_key(key: &str) -> Option<(u64, u64)> {
    let (window, marker) = key.strip_prefix(PREFIX)?.strip_prefix("checkpoint-")?.split_once('/')?;
    Some((plain_number(window)?, plain_number(marker.strip_prefix("READY-")?)?))
}

/// Digits only: `parse` alone would also take a sign.
pub(super) fn plain_number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The checkpoint to mine `window` with: of all markers whose ready window is strictly before it, that of the greatest
/// `(ready, window)` pair. Miner and validator must agree on this, so nothing about it may be "improved": a validator that can use
/// this one rejects every row of another.
pub fn ready_before<'a>(keys: impl IntoIterator<Item = &'a str>, window: u64) -> Option<u64> {
    let markers = keys.into_iter().filter_map(parse_ready_key).filter(|(_, ready)| *ready < window);
    markers.max_by_key(|(checkpoint, ready)| (*ready, *checkpoint)).map(|(checkpoint, _)| checkpoint)
}

/// [`ready_before`] over a bucket. `None`: the window has no checkpoint.
///
/// # Errors
/// [`CheckpointError::Bucket`] when the listing fails: that is not "no checkpoint".
pub async fn discover(bucket: &Bucket, window: u64) -> Result<Option<u64>, CheckpointError> {
    let keys = bucket.list(PREFIX).await?;
    Ok(ready_before(keys.iter().map(String::as_str), window))
}

/// Whether `window` has any READY marker.
pub(super) async fn is_ready(bucket: &Bucket, window: u64) -> Result<bool, CheckpointError> {
    let keys = bucket.list(&format!("{PREFIX}checkpoint-{window}/READY-")).await?;
    Ok(keys.iter().any(|key| parse_ready_key(key).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_ready_window_wins_and_must_be_earlier() {
        let keys = [ready_key(30, 90), ready_key(60, 60), ready_key(0, 90), ready_key(90, 120)];
        let at = |window| ready_before(keys.iter().map(String::as_str), window);
        assert_eq!((at(60), at(90)), (None, Some(60)));
        assert_eq!(at(120), Some(30), "of two markers with one ready window the later checkpoint wins");
        assert_eq!(at(121), Some(90));
    }

    #[test]
    fn only_exact_marker_keys_count() {
        for key in [
            "grail/checkpoints/checkpoint-30/READY-",
            "grail/checkpoints/checkpoint-30/READY-60/x",
            "grail/checkpoints/checkpoint-+30/READY-60",
            "grail/checkpoints/checkpoint-30/FULL/READY-60",
            "x/grail/checkpoints/checkpoint-30/READY-60",
            "grail/checkpoints/checkpoint-30/READY-99999999999999999999",
        ] {
            assert_eq!(parse_ready_key(key), None, "{key}");
        }
        assert_eq!(parse_ready_key(&ready_key(30, 60)), Some((30, 60)));
    }
}
