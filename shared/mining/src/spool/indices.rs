//! Problem indices: which are used, so that none is used twice in a window.
//!
//! A repeated index would not be refused by a validator, as long as only one group of it is in the file: an attempt that was
//! never uploaded leaves no trace outside this host. It is avoided for two other reasons. Every nonce is signed once and no
//! more, so that no two commitments to the same (window, group, rollout) can exist anywhere, whatever a copy of a bucket or a
//! disk brings back. And a problem that brings something down costs one crash and not every one until the window ends.
//!
//! So an index is **reserved before it is used**: the spool holds a bound, durable, above everything that was ever handed out;
//! it is raised in blocks, so that a window costs a handful of writes. A start after a crash goes on at the bound; the gap is
//! normal, validators take indices as they are. Where the disk refuses the bound, indices come from the clock instead, in a
//! range of their own: milliseconds since the window opened, which a later run begins above.

/// Indices that are reserved at once.
const BLOCK: i64 = 64;
/// First index of those that come from the clock; no counter gets here in one window.
const FROM_THE_CLOCK: i64 = 1_000_000;

/// Hands out indices, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indices {
    next: i64,
    bound: i64,
}

impl Indices {
    /// Goes on at a durable bound, 0 in a new window.
    pub fn from_bound(bound: i64) -> Self {
        Self { next: bound, bound }
    }

    /// The bound that must be made durable before `count` more can be taken, if one must.
    pub fn wanted_bound(&self, count: usize) -> Option<i64> {
        let count = i64::try_from(count).unwrap_or(BLOCK);
        (self.next + count > self.bound).then(|| self.next + count.max(BLOCK))
    }

    /// The bound is durable.
    pub fn raise(&mut self, bound: i64) {
        self.bound = self.bound.max(bound);
    }

    /// The bound could not be made durable `milliseconds` after the window opened: indices come from the clock until one can
    /// be. A run takes fewer than one index a millisecond, so one that begins later begins above.
    pub fn take_from_the_clock(&mut self, milliseconds: i64, count: usize) {
        self.next = self.next.max(FROM_THE_CLOCK + milliseconds.max(0));
        self.bound = self.next + i64::try_from(count).unwrap_or(BLOCK);
    }

    /// Every index that was taken so far is below this.
    pub fn above(&self) -> i64 {
        self.next
    }

    /// The next index, if one is reserved.
    pub fn take(&mut self) -> Option<i64> {
        let index = self.next;
        (index < self.bound).then(|| {
            self.next += 1;
            index
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_handed_out_above_the_durable_bound() {
        let mut indices = Indices::from_bound(0);
        assert_eq!(indices.take(), None);
        assert_eq!(indices.wanted_bound(3), Some(64));
        indices.raise(64);
        assert_eq!((0..70).filter_map(|_| indices.take()).collect::<Vec<_>>(), (0..64).collect::<Vec<_>>());
        assert_eq!(indices.wanted_bound(100), Some(164));
        let mut later = Indices::from_bound(64);
        later.raise(128);
        assert_eq!(later.take(), Some(64), "after a crash: above everything that was handed out");
    }

    #[test]
    fn without_a_disk_a_later_run_begins_above() {
        let mut first = Indices::from_bound(64);
        first.take_from_the_clock(1_500, 3);
        let taken: Vec<i64> = (0..9).filter_map(|_| first.take()).collect();
        assert_eq!(taken, [1_001_500, 1_001_501, 1_001_502]);
        let mut second = Indices::from_bound(64);
        second.take_from_the_clock(4_000, 1);
        assert!(second.take() > taken.last().copied());
        first.take_from_the_clock(1_501, 1);
        assert_eq!(first.take(), Some(1_001_503), "nor does a run repeat its own");
    }
}
