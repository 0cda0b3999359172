//! The tokens of a text, as Python 3.11's `tokenize` finds them and sympy's transformations and the compiler read them.
//!
//! The text is normalised before: it has no white space, and no upper case. A text that cannot be compiled, whatever it
//! stands for, [`Stop::Fails`]; what is not known for certain is [`Stop::NotCovered`].

use super::Stop;

/// Longest text that is taken apart.
const MAX_BYTES: usize = 100_000;
/// Operators and punctuation, longer before shorter. Those of assignments never stand in an expression.
const OPERATORS: [&str; 45] = [
    "**=", "//=", ">>=", "<<=", "...", "!=", "->", ":=", "**", "//", "<<", ">>", "<=", ">=", "==", "+=", "-=", "*=", "/=", "%=",
    "&=", "|=", "^=", "@=", "+", "-", "*", "/", "%", "&", "|", "^", "~", "<", ">", "(", ")", "[", "]", "{", "}", ",", ":", ".",
    "=",
];
/// What a string may begin with before its quote.
const STRING_PREFIXES: [&str; 9] = ["b", "br", "f", "fr", "r", "rb", "rf", "u", ""];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Number(&'a str),
    Name(&'a str),
    Text,
    Operator(&'static str),
    /// One `!` or two: what stands before becomes the argument of a factorial.
    Factorial(usize),
}

/// Whether `\w` matches the character in Python's `re`; none where versions of Unicode may differ.
pub(super) fn is_word(character: char) -> Option<bool> {
    if character.is_ascii() {
        return Some(character.is_ascii_alphanumeric() || character == '_');
    }
    is_certain(character).then(|| character.is_alphanumeric())
}

/// Blocks in which Rust and Python 3.11 agree which characters are letters and numbers (compared one by one).
fn is_certain(character: char) -> bool {
    matches!(u32::from(character),
        0x80..=0x344 | 0x370..=0x379 | 0x37B..=0x482 | 0x48A..=0x52F | 0x2000..=0x218B | 0x2190..=0x24B5 | 0x2500..=0x27FF | 0x2900..=0x2BFF
        | 0x3000..=0x3020 | 0x3041..=0x3096 | 0x309D..=0x30FF | 0x4E00..=0x9FA5 | 0xAC00..=0xD7A3 | 0xFF01..=0xFF5E
        | 0x1D400..=0x1D7FF | 0x1F300..=0x1F64F)
}

/// Whether a name may begin with the word character. Numbers of other scripts and raised ones may not.
fn begins_name(character: char) -> bool {
    character.is_alphabetic() || character == '_'
}

pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Stop> {
    let has_quote = text.contains(['\'', '"']);
    if text.contains('\\') && !has_quote && !text.contains('#') {
        return Err(Stop::Fails);
    }
    if text.len() > MAX_BYTES {
        return Err(Stop::NotCovered);
    }
    let mut found = Vec::new();
    let mut rest = text;
    // A comment goes to the end of the text, which has one line.
    while let Some(first) = rest.chars().next().filter(|first| *first != '#') {
        let (token, length) = match first {
            '\'' | '"' => quoted(rest, text)?,
            '!' if !rest.starts_with("!=") => factorial(rest)?,
            '$' | '?' | '`' | '\\' => return Err(Stop::Fails),
            _ => match number_length(rest) {
                0 => name_or_operator(rest)?,
                length => (Token::Number(&rest[..length]), length),
            },
        };
        found.push(token);
        rest = &rest[length..];
    }
    Ok(found)
}

fn name_or_operator(rest: &str) -> Result<(Token<'_>, usize), Stop> {
    let mut length = 0;
    for character in rest.chars() {
        if !is_word(character).ok_or(Stop::NotCovered)? {
            break;
        }
        length += character.len_utf8();
    }
    let (name, behind) = rest.split_at(length);
    if name.is_empty() {
        // Another character can stand in no expression.
        let operator = OPERATORS.into_iter().find(|operator| rest.starts_with(operator)).ok_or(Stop::Fails)?;
        return Ok((Token::Operator(operator), operator.len()));
    }
    if !name.starts_with(begins_name) {
        return Err(Stop::Fails);
    }
    if behind.starts_with(['\'', '"']) && STRING_PREFIXES.contains(&name) {
        return Err(Stop::NotCovered);
    }
    Ok((Token::Name(name), length))
}

/// A string without escapes. A quote that stands alone can be closed by nothing.
fn quoted<'a>(rest: &'a str, text: &str) -> Result<(Token<'a>, usize), Stop> {
    let quote = &rest[..1];
    let closed = rest[1..].find(quote).map(|at| at + 2);
    match closed {
        _ if rest.starts_with("'''") || rest.starts_with("\"\"\"") || text.contains(['\\', '#']) => Err(Stop::NotCovered),
        Some(length) => Ok((Token::Text, length)),
        None if text.matches(['\'', '"']).count() == 1 => Err(Stop::Fails),
        None => Err(Stop::NotCovered),
    }
}

fn factorial(rest: &str) -> Result<(Token<'_>, usize), Stop> {
    let mut marks = rest.len() - rest.trim_start_matches('!').len();
    if rest[marks..].starts_with('=') {
        marks -= 1;
    }
    if marks > 2 { Err(Stop::Fails) } else { Ok((Token::Factorial(marks), marks)) }
}

/// Bytes of the number that the text begins with, 0 if it begins with none.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let real = real_length(bytes);
    // `1j` is imaginary, `0j` too, which is no decimal otherwise: any digits will do before the j.
    let imaginary = real.max(digits_length(bytes));
    if imaginary > 0 && bytes.get(imaginary) == Some(&b'j') { imaginary + 1 } else { real }
}

