//! Grade-school word problems: the splits, the gold value, reading an answer and its reward (grail-environments 2.3, 6.1).

use grail_protocol::python_random::PythonRandom;

use crate::completion::Completion;
use crate::dataset::{Dataset, DatasetError, SourceSplit};
use crate::error::EnvironmentError;
use crate::python_text::{is_decimal, is_space, lines, strip};
use crate::shuffle::{SHUFFLE_SEED, chosen};
use crate::task::{Component, Evaluation, Split};
use crate::thinking::ThinkingMode;

/// How many rows the network's data set has (openai/gsm8k, `main`): whoever has others asks other questions.
pub const NETWORK_ROWS: [(SourceSplit, usize); 2] = [(SourceSplit::Train, 7473), (SourceSplit::Test, 1319)];
/// Rows of the source's train split that become the `val` split.
const VALIDATION_ROWS: usize = 250;

/// One row of the data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The user message, untouched.
    pub question: String,
    /// The worked solution that ends in `#### gold`.
    pub answer: String,
}

/// What is read from a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The first number of the answer without commas; empty where there is none.
    pub answer_text: String,
    /// The closing thinking tag occurs.
    pub has_thinking: bool,
    /// An answer block occurs.
    pub has_answer: bool,
    /// Code points after the block that was used; 0 without one.
    pub trailing_after_answer: usize,
    /// The block holds a number and nothing but sign, digits, dots, commas and spaces.
    pub is_numeric_only: bool,
}

/// The problems of one split, in the order that the protocol's row index counts.
///
/// # Errors
/// A data set without the needed source split or with bad rows, a split that ends up without rows, and split names that
/// gsm8k does not have.
pub fn problems(dataset: &Dataset, split: Split) -> Result<Vec<Problem>, EnvironmentError> {
    let rows = match split {
        Split::Test => read(dataset, SourceSplit::Test)?,
        Split::Train | Split::Val => select(read(dataset, SourceSplit::Train)?, split),
        Split::Validation => return Err(EnvironmentError::split("gsm8k", "validation", "`train`, `val` or `test`")),
    };
    if rows.is_empty() {
        return Err(EnvironmentError::EmptySplit {
            path: dataset.path().to_owned(),
            split,
            why: format!("{VALIDATION_ROWS} rows of `train` become `val` and the rest stays in `train`"),
        });
    }
    Ok(rows)
}

fn read(dataset: &Dataset, split: SourceSplit) -> Result<Vec<Problem>, DatasetError> {
    let rows = dataset.rows(split, ["question", "answer"])?;
    Ok(rows.into_iter().map(|[question, answer]| Problem { question, answer }).collect())
}

fn select(train: Vec<Problem>, split: Split) -> Vec<Problem> {
    let indices = validation_indices(train.len());
    chosen(train, &indices, split == Split::Val)
}

/// Which of `rows` source rows form `val`: the first 250 of the list that CPython's `Random(42).shuffle` leaves, sorted.
pub fn validation_indices(rows: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    PythonRandom::from_integer(SHUFFLE_SEED).shuffle(&mut order);
    order.truncate(VALIDATION_ROWS);
    order.sort_unstable();
    order
}

/// Reads a completion; linear in its length.
pub fn parse(completion: &str, mode: ThinkingMode) -> Parsed {
    let Completion { has_thinking, answer } = Completion::read(completion, mode);
    let content = answer.as_ref().map_or("", |answer| answer.content);
    let number = numbers(content).next();
    Parsed {
        answer_text: number.map_or_else(String::new, |number| number.replace(',', "")),
        has_thinking,
        has_answer: answer.is_some(),
        trailing_after_answer: answer.as_ref().map_or(0, |answer| answer.trailing),
        is_numeric_only: number.is_some() && is_numeric_only(content),
    }
}

/// Scores a completion against the row's `answer` field. At most 0.735 in total, not 1.
pub fn evaluate(answer: &str, completion: &str, mode: ThinkingMode) -> Evaluation {
    let parsed = parse(completion, mode);
    // A gold value with a comma can never be matched, as the prediction has lost its commas: the protocol keeps this.
    // Nothing found is never right, not even where the row's gold value is empty too.
    let success = !parsed.answer_text.is_empty() && normalise(&parsed.answer_text) == normalise(&gold(answer));
    let points = |earned: bool, value: f64| if earned { value } else { 0.0 };
    let trailing = parsed.trailing_after_answer;
    let strict = parsed.has_answer && parsed.is_numeric_only && trailing == 0;
    let no_trailing = if parsed.has_answer { (0.2 - 0.001 * trailing as f64).max(0.0) } else { 0.0 };
    Evaluation::weighted(
        success,
        vec![
            Component { name: "correctness", value: points(success, 1.0), weight: 0.60 },
            Component { name: "strict_format", value: points(strict, 0.3), weight: 0.15 },
            Component { name: "thinking", value: points(parsed.has_thinking, 0.5), weight: 0.10 },
            Component { name: "answer_present", value: points(parsed.has_answer, 0.3), weight: 0.10 },
            Component { name: "no_trailing", value: no_trailing, weight: 0.05 },
        ],
    )
}

