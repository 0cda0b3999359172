//! Jinja's tokens, with transformers' settings: blocks are trimmed and stripped to their left.

use super::literal;
use crate::python_text::is_space;

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Text outside of tags.
    Data(String),
    /// `{{`
    VariableBegin,
    /// `}}`
    VariableEnd,
    /// `{%`
    BlockBegin,
    /// `%}`
    BlockEnd,
    /// A name or keyword.
    Name(String),
    /// A string literal, unescaped.
    Str(String),
    /// An integer literal.
    Int(i128),
    /// A float literal.
    Float(f64),
    /// An operator or punctuation.
    Operator(&'static str),
    /// The end of the template.
    End,
}

const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".", ":", "|",
    ",", ";",
];

/// White space control beside a tag's delimiter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Control {
    Strip,
    Keep,
    Usual,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Variable,
    Block,
}

/// Cuts a template into tokens, or says why it cannot be read.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>, String> {
    let source = normalised(source);
    let mut lexer = Lexer { rest: &source, tokens: Vec::new(), line_starting: true };
    while !lexer.rest.is_empty() {
        lexer.root()?;
    }
    lexer.tokens.push(Token::End);
    Ok(lexer.tokens)
}

/// Every line end as LF, and one at the very end dropped.
fn normalised(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

struct Lexer<'a> {
    rest: &'a str,
    tokens: Vec<Token>,
    /// Whether the last thing read ended a line.
    line_starting: bool,
}

impl<'a> Lexer<'a> {
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        if let Some(last) = taken.chars().next_back() {
            self.line_starting = last == '\n';
        }
        self.rest = rest;
        taken
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.tokens.push(Token::Data(text.to_owned()));
        }
    }

    fn take_spaces(&mut self) {
        let spaces = self.rest.len() - self.rest.trim_start_matches(is_space).len();
        self.take(spaces);
    }

    fn control(&self, at: usize) -> Control {
        match self.rest.as_bytes().get(at) {
            Some(b'-') => Control::Strip,
            Some(b'+') => Control::Keep,
            _ => Control::Usual,
        }
    }

    /// Text up to the next tag, and the tag.
    fn root(&mut self) -> Result<(), String> {
        let Some(at) = ["{{", "{%", "{#"].iter().filter_map(|opening| self.rest.find(opening)).min() else {
            let text = self.take(self.rest.len());
            self.data(text);
            return Ok(());
        };
        let line_starting = self.line_starting;
        let control = self.control(at + 2);
        let text = &self.rest[..at];
        let kind = self.rest.as_bytes()[at + 1];
        self.data(before_tag(text, control, kind == b'{', line_starting));
        if let Some(length) = raw_begin(&self.rest[at..]) {
            self.take(at + length);
            return self.raw();
        }
        self.take(at + 2 + usize::from(control != Control::Usual));
        match kind {
            b'#' => self.comment(),
            b'%' => self.tag(Tag::Block),
            _ => self.tag(Tag::Variable),
        }
    }

    fn comment(&mut self) -> Result<(), String> {
        let Some(at) = self.rest.find("#}") else { return Err("a comment is not closed".to_owned()) };
        let strip = at.checked_sub(1).map_or(Control::Usual, |before| self.control(before));
        self.take(at + 2);
        self.after_end(strip);
        Ok(())
    }

    /// What a closed block or comment takes along: all white space, one line end, or nothing.
    fn after_end(&mut self, control: Control) {
        match control {
            Control::Strip => self.take_spaces(),
            Control::Usual if self.rest.starts_with('\n') => {
                self.take(1);
            }
            _ => {}
        }
    }

    fn raw(&mut self) -> Result<(), String> {
        let mut from = 0;
        while let Some(found) = self.rest[from..].find("{%") {
            let at = from + found;
            let Some((length, control_begin, control_end)) = raw_end(&self.rest[at..]) else {
                from = at + 2;
                continue;
            };
            let line_starting = self.line_starting;
            let text = &self.rest[..at];
            self.data(before_tag(text, control_begin, false, line_starting));
            self.take(at + length);
            self.after_end(control_end);
            return Ok(());
        }
        Err("a raw block is not closed".to_owned())
    }

    fn tag(&mut self, tag: Tag) -> Result<(), String> {
        self.tokens.push(if tag == Tag::Block { Token::BlockBegin } else { Token::VariableBegin });
        let mut open: Vec<char> = Vec::new();
        let mut after_dot = false;
        loop {
            if open.is_empty() && self.tag_end(tag) {
                return Ok(());
            }
            let Some(next) = self.rest.chars().next() else { return Ok(()) };
            if is_space(next) {
                self.take_spaces();
                after_dot = false;
                continue;
            }
            let token = self.token(next, after_dot)?;
            after_dot = token == Token::Operator(".");
            if let Token::Operator(operator) = token {
                balance(&mut open, operator)?;
            }
            self.tokens.push(token);
        }
    }

    fn tag_end(&mut self, tag: Tag) -> bool {
        let (strip, plain) = if tag == Tag::Block { ("-%}", "%}") } else { ("-}}", "}}") };
        let control = if self.rest.starts_with(strip) {
            Control::Strip
        } else if tag == Tag::Block && self.rest.starts_with("+%}") {
            Control::Keep
        } else if self.rest.starts_with(plain) {
            Control::Usual
        } else {
            return false;
        };
        self.take(plain.len() + usize::from(control != Control::Usual));
        self.tokens.push(if tag == Tag::Block { Token::BlockEnd } else { Token::VariableEnd });
        // Only blocks are trimmed, a variable's line end stays.
        if tag == Tag::Block || control == Control::Strip {
            self.after_end(control);
        }
        true
    }

    fn token(&mut self, next: char, after_dot: bool) -> Result<Token, String> {
        if next.is_ascii_digit() {
            return self.number(after_dot);
        }
        if next.is_ascii_alphabetic() || next == '_' {
            let length = self.rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
            if self.rest[length..].chars().next().is_some_and(|after| !after.is_ascii() && after.is_alphanumeric()) {
                return Err("a name with letters outside of ASCII is not supported".to_owned());
            }
            return Ok(Token::Name(self.take(length).to_owned()));
        }
        if next == '\'' || next == '"' {
            let length = literal::quoted(self.rest).ok_or_else(|| "a string is not closed".to_owned())?;
            let inner = &self.take(length)[1..length - 1];
            return Ok(Token::Str(literal::unescape(inner)?));
        }
        match OPERATORS.iter().find(|operator| self.rest.starts_with(**operator)) {
            Some(operator) => {
                self.take(operator.len());
                Ok(Token::Operator(operator))
            }
            None => Err(format!("unexpected character {next:?}")),
        }
    }

    fn number(&mut self, after_dot: bool) -> Result<Token, String> {
        if !after_dot && let Some(length) = literal::float(self.rest) {
            let value: f64 = self.take(length).replace('_', "").parse().map_err(|_| "a number cannot be read".to_owned())?;
            // Python code with an infinite constant does not run.
            return if value.is_finite() { Ok(Token::Float(value)) } else { Err("a number is infinite".to_owned()) };
        }
        let (length, radix) = literal::integer(self.rest).ok_or_else(|| "a number cannot be read".to_owned())?;
        let digits = self.take(length).replace('_', "").to_ascii_lowercase();
        let digits = if radix == 10 { digits.as_str() } else { &digits[2..] };
        i128::from_str_radix(digits, radix).map(Token::Int).map_err(|_| format!("the number {digits} is too large"))
    }
}

