//! `.env` files as the reference reads them (python-dotenv 1.2, `vectors/settings/dotenv.json`): quotes, several lines, `export`,
//! comments, `${NAME:-default}`. Beyond it, a byte order mark at the beginning is skipped, and a statement that cannot be read is
//! told with its line. Pure.

use std::collections::BTreeMap;

/// What a file says, in its order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DotEnv {
    /// Names with their values; `None` for a name without `=`.
    pub values: Vec<(String, Option<String>)>,
    /// Statements that cannot be read.
    pub unread: Vec<Unread>,
}

/// A statement that is none.
#[derive(Debug, PartialEq, Eq)]
pub struct Unread {
    /// Its line, from 1.
    pub line: usize,
    /// The word in front of it: a name, if it is one.
    pub word: String,
}

/// Most bytes of a file, and of all its values: `${NAME}` may double what it names, line by line.
pub const MOST_BYTES: usize = 1 << 20;

/// Reads a file's text. `environment` is what `${NAME}` means where the file itself has not said it before.
pub fn parse(text: &str, environment: &BTreeMap<String, String>) -> DotEnv {
    // As a text file is read: every kind of line end is one.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let letters: Vec<char> = text.chars().collect();
    let mut reader = Reader { letters: &letters, at: 0 };
    let (mut found, mut left) = (DotEnv::default(), MOST_BYTES);
    loop {
        reader.skip(is_space);
        if reader.peek().is_none() {
            return found;
        }
        let begin = reader.at;
        match reader.statement() {
            Some((Some(name), None)) => found.values.push((name, None)),
            Some((Some(name), Some(value))) => match interpolated(&value, &found.values, environment, left) {
                Some(value) => {
                    left -= value.len();
                    found.values.push((name, Some(value)));
                }
                None => found.unread.push(unread(&letters, begin)),
            },
            Some((None, _)) => {}
            None => {
                reader.skip(|letter| letter != '\n');
                found.unread.push(unread(&letters, begin));
            }
        }
    }
}

fn unread(letters: &[char], begin: usize) -> Unread {
    let line = letters[..begin].iter().filter(|letter| **letter == '\n').count() + 1;
    let word = letters[begin..].iter().take_while(|letter| !is_space(**letter) && !":=#'\"".contains(**letter));
    Unread { line, word: word.collect() }
}

struct Reader<'a> {
    letters: &'a [char],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    fn skip(&mut self, while_it: impl Fn(char) -> bool) -> String {
        let rest = self.letters[self.at..].iter().take_while(|letter| while_it(**letter));
        let skipped: String = rest.collect();
        self.at += skipped.chars().count();
        skipped
    }

    /// A name with its value, or a comment; `None` where it is neither, read up to where that shows.
    fn statement(&mut self) -> Option<(Option<String>, Option<String>)> {
        self.export();
        let name = match self.peek()? {
            '#' => None,
            '\'' => Some(self.quoted('\'', false)?).filter(|name| !name.is_empty()).map(Some)?,
            _ => Some(self.skip(|letter| letter != '=' && letter != '#' && !is_space(letter)))
                .filter(|name| !name.is_empty())
                .map(Some)?,
        };
        self.skip(is_blank);
        let mut value = None;
        if self.peek() == Some('=') {
            self.at += 1;
            self.skip(is_blank);
            value = Some(self.value()?);
        }
        self.skip(is_blank);
        if self.peek() == Some('#') {
            self.skip(|letter| letter != '\n');
        }
        // What follows on the line belongs to nothing.
        (self.peek().is_none_or(|letter| letter == '\n')).then_some((name, value))
    }

    fn export(&mut self) {
        let before = self.at;
        let word: String = self.letters[self.at..].iter().take(6).collect();
        if word == "export" {
            self.at += 6;
            if self.skip(is_blank).is_empty() {
                self.at = before;
            }
        }
    }

    fn value(&mut self) -> Option<String> {
        match self.peek() {
            None | Some('\n') => Some(String::new()),
            Some('\'') => self.quoted('\'', true).map(|text| unescaped(&text, "\\'")),
            Some('"') => self.quoted('"', true).map(|text| unescaped(&text, "\\'\"abfnrtv")),
            Some(_) => Some(without_comment(&self.skip(|letter| letter != '\n'))),
        }
    }

    /// The text between two marks, over as many lines as it takes; a mark after a backslash ends it only where no other follows.
    fn quoted(&mut self, mark: char, escapes: bool) -> Option<String> {
        let mut ends = Vec::new();
        let mut place = self.at + 1;
        while let Some(letter) = self.letters.get(place) {
            if *letter == mark {
                ends.push(place);
                if !(escapes && place > self.at + 1 && self.letters[place - 1] == '\\') {
                    break;
                }
            }
            place += 1;
        }
        let end = ends.pop()?;
        let text = self.letters[self.at + 1..end].iter().collect();
        self.at = end + 1;
        Some(text)
    }
}

