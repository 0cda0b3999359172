//! Whether two answers are the same (grail-environments 6.2): as text, as sympy expressions, as floats.
//!
//! The reference hands both texts to sympy's parser, which evaluates them as Python, and asks whether the difference
//! simplifies to 0. Nothing is evaluated here: what is certain is answered, and what is not is said to be not covered, so
//! that nobody claims a reward by guessing. Time and memory have a bound, whatever the texts are.

use super::polynomial::Budget;
use super::tokens::{is_word, tokens};
use super::value::{self, Value};
use super::{Stop, syntax};
use crate::python_text::{decimal_digit, is_space, strip};

/// Work that one comparison may cost, in steps of some ten nanoseconds.
const BUDGET: u64 = 600_000;
/// Floats that are nearer are the same.
const TOLERANCE: f64 = 1e-6;

/// What is known of two answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Equivalence {
    /// The reference says equal.
    Equal,
    /// The reference says not equal.
    NotEqual,
    /// The reference may say either.
    NotCovered,
}

/// Compares a prediction with the gold answer.
pub fn equivalence(prediction: &str, gold: &str) -> Equivalence {
    if prediction.is_empty() || gold.is_empty() {
        return Equivalence::NotEqual;
    }
    let (Some(prediction), Some(gold)) = (normalised(prediction), normalised(gold)) else {
        return Equivalence::NotCovered;
    };
    // The last step is cheap and certain: where it says equal, it does not matter what the second one says.
    if prediction == gold || equal_floats(&prediction, &gold) {
        return Equivalence::Equal;
    }
    symbolic(&prediction, &gold)
}

/// Both sides of the comparison: without white space and what only shapes the text, in lower case. None where it is not
/// certain whether a character behind `\left` or `\right` continues the command.
pub fn normalised(text: &str) -> Option<String> {
    let mut text = strip(text).to_owned();
    for command in ["\\dfrac", "\\tfrac", "\\cfrac"] {
        text = text.replace(command, "\\frac");
    }
    for command in ["\\left", "\\right"] {
        text = without_command(&text, command)?;
    }
    for space in ["\\,", "\\!", "\\;", "\\:"] {
        text = text.replace(space, "");
    }
    text.retain(|character| !is_space(character));
    Some(text.to_lowercase())
}

/// The text without a command, where that is a whole word.
fn without_command(text: &str, command: &str) -> Option<String> {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(command) {
        let behind = &rest[at + command.len()..];
        let continues = behind.chars().next().map_or(Some(false), is_word)?;
        kept.push_str(&rest[..if continues { at + command.len() } else { at }]);
        rest = behind;
    }
    kept.push_str(rest);
    Some(kept)
}

/// Whether both are floats of Python's, and near.
fn equal_floats(prediction: &str, gold: &str) -> bool {
    match (python_float(prediction), python_float(gold)) {
        (Some(left), Some(right)) => (left - right).abs() < TOLERANCE,
        _ => false,
    }
}

/// What Python's `float` reads: digits of any script, single underscores between them, infinities and nan.
fn python_float(text: &str) -> Option<f64> {
    let ascii: String = text
        .chars()
        .map(|character| decimal_digit(character).and_then(|digit| char::from_digit(digit, 10)).unwrap_or(character))
        .collect();
    let unsigned = ascii.strip_prefix(['+', '-']).unwrap_or(&ascii);
    if matches!(unsigned, "inf" | "infinity" | "nan") {
        return ascii.parse().ok();
    }
    let begins = unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.');
    let usual = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'_' | b'.' | b'e' | b'+' | b'-');
    if !begins || !unsigned.bytes().all(usual) {
        return None;
    }
    let bytes = ascii.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let stray = |(at, byte): (usize, &u8)| *byte == b'_' && !(digit(at.checked_sub(1)) && digit(Some(at + 1)));
    if bytes.iter().enumerate().any(stray) {
        return None;
    }
    ascii.replace('_', "").parse().ok()
}

/// The second step, over normalised texts.
fn symbolic(prediction: &str, gold: &str) -> Equivalence {
    let budget = Budget::new(BUDGET);
    let read = |text| value::evaluate(&syntax::parse(&tokens(text)?)?, &budget);
    match (read(prediction), read(gold)) {
        (Err(Stop::Fails), _) | (_, Err(Stop::Fails)) => Equivalence::NotEqual,
        (Err(Stop::NotCovered), _) | (_, Err(Stop::NotCovered)) => Equivalence::NotCovered,
        (Ok(Value::Expression(prediction)), Ok(Value::Expression(gold))) => match prediction.equals(&gold, &budget) {
            Some(true) => Equivalence::Equal,
            Some(false) => Equivalence::NotEqual,
            None => Equivalence::NotCovered,
        },
        // There is no such difference, or it is another thing than a number.
        _ => Equivalence::NotEqual,
    }
}
