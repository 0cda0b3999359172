//! What every environment has: splits, tasks chosen by seed, and scores (grail-environments 2.2, 5, 6.1).

use crate::python_text::{decimal_digit, strip};

/// A split as `env_params` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// `train`
    Train,
    /// `val`: rows that the protocol takes out of the source's train split.
    Val,
    /// `validation`
    Validation,
    /// `test`
    Test,
}

impl Split {
    /// The name, as it begins a task's id.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// One task: what is asked, and what an evaluation compares with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// `<split>_<index>`, with the index as it was asked for.
    pub id: String,
    /// The content of the single user message.
    pub user_message: String,
    /// What the environment needs to score a completion.
    pub gold: Gold,
}

/// What an environment needs to score a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gold {
    /// The `answer` field of a gsm8k row.
    Gsm8k(String),
    /// What a math row is compared with.
    Math {
        /// The row's `answer`: the first `\\boxed{}` of its solution, or nothing.
        answer: String,
        /// Its `solution`.
        solution: String,
    },
}

/// The score of one completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// `total_reward`: the components' weighted sum.
    pub reward: f64,
    /// Whether the answer is right; says nothing about form.
    pub success: bool,
    /// The parts of the reward, in the order in which they are added.
    pub components: Vec<Component>,
}

/// Why a completion has no reward here, though the network gives it one. A miner drops its group, a validator judges the
/// rest of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unjudged {
    /// An answer in mathematics that only a computer algebra system compares.
    #[error("symbolic form not covered")]
    SymbolicForm,
}

/// One part of a reward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Component {
    /// What is rewarded.
    pub name: &'static str,
    /// The value before weighting.
    pub value: f64,
    /// Its weight.
    pub weight: f64,
}

impl Evaluation {
    /// Adds `weight * value` left to right in f64, as both sides must.
    pub(crate) fn weighted(success: bool, components: Vec<Component>) -> Self {
        let reward = components.iter().fold(0.0, |sum, component| sum + component.weight * component.value);
        Self { reward, success, components }
    }
}

/// The row that a seed chooses out of `rows`: the seed as a fraction of 2^32, scaled in f64 and truncated.
///
/// Used by gsm8k and math; 0 for an empty list.
pub fn row_index(seed: u32, rows: usize) -> usize {
    (f64::from(seed) / 4_294_967_296.0 * rows as f64) as usize
}

/// The number in a task id: the integer after the last underscore, 0 where there is none.
///
/// Python's `int` decides what an integer is: white space around it, a sign, digits of any script. A number beyond 2^127
/// also counts as none.
pub fn task_number(task_id: &str) -> i128 {
    let last = strip(task_id.rsplit('_').next().unwrap_or_default());
    let (negative, digits) = match last.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, last.strip_prefix('+').unwrap_or(last)),
    };
    if digits.is_empty() {
        return 0;
    }
    let value = digits
        .chars()
        .try_fold(0_i128, |value, character| value.checked_mul(10)?.checked_add(i128::from(decimal_digit(character)?)));
    value.map_or(0, |value| if negative { -value } else { value })
}
