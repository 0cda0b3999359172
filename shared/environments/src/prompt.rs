//! The canonical prompt: what supervisor and validator must agree on id by id.

use crate::{ChatError, ChatTokenizer, Environment, Task, ThinkingMode};

/// A task and the prompt ids that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The task that the seed chose.
    pub task: Task,
    /// The prompt's token ids; `prompt_length` is their count. Never trimmed.
    pub ids: Vec<u32>,
}

impl Prompt {
    /// The prompt of one group: all its rollouts share one environment seed.
    ///
    /// # Errors
    /// Those of [`ChatTokenizer::prompt_ids`].
    pub fn of_seed(environment: &Environment, chat: &ChatTokenizer, mode: ThinkingMode, seed: u32) -> Result<Self, ChatError> {
        Self::of_task(environment.task(seed), chat, mode)
    }

    /// The prompt of a task that was chosen otherwise, for tools.
    ///
    /// # Errors
    /// Those of [`ChatTokenizer::prompt_ids`].
    pub fn of_task(task: Task, chat: &ChatTokenizer, mode: ThinkingMode) -> Result<Self, ChatError> {
        let ids = chat.prompt_ids(&task.user_message, mode)?;
        Ok(Self { task, ids })
    }
}
