//! The network's chain (subtensor) and its beacon, as a miner needs them.
//!
//! | module | what belongs there |
//! |---|---|
//! | [`metadata`] | what a runtime says of itself: pallets, storage, calls, extensions, errors |
//! | [`storage`] | keys, and values decoded by metadata |
//! | `bounds` | how deep, how many and how large what a node sends may be |
//! | [`commitment`] | the registration of `Commitments.CommitmentOf`, read as validators read it |
//! | [`era`], [`extrinsic`] | a signed extrinsic, byte for byte |
//! | [`events`] | what a block's events say of one extrinsic |
//! | [`node`] | one kept connection, and what a miner asks |
//! | [`publish`] | the one call that a miner sends |
//! | [`patience`] | every time limit, retry and pause |
//! | [`beacon`], [`relays`] | rounds of drand, verified |
//!
//! Nothing of a runtime is hard-coded: indices, hashers, types, extension list and error names come from the metadata at hand
//! (chain 7). What is known by name is the name: which pallet, which item, which extension gets which value.
#![forbid(unsafe_code)]

pub mod beacon;
mod bounds;
pub mod commitment;
pub mod era;
pub mod events;
pub mod extrinsic;
pub mod metadata;
pub mod node;
pub mod patience;
pub mod publish;
pub mod relays;
pub mod storage;
pub mod tls;