/// The text that is left before a tag.
fn before_tag(text: &str, control: Control, variable: bool, line_starting: bool) -> &str {
    match control {
        Control::Strip => text.trim_end_matches(is_space),
        Control::Usual if !variable => {
            let line = text.rfind('\n').map_or(0, |at| at + 1);
            let indent = &text[line..];
            let blank = !indent.is_empty() && indent.chars().all(is_space);
            if (line > 0 || line_starting) && blank { &text[..line] } else { text }
        }
        _ => text,
    }
}

fn spaces(text: &str) -> usize {
    text.len() - text.trim_start_matches(is_space).len()
}

/// The length of `{% raw %}`, with the white space that its dash takes.
fn raw_begin(text: &str) -> Option<usize> {
    let mut at = 2;
    if !text.starts_with("{%") {
        return None;
    }
    at += usize::from(text[at..].starts_with(['-', '+']));
    at += spaces(&text[at..]);
    at += text[at..].strip_prefix("raw").map(|_| 3)?;
    at += spaces(&text[at..]);
    if text[at..].starts_with("-%}") {
        at += 3;
        return Some(at + spaces(&text[at..]));
    }
    text[at..].starts_with("%}").then_some(at + 2)
}

/// The length of `{% endraw %}`, and both its white space controls.
fn raw_end(text: &str) -> Option<(usize, Control, Control)> {
    let mut at = 2;
    let begin = match text.as_bytes().get(at) {
        Some(b'-') => Control::Strip,
        Some(b'+') => Control::Keep,
        _ => Control::Usual,
    };
    at += usize::from(begin != Control::Usual);
    at += spaces(&text[at..]);
    at += text[at..].strip_prefix("endraw").map(|_| 6)?;
    at += spaces(&text[at..]);
    for (ending, control) in [("+%}", Control::Keep), ("-%}", Control::Strip), ("%}", Control::Usual)] {
        if text[at..].starts_with(ending) {
            return Some((at + ending.len(), begin, control));
        }
    }
    None
}

/// Keeps track of open brackets: inside of them `}}` and `%}` do not end a tag.
fn balance(open: &mut Vec<char>, operator: &str) -> Result<(), String> {
    match operator {
        "{" => open.push('}'),
        "(" => open.push(')'),
        "[" => open.push(']'),
        "}" | ")" | "]" if open.pop().is_none_or(|expected| !operator.starts_with(expected)) => {
            return Err(format!("unexpected `{operator}`"));
        }
        _ => {}
    }
    Ok(())
}
