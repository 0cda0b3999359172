//! Finding the reasoning and the answer in a completion (grail-environments 5), for every environment.
//!
//! The text is untrusted model output. The reference uses regular expressions with lazy wildcards; because every wildcard
//! is lazy and unbounded, leftmost first occurrences of the tags, in order, give the same matches in linear time: a later
//! start can only leave less text for the rest.

use crate::ThinkingMode;
use crate::python_text::strip;

/// The parts of a completion that every environment looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion<'a> {
    /// The closing thinking tag occurs. The opening tag is never required.
    pub has_thinking: bool,
    /// The answer block that counts; `None` where no block stands anywhere.
    pub answer: Option<Answer<'a>>,
}

/// An answer block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The text between the tags, stripped as Python strips.
    pub content: &'a str,
    /// Unicode code points after the closing tag. An end-of-turn token's text counts.
    pub trailing: usize,
}

impl<'a> Completion<'a> {
    /// Reads `text`: completion ids decoded with special tokens kept.
    ///
    /// With a closing thinking tag, the answer is the first block after it, so that a draft inside the reasoning is
    /// passed over; if no block follows, or without reasoning, it is the first block anywhere.
    pub fn read(text: &'a str, mode: ThinkingMode) -> Self {
        let tags = mode.tags();
        // Lower-casing (all of Unicode) and case-insensitive matching differ in Python for a handful of letters: both
        // are applied where the reference applies them.
        let has_thinking = text.to_lowercase().contains(&tags.thinking_close.to_lowercase());
        let after_thinking = if has_thinking { find_tag(text, tags.thinking_close, 0).map(|found| found.end) } else { None };
        let answer = after_thinking.and_then(|from| Answer::first(text, mode, from)).or_else(|| Answer::first(text, mode, 0));
        Self { has_thinking, answer }
    }
}

impl<'a> Answer<'a> {
    fn first(text: &'a str, mode: ThinkingMode, from: usize) -> Option<Self> {
        let tags = mode.tags();
        let open = find_tag(text, tags.solution_open, from)?;
        let close = find_tag(text, tags.solution_close, open.end)?;
        let content = strip(&text[open.end..close.start]);
        Some(Self { content, trailing: text[close.end..].chars().count() })
    }
}

/// The byte range of the first occurrence of an ASCII `tag` at or after byte `from`, ignoring case as Python's `re` does.
fn find_tag(text: &str, tag: &str, from: usize) -> Option<std::ops::Range<usize>> {
    // Every tag begins with `<`, which has no other case: only those places can match.
    text[from..].match_indices('<').find_map(|(at, _)| {
        let start = from + at;
        tag_length(&text[start..], tag).map(|length| start..start + length)
    })
}

/// How many bytes `tag` covers at the start of `text`, if it stands there.
fn tag_length(text: &str, tag: &str) -> Option<usize> {
    let mut characters = text.chars();
    for wanted in tag.chars() {
        if fold(characters.next()?) != wanted.to_ascii_lowercase() {
            return None;
        }
    }
    Some(text.len() - characters.as_str().len())
}

/// Simple case folding as in Python's `re` with IGNORECASE, for comparing with ASCII letters.
fn fold(character: char) -> char {
    match character {
        '\u{130}' | '\u{131}' => 'i',
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn instructed(text: &str) -> (bool, Option<(&str, usize)>) {
        let read = Completion::read(text, ThinkingMode::Instructed);
        (read.has_thinking, read.answer.map(|answer| (answer.content, answer.trailing)))
    }

    #[test]
    fn the_answer_after_the_reasoning_counts() {
        let text = "<start_working_out>try <SOLUTION>1</SOLUTION></end_working_out><SOLUTION> 2\u{a0}</SOLUTION><|im_end|>";
        assert_eq!(instructed(text), (true, Some(("2", 10))));
        assert_eq!(instructed("<SOLUTION>1</SOLUTION></end_working_out>"), (true, Some(("1", 18))));
        assert_eq!(instructed("<SOLUTION>1</SOLUTION></end_working_out><SOLUTION>2"), (true, Some(("1", 29))));
        assert_eq!(instructed("</end_working_out>x</SOLUTION><SOLUTION>3</SOLUTION>"), (true, Some(("3", 0))));
    }

    #[test]
    fn content_is_shortest_and_may_hold_anything() {
        assert_eq!(instructed("<solution>a<SOLUTION>\nb</Solution>c</SOLUTION>"), (false, Some(("a<SOLUTION>\nb", 12))));
        assert_eq!(instructed("<SOLUTION></SOLUTION>é\u{1F600}"), (false, Some(("", 2))));
        assert_eq!(instructed("<SOLUTION>1</SOLUTION "), (false, None));
    }

    #[test]
    fn case_folds_as_in_python() {
        // Pattern matching equates these letters with ASCII ones, lower-casing only some of them.
        assert_eq!(instructed("<\u{17f}OLUT\u{131}ON>1</SOLUT\u{130}ON>"), (false, Some(("1", 0))));
        assert!(instructed("</end_wor\u{212a}ing_out>").0);
        assert!(!instructed("</end_work\u{131}ng_out>").0);
    }

    #[test]
    fn hostile_repetitions_are_read_in_linear_time() {
        for piece in ["<", "<SOLUTION>", "</end_working_out>", "</end_working_out><SOLUTION>", "<SOLUTION"] {
            let text = piece.repeat(2_000_000 / piece.len());
            assert_eq!(instructed(&text).1, None);
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_counts_what_follows(prefix in ".{0,40}", content in ".{0,40}", tail in ".{0,40}") {
            prop_assume!(![&prefix, &content, &tail].iter().any(|part| part.contains('<')));
            let text = format!("{prefix}<SOLUTION>{content}</SOLUTION>{tail}");
            prop_assert_eq!(instructed(&text), (false, Some((strip(&content), tail.chars().count()))));
        }
    }
}
