//! The columns of a window file: one table for writer and reader, so that they cannot drift.

use grail_protocol::row::{Commit, Commitments, ModelReference, Rollout, WindowRow};
use serde_json::Value;

/// The file's schema in the order of the network's own files (grail-miner 7).
pub(super) const SCHEMA: &str = "message schema {
  optional int64 window_start;
  optional int64 block;
  optional int64 nonce;
  optional binary block_hash (STRING);
  optional binary randomness (STRING);
  optional boolean use_drand;
  optional int64 rollout_group;
  optional int32 rollout_index;
  optional int32 total_in_group;
  optional int64 checkpoint_window;
  optional group commit {
    optional group tokens (LIST) { repeated group list { optional int32 element; } }
    optional binary commitments (STRING);
    optional binary proof_version (STRING);
    optional group model { optional binary name (STRING); optional int32 layer_index; }
    optional binary signature (STRING);
    optional binary beacon (STRING);
    optional group rollout {
      optional double total_reward;
      optional double advantage;
      optional boolean success;
      optional group token_logprobs (LIST) { repeated group list { optional float element; } }
      optional int32 prompt_length;
      optional int32 completion_length;
    }
  }
  optional double timestamp;
  optional binary challenge (STRING);
  optional binary hotkey (STRING);
  optional binary signature (STRING);
}";

/// How a leaf's value is taken from a row and put back.
pub(super) struct Access<Get, Put> {
    pub(super) get: fn(&WindowRow) -> Get,
    pub(super) put: fn(&mut WindowRow, Put),
}

/// A leaf's type with its accessors.
pub(super) enum Leaf {
    Int64(Access<i64, i64>),
    Int32(Access<i32, i32>),
    Double(Access<f64, f64>),
    Bool(Access<bool, bool>),
    Text(Text, fn(&mut WindowRow, String)),
    Int32List(List<i32>),
    FloatList(List<f32>),
    /// `commit.commitments`, JSON text of up to 30 kB that has its own fast path.
    Commitments,
    /// `commit.beacon`, JSON text.
    Beacon,
}

/// A borrowing accessor (a lifetime-generic function pointer cannot be an [`Access`]).
pub(super) type Text = fn(&WindowRow) -> &str;

/// Accessors of a list column.
pub(super) struct List<T> {
    pub(super) get: fn(&WindowRow) -> &[T],
    pub(super) put: fn(&mut WindowRow, Vec<T>),
}

/// One column of the file.
pub(super) struct Column {
    /// Dotted path; of a list, the path of the list itself.
    pub(super) path: &'static str,
    pub(super) leaf: Leaf,
}

macro_rules! plain {
    ($path:literal, $kind:ident, $($field:ident).+) => {
        Column { path: $path, leaf: Leaf::$kind(Access { get: |row| row.$($field).+, put: |row, value| row.$($field).+ = value }) }
    };
}

macro_rules! text {
    ($path:literal, $($field:ident).+) => {
        Column { path: $path, leaf: Leaf::Text(|row| &row.$($field).+, |row, value| row.$($field).+ = value) }
    };
}

macro_rules! list {
    ($path:literal, $kind:ident, $($field:ident).+) => {
        Column { path: $path, leaf: Leaf::$kind(List { get: |row| &row.$($field).+, put: |row, value| row.$($field).+ = value }) }
    };
}

/// Every column, in file order.
pub(super) const COLUMNS: [Column; 27] = [
    plain!("window_start", Int64, window_start),
    plain!("block", Int64, block),
    plain!("nonce", Int64, nonce),
    text!("block_hash", block_hash),
    text!("randomness", randomness),
    plain!("use_drand", Bool, use_drand),
    plain!("rollout_group", Int64, rollout_group),
    plain!("rollout_index", Int32, rollout_index),
    plain!("total_in_group", Int32, total_in_group),
    plain!("checkpoint_window", Int64, checkpoint_window),
    list!("commit.tokens", Int32List, commit.tokens),
    Column { path: "commit.commitments", leaf: Leaf::Commitments },
    text!("commit.proof_version", commit.proof_version),
    text!("commit.model.name", commit.model.name),
    plain!("commit.model.layer_index", Int32, commit.model.layer_index),
    text!("commit.signature", commit.signature),
    Column { path: "commit.beacon", leaf: Leaf::Beacon },
    plain!("commit.rollout.total_reward", Double, commit.rollout.total_reward),
    plain!("commit.rollout.advantage", Double, commit.rollout.advantage),
    plain!("commit.rollout.success", Bool, commit.rollout.success),
    list!("commit.rollout.token_logprobs", FloatList, commit.rollout.token_logprobs),
    plain!("commit.rollout.prompt_length", Int32, commit.rollout.prompt_length),
    plain!("commit.rollout.completion_length", Int32, commit.rollout.completion_length),
    plain!("timestamp", Double, timestamp),
    text!("challenge", challenge),
    text!("hotkey", hotkey),
    text!("signature", signature),
];

/// A row to be filled column by column.
pub(super) fn blank_row() -> WindowRow {
    WindowRow {
        window_start: 0,
        block: 0,
        nonce: 0,
        block_hash: String::new(),
        randomness: String::new(),
        use_drand: false,
        rollout_group: 0,
        rollout_index: 0,
        total_in_group: 0,
        checkpoint_window: 0,
        commit: Commit {
            tokens: Vec::new(),
            commitments: Commitments::Sketches(Vec::new()),
            proof_version: String::new(),
            model: ModelReference { name: String::new(), layer_index: 0 },
            signature: String::new(),
            beacon: Value::Null,
            rollout: Rollout {
                total_reward: 0.0,
                advantage: 0.0,
                success: false,
                token_logprobs: Vec::new(),
                prompt_length: 0,
                completion_length: 0,
            },
        },
        timestamp: 0.0,
        challenge: String::new(),
        hotkey: String::new(),
        signature: String::new(),
    }
}