/// A value without quotes ends where blanks and `#` begin, and has no blanks at its end.
fn without_comment(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let comment = (1..letters.len()).find(|place| letters[*place] == '#' && is_space(letters[place - 1]));
    let kept: String = letters[..comment.unwrap_or(letters.len())].iter().collect();
    kept.trim_end_matches(is_space).to_owned()
}

fn unescaped(text: &str, escapes: &str) -> String {
    let mut letters = text.chars().peekable();
    let mut out = String::with_capacity(text.len());
    while let Some(letter) = letters.next() {
        let escaped = letters.peek().copied().filter(|next| letter == '\\' && escapes.contains(*next));
        let Some(escaped) = escaped else {
            out.push(letter);
            continue;
        };
        letters.next();
        out.push(match escaped {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            itself => itself,
        });
    }
    out
}

/// `${NAME}` and `${NAME:-default}`; what the file has said before wins over the environment, a name without value is empty.
/// `None` where more than `most` bytes come of it.
fn interpolated(
    value: &str,
    before: &[(String, Option<String>)],
    environment: &BTreeMap<String, String>,
    most: usize,
) -> Option<String> {
    let (mut out, mut rest) = (String::new(), value);
    while let Some(begin) = rest.find("${") {
        let inside = &rest[begin + 2..];
        let name_end = inside.find(['}', ':']).unwrap_or(inside.len());
        let (name, tail) = inside.split_at(name_end);
        let (default, after) = match (tail.strip_prefix('}'), tail.strip_prefix(":-").and_then(|tail| tail.split_once('}'))) {
            (Some(after), _) => (None, after),
            (None, Some((default, after))) => (Some(default), after),
            (None, None) => {
                out.push_str(&rest[..begin + 2]);
                rest = inside;
                continue;
            }
        };
        out.push_str(&rest[..begin]);
        let said = before.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone().unwrap_or_default());
        let known = said.or_else(|| environment.get(name).cloned());
        out.push_str(&known.unwrap_or_else(|| default.unwrap_or_default().to_owned()));
        if out.len() > most {
            return None;
        }
        rest = after;
    }
    Some(out + rest).filter(|out| out.len() <= most)
}

/// What Python's `\s` takes.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

fn is_blank(letter: char) -> bool {
    is_space(letter) && letter != '\n'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_told_with_its_line_and_word() {
        let found = parse("A=1\n\n  B: 2\nC='x'y\n# D\nE=3", &BTreeMap::new());
        assert_eq!(found.values, [("A".into(), Some("1".into())), ("E".into(), Some("3".into()))]);
        let unread: Vec<_> = found.unread.iter().map(|unread| (unread.line, unread.word.as_str())).collect();
        assert_eq!(unread, [(3, "B"), (4, "C")]);
    }

    #[test]
    fn what_doubles_line_by_line_comes_to_an_end() {
        let lines = (1..64).map(|line| format!("A{line}=${{A{0}}}${{A{0}}}\n", line - 1));
        let found = parse(&format!("A0=x\n{}B=1\n", lines.collect::<String>()), &BTreeMap::new());
        let bytes: usize = found.values.iter().filter_map(|(_, value)| Some(value.as_ref()?.len())).sum();
        assert!(bytes <= MOST_BYTES && found.unread.iter().any(|unread| unread.word == "A20"), "{bytes}");
        assert_eq!(found.values.last(), Some(&("B".into(), Some("1".into()))));
    }

    proptest! {
        #[test]
        fn any_text_is_read_to_its_end(text in "[A-C=#'\"\\\\ \\n$\\{\\}:-]{0,40}") {
            parse(&text, &BTreeMap::new());
        }
    }
}
