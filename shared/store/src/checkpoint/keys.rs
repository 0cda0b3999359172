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

/// Checkpoints that were ready before `window`, best first. Of all markers whose ready window is strictly before it, the
/// greatest `(ready, window)` pair is the one to mine with: miner and validator must agree on this, so nothing about it may be
/// "improved". Those behind it are what a reader that cannot use the first still holds.
pub fn ready_before<'a>(keys: impl IntoIterator<Item = &'a str>, window: u64) -> Vec<u64> {
    let markers = keys.into_iter().filter_map(parse_ready_key).filter(|(_, ready)| *ready < window);
    let mut markers: Vec<_> = markers.map(|(checkpoint, ready)| (ready, checkpoint)).collect();
    markers.sort_unstable();
    let mut checkpoints = Vec::new();
    for (_, checkpoint) in markers.into_iter().rev() {
        if !checkpoints.contains(&checkpoint) {
            checkpoints.push(checkpoint);
        }
    }
    checkpoints
}

/// [`ready_before`] over a bucket. Empty: the window has no checkpoint and is skipped.
///
/// # Errors
/// [`CheckpointError::Bucket`] when the listing fails: that is not "no checkpoint".
pub async fn discover(bucket: &Bucket, window: u64) -> Result<Vec<u64>, CheckpointError> {
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
        assert!(at(60).is_empty());
        assert_eq!(at(90), [60]);
        assert_eq!(at(120), [30, 0, 60], "of two markers with one ready window the later checkpoint wins");
        assert_eq!(at(121), [90, 30, 0, 60]);
        let twice = [ready_key(30, 60), ready_key(60, 70), ready_key(30, 90)];
        assert_eq!(ready_before(twice.iter().map(String::as_str), 100), [30, 60], "a checkpoint counts once");
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
