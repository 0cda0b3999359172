//! What a checkpoint prescribes for the windows mined with it.

use grail_environments::{Environment, ThinkingMode};
use grail_link::message::Revision;
use grail_protocol::generation_params::GenerationParams;

use crate::reader::Reader;

/// What a checkpoint prescribes for the windows mined with it.
pub struct Terms {
    /// Weights.
    pub revision: Revision,
    /// `model_name` of the metadata; enters the binding.
    pub model_name: String,
    /// Tasks.
    pub environment: Environment,
    /// Template and tokenizer of the checkpoint.
    pub chat: Reader,
    /// Prompt and tags.
    pub mode: ThinkingMode,
    /// Sampling policy.
    pub params: GenerationParams,
    /// The same as published; the validator's checks read it so.
    pub generation_params: serde_json::Value,
    /// Vocabulary of the model: ids a server may be sent, and may answer with.
    pub vocab_size: u32,
    /// Longest sequence of the model.
    pub max_positions: u32,
}
