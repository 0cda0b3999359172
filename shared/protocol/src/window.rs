//! Windows of 30 blocks and the name of a window's file (grail-protocol 1 and 3.5).

use crate::constants::WINDOW_LENGTH;

/// The first block of the window that holds `block`.
#[must_use]
pub fn window_start(block: u64) -> u64 {
    block - block % WINDOW_LENGTH
}

/// The key of a miner's file in its bucket (grail-protocol 3.5).
#[must_use]
pub fn object_key(hotkey: &str, window_start: u64) -> String {
    format!("grail/windows/{hotkey}-window-{window_start}.parquet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_starts_at_a_multiple_of_thirty() {
        assert_eq!([0, 29, 30, 632_121].map(window_start), [0, 0, 30, 632_100]);
        assert_eq!(object_key("5G", 36_000), "grail/windows/5G-window-36000.parquet");
    }
}
