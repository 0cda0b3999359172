//! What can go wrong with a node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What goes wrong at present. Nothing, by default.
#[derive(Debug, Default)]
pub struct Faults {
    /// The clock makes no blocks.
    pub frozen: bool,
    /// Number in the header of the newest finalised block.
    pub finalized_number: Option<u64>,
    /// Nobody gets a connection.
    pub down: bool,
    /// Methods that are never answered.
    pub unanswered: BTreeSet<&'static str>,
    /// Methods that this node does not have.
    pub unknown: BTreeSet<&'static str>,
    /// Methods that are answered late.
    pub late: BTreeMap<&'static str, Duration>,
    /// Subscribers are told no heads.
    pub silent_heads: bool,
    /// A submitted transaction gets into the pool, and the connection ends before anybody is told.
    pub cut_after_submission: bool,
    /// Watchers are told that their transaction was dropped, as soon as it is in the pool; it stays there.
    pub tells_dropped: bool,
    /// Another block 0 is told.
    pub genesis: Option<[u8; 32]>,
    /// Metadata that is told instead of the runtime's.
    pub metadata: Option<Vec<u8>>,
    /// The value that every key has.
    pub value: Option<Vec<u8>>,
    /// The next answer is not JSON.
    pub garbage: bool,
    /// Requests by method; filled by the node.
    pub requests: BTreeMap<String, usize>,
}
