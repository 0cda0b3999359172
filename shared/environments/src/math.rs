//! Competition mathematics: the rows, the gold answer, reading an answer and its reward (grail-environments 2.3, 6.2).

mod ball;
mod boxed;
mod equivalence;
mod expression;
mod functions;
mod names;
mod number;
mod polynomial;
mod rows;
mod syntax;
#[cfg(test)]
mod tests;
mod tokens;
mod value;

pub use boxed::{first_boxed, last_boxed};
pub use equivalence::{Equivalence, equivalence, normalised};
pub use rows::{COLUMNS, CONFIGS, NETWORK_ROWS, Problem, problems, source, validation_indices};

use crate::completion::Completion;
use crate::task::{Component, Evaluation, Unjudged};
use crate::thinking::ThinkingMode;

/// Code points behind the answer from which the format counts no more.
const MAX_TRAILING: usize = 50;

/// Why an expression has no value here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The reference meets an exception, whatever else stands in the text.
    Fails,
    /// What the reference makes of it is not known for certain.
    NotCovered,
}

/// What is read from a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The whole answer; empty where there is none.
    pub answer_text: String,
    /// The closing thinking tag occurs.
    pub has_thinking: bool,
    /// An answer block occurs.
    pub has_answer: bool,
    /// Code points after the block that was used; 0 without one.
    pub trailing_after_answer: usize,
}

/// Reads a completion; linear in its length.
pub fn parse(completion: &str, mode: ThinkingMode) -> Parsed {
    let Completion { has_thinking, answer } = Completion::read(completion, mode);
    Parsed {
        answer_text: answer.as_ref().map_or_else(String::new, |answer| answer.content.to_owned()),
        has_thinking,
        has_answer: answer.is_some(),
        trailing_after_answer: answer.as_ref().map_or(0, |answer| answer.trailing),
    }
}

/// The gold answer of a row: its `answer`, else the last `\boxed{}` of its solution, else nothing.
pub fn gold(answer: &str, solution: &str) -> String {
    if answer.is_empty() { last_boxed(solution).unwrap_or_default().to_owned() } else { answer.to_owned() }
}

/// Scores a completion against a row's `answer` and `solution`. At most 0.805 in total, not 1.
///
/// # Errors
/// An answer of which it is not certain here whether the reference takes it for the gold one.
pub fn evaluate(answer: &str, solution: &str, completion: &str, mode: ThinkingMode) -> Result<Evaluation, Unjudged> {
    let parsed = parse(completion, mode);
    let success = match equivalence(&parsed.answer_text, &gold(answer, solution)) {
        Equivalence::Equal => true,
        Equivalence::NotEqual => false,
        Equivalence::NotCovered => return Err(Unjudged::SymbolicForm),
    };
    // The reward looks at the row's `answer` alone, though success may come from its solution.
    let correct = success && !answer.is_empty();
    let points = |earned: bool, value: f64| if earned { value } else { 0.0 };
    let trailing = parsed.trailing_after_answer;
    let no_trailing = if parsed.has_answer { (0.2 - 0.001 * trailing as f64).max(0.0) } else { 0.0 };
    Ok(Evaluation::weighted(
        success,
        vec![
            Component { name: "correctness", value: points(correct, 1.0), weight: 0.70 },
            Component { name: "answer_format", value: points(parsed.has_answer && trailing < MAX_TRAILING, 0.3), weight: 0.15 },
            Component { name: "thinking", value: points(parsed.has_thinking, 0.5), weight: 0.10 },
            Component { name: "no_trailing", value: no_trailing, weight: 0.05 },
        ],
    ))
}
