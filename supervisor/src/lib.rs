//! The supervisor: owns settings, wallet, chain, window clock, schedule, signing, spool, upload and status. It links neither
//! libtorch nor CUDA and never runs what a model wrote.
//!
//! | room | what belongs there |
//! |---|---|
//! | [`cli`] | arguments, commands, exit codes |
//! | [`settings`] | one typed configuration from file, environment and `.env` |
//! | [`secrets`] | what is taken out of everything that is written |
//! | [`plan`], [`layout`] | which process gets which GPU, command line and address |
//! | [`chain`] | blocks, hashes, registration, published buckets |
//! | [`buckets`], [`upload`] | object storage |
//! | [`checkpoints`] | which weights and terms a window is mined with |
//! | [`children`] | proof workers and the generation launcher |
//! | [`reader`] | the child that runs a checkpoint's template and tokenizer |
//! | [`gpu`] | what NVML tells of their GPUs |
//! | [`completions`], [`server_load`] | the generation server's client |
//! | [`groups`], [`window`], [`spool`], [`gate`] | from a problem index to a file in the bucket |
//! | [`schedule`] | what is begun and what is given up, so that a window is full and never late |
//! | [`simulate`] | hosts in virtual time under that schedule |
//! | [`journal`] | what happened, for [`explain`] and [`incident`] |
//! | [`doctor`] | what an operator gets wrong |
//! | [`validate`], [`publish`] | the network's other roles, locally |
//! | [`state`], [`shutdown`], `backstop` | what outlives a run, and how one ends |
//! | [`status`], [`view`] | what is going on |
//! | [`failpoint`] | where tests can hold the program |
#![forbid(unsafe_code)]

pub mod buckets;
pub mod chain;
pub mod checkpoints;
pub mod children;
pub mod cli;
pub mod completions;
pub mod dataset;
pub mod doctor;
pub mod events;
pub mod explain;
pub mod gate;
pub mod groups;
pub mod incident;
pub mod layout;
pub mod mine;
pub mod open_files;
pub mod plan;
pub mod publish;
pub mod reader;
pub mod schedule;
pub mod server_load;
pub mod settings;
pub mod simulate;
pub mod spool;
pub mod status;
pub mod upload;
pub mod validate;
pub mod view;
pub mod wallet;
pub mod window;
