//! The command line of the supervisor, and the tools that may look into everything. It links neither libtorch nor CUDA and never
//! runs what a model wrote.
//!
//! | room | what belongs there |
//! |---|---|
//! | [`cli`] | arguments, commands, exit codes |
//! | [`layout`] | which process gets which GPU, command line and address, in words |
//! | [`doctor`] | what an operator gets wrong |
//! | [`simulate`] | hosts in virtual time under the miner's schedule |
//! | [`explain`], [`incident`] | what happened |
//! | [`publish`] | the trainer's role, locally |
//! | [`view`] | what is going on in the miner, for a person |
//! | [`progress`] | how far any other command is, for a person |
#![forbid(unsafe_code)]

pub mod cli;
pub mod doctor;
pub mod explain;
pub mod incident;
pub mod layout;
pub mod progress;
pub mod publish;
pub mod simulate;
pub mod view;
