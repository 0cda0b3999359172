//! What a task is, how a seed picks it, the exact prompt ids, how a completion is read and what it earns.
//!
//! Miner and validator run this same code: the validator renders the prompt again and compares it id by id, then scores
//! the completion again. Everything that decides a byte or a bit follows Python's semantics where they differ from
//! Rust's (white space, decimal digits, lower case, order of sums). Nothing here is asynchronous or global: the thinking
//! mode, the data set and the tokenizer are values. Rules: grail-environments, sections 1 to 6.
//!
//! An environment is one variant of [`EnvironmentId`] and one room of rules ([`gsm8k`], [`math`]); the parts that several
//! environments share are [`completion`] (the tags), [`dataset`] (the raw rows) and [`python_text`].

#![forbid(unsafe_code)]

pub mod chat;
pub mod completion;
pub mod dataset;
mod environment;
mod error;
pub mod gsm8k;
mod jinja;
pub mod math;
mod prompt;
pub mod python_text;
mod shuffle;
mod task;
mod thinking;

pub use chat::{ChatError, ChatTokenizer, Message};
pub use dataset::{Dataset, DatasetError};
pub use environment::{Environment, EnvironmentId};
pub use error::EnvironmentError;
pub use prompt::Prompt;
pub use task::{Component, Evaluation, Gold, Split, Task, Unjudged, row_index, task_number};
pub use thinking::{Tags, ThinkingMode, UnknownThinkingMode};