fn real_length(bytes: &[u8]) -> usize {
    let whole = digits_length(bytes);
    let fraction = match bytes.get(whole) {
        Some(b'.') => {
            let digits = digits_length(&bytes[whole + 1..]);
            if whole + digits == 0 { 0 } else { 1 + digits }
        }
        _ => 0,
    };
    let mantissa = whole + fraction;
    if mantissa == 0 {
        return 0;
    }
    if let Some(b'e') = bytes.get(mantissa) {
        let sign = usize::from(matches!(bytes.get(mantissa + 1), Some(b'+' | b'-')));
        let digits = digits_length(&bytes[mantissa + 1 + sign..]);
        if digits > 0 {
            return mantissa + 1 + sign + digits;
        }
    }
    if fraction > 0 { mantissa } else { integer_length(bytes, whole) }
}

/// Digits with single underscores between them.
fn digits_length(bytes: &[u8]) -> usize {
    grouped_length(bytes, |byte| byte.is_ascii_digit())
}

fn grouped_length(bytes: &[u8], is_digit: impl Fn(u8) -> bool) -> usize {
    let mut length = 0;
    loop {
        let underscore = usize::from(length > 0 && bytes.get(length) == Some(&b'_'));
        match bytes.get(length + underscore) {
            Some(byte) if is_digit(*byte) => length += underscore + 1,
            _ => return length,
        }
    }
}

/// A whole number: of base 2, 8, 16, or a decimal one that begins with 0 only if it is 0.
fn integer_length(bytes: &[u8], whole: usize) -> usize {
    let is_digit: fn(u8) -> bool = match bytes {
        [b'0', b'x', ..] => |byte| byte.is_ascii_hexdigit(),
        [b'0', b'b', ..] => |byte| matches!(byte, b'0' | b'1'),
        [b'0', b'o', ..] => |byte| matches!(byte, b'0'..=b'7'),
        [b'0', ..] => return grouped_length(bytes, |byte| byte == b'0'),
        _ => return whole,
    };
    let underscore = usize::from(bytes.get(2) == Some(&b'_'));
    match grouped_length(&bytes[2 + underscore..], is_digit) {
        0 => 1,
        digits => 2 + underscore + digits,
    }
}
