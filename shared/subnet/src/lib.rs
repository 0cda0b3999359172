//! What miner and validator need of the network: who this host is there, where files are read and written, what a checkpoint
//! prescribes.
//!
//! | room | what belongs there |
//! |---|---|
//! | [`wallet`] | the key |
//! | [`chain`] | blocks, hashes, registration, published buckets; the chain of a network, or a local one |
//! | [`buckets`] | object storage, and whose bucket is where |
//! | [`configured`] | chain and buckets as the settings name them, opened |
//! | [`dataset`] | the network's own tasks |
//! | [`checkpoints`], [`terms`] | which weights and terms a window is mined and judged with |
//! | [`reader`] | the child that runs a checkpoint's template and tokenizer |
#![forbid(unsafe_code)]

pub mod buckets;
pub mod chain;
pub mod checkpoints;
pub mod configured;
pub mod dataset;
pub mod reader;
pub mod terms;
pub mod wallet;