/// The gold value of a row's `answer` field: what follows the last `####`, commas kept; else the last number, commas
/// removed; else the last non-blank line; else nothing.
pub fn gold(answer: &str) -> String {
    if let Some(marked) = last_marked(answer) {
        return strip(marked).to_owned();
    }
    if let Some(number) = numbers(answer).last() {
        return number.replace(',', "");
    }
    lines(answer).map(strip).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// Both sides of the comparison: stripped, lower case, without a final run of white space and dots.
pub fn normalise(text: &str) -> String {
    let lower = strip(text).to_lowercase();
    lower.trim_end_matches(|character| is_space(character) || character == '.').to_owned()
}

/// The last match of "four hashes, any white space, one or more characters to the end of the line", without the hashes.
fn last_marked(text: &str) -> Option<&str> {
    let mut last = None;
    let mut from = 0;
    while let Some(at) = text[from..].find("####").map(|found| from + found) {
        let behind = at + "####".len();
        match to_line_end(&text[behind..]) {
            Some(found) => {
                last = Some(&text[behind + found.start..behind + found.end]);
                // Matches do not overlap: the scan goes on behind this one.
                from = behind + found.end;
            }
            None => from = at + 1,
        }
    }
    last
}

/// "Any white space, then one or more characters to the end of the line" at the start of `text`, as a backtracking
/// matcher finds it: all white space including line breaks is skipped; only where nothing follows it, the last character
/// of it that is no line feed is given back.
fn to_line_end(text: &str) -> Option<std::ops::Range<usize>> {
    let rest = text.trim_start_matches(is_space);
    let start = text.len() - rest.len();
    if !rest.is_empty() {
        return Some(start..start + rest.find('\n').unwrap_or(rest.len()));
    }
    let (start, given_back) = text.char_indices().rfind(|(_, character)| *character != '\n')?;
    Some(start..start + given_back.len_utf8())
}

/// The numbers of `text`, left to right: an optional sign, digits, and optionally one dot or comma with digits.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.find(is_decimal)?;
        let signed = rest[..first].ends_with(['+', '-']);
        let start = if signed { first - 1 } else { first };
        let whole = first + digits(&rest[first..]);
        let fraction = rest[whole..].strip_prefix(['.', ',']).map_or(0, digits);
        let end = if fraction > 0 { whole + 1 + fraction } else { whole };
        let number = &rest[start..end];
        rest = &rest[end..];
        Some(number)
    })
}

/// Bytes of the decimal digits that `text` begins with.
fn digits(text: &str) -> usize {
    text.len() - text.trim_start_matches(is_decimal).len()
}

/// Whether `content` without its ASCII spaces is an optional sign, then digits, dots and commas only, at least one.
fn is_numeric_only(content: &str) -> bool {
    let mut characters = content.chars().filter(|character| *character != ' ').peekable();
    characters.next_if(|character| matches!(character, '+' | '-'));
    characters.peek().is_some() && characters.all(|character| is_decimal(character) || matches!(character, '.' | ','))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gold_is_read_as_a_backtracking_matcher_reads_it() {
        let cases = [
            ("x\n#### 42", "42"),
            ("#### 5 #### 6", "5 #### 6"),
            ("#### 5\n####\n\n 6 \n7", "6"),
            ("#### 1,234", "1,234"),
            ("a 1,234 b", "1234"),
            ("#####  5", "#  5"),
            ("####", "####"),
            ("no 12 then -18.", "-18"),
            ("9 ####\n\n", "9"),
            ("9 #### \n", ""),
            ("#### 9\r\nmore", "9"),
            ("a\n b \n\n", "b"),
            ("", ""),
        ];
        for (text, want) in cases {
            assert_eq!(gold(text), want, "{text:?}");
        }
    }

    #[test]
    fn numbers_are_python_decimals() {
        let all = |text| numbers(text).collect::<Vec<_>>();
        assert_eq!(all("+-5 1,234,567 3.5.6 7. ٤٢,٣"), ["-5", "1,234", "567", "3.5", "6", "7", "٤٢,٣"]);
        assert_eq!(all("1-2"), ["1", "-2"]);
        assert_eq!(all("½²"), Vec::<&str>::new());
    }

    #[test]
    fn numeric_only_tolerates_spaces_and_one_sign() {
        for (content, want) in [("4 2", true), ("- 4,2.", true), ("--4", false), ("4\t2", false), ("+", false), ("$4", false)] {
            assert_eq!(is_numeric_only(content), want, "{content:?}");
        }
    }

    #[test]
    fn the_largest_reward_is_735_thousandths() {
        let best = evaluate("#### 7", "x</end_working_out><SOLUTION>7</SOLUTION>", ThinkingMode::Instructed);
        assert!(best.success && (best.reward - 0.735).abs() < 1e-12, "{best:?}");
        let ended = evaluate("#### 7", "x</end_working_out><SOLUTION>7</SOLUTION><|im_end|>", ThinkingMode::Instructed);
        assert!((ended.reward - 0.6895).abs() < 1e-12, "{ended:?}");
        let nothing = evaluate("#### 7", "", ThinkingMode::Instructed);
        assert_eq!((nothing.reward, nothing.success), (0.0, false));
    }

    #[test]
    fn values_are_compared_as_text() {
        let right = |gold: &str, said: &str| {
            evaluate(&format!("#### {gold}"), &format!("<SOLUTION>{said}</SOLUTION>"), ThinkingMode::Native).success
        };
        assert!(right("42", "42 apples") && right("42.", "42"));
        assert!(!right("", "") && !right("...", "no number"));
        assert!(!right("42", "42.0") && !right("42", "+42") && !right("42", "042") && !right("1,234", "1,234"));
    }

    #[test]
    fn small_sources_are_all_validation() {
        assert_eq!(validation_indices(3), [0, 1, 2]);
        assert_eq!(validation_indices(7473).len(), 250);
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text in "[#\\n \\u{1c}0-9.,+\\-é٤]{0,60}") {
            gold(&text);
            parse(&format!("<SOLUTION>{text}"), ThinkingMode::Native);
            parse(&format!("<SOLUTION>{text}</SOLUTION>"), ThinkingMode::Native);
        }
    }
}
