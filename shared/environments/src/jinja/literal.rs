//! Literals of Jinja and Python: strings with escapes, integers, floats.

/// The length of the quoted string at the start of `text`, quotes included.
pub(super) fn quoted(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Python's `text.encode("ascii", "backslashreplace").decode("unicode-escape")`.
pub(super) fn unescape(text: &str) -> Result<String, String> {
    let mut ascii = String::with_capacity(text.len());
    for character in text.chars() {
        match u32::from(character) {
            0..=0x7f => ascii.push(character),
            code @ 0x80..=0xff => ascii.push_str(&format!("\\x{code:02x}")),
            code @ 0x100..=0xffff => ascii.push_str(&format!("\\u{code:04x}")),
            code => ascii.push_str(&format!("\\U{code:08x}")),
        }
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = ascii.as_str();
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        rest = escape(&rest[at + 1..], &mut plain)?;
    }
    plain.push_str(rest);
    Ok(plain)
}

/// Takes one escape (after its backslash) off `text`.
fn escape<'a>(text: &'a str, plain: &mut String) -> Result<&'a str, String> {
    let Some(first) = text.chars().next() else { return Err("a string ends with a backslash".to_owned()) };
    let simple = match first {
        '\n' => None,
        '\\' => Some('\\'),
        '\'' => Some('\''),
        '"' => Some('"'),
        'a' => Some('\u{7}'),
        'b' => Some('\u{8}'),
        'f' => Some('\u{c}'),
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'v' => Some('\u{b}'),
        'x' => return code(text, 2, plain),
        'u' => return code(text, 4, plain),
        'U' => return code(text, 8, plain),
        'N' => return Err("a string names a character by \\N, which is not supported".to_owned()),
        '0'..='7' => {
            let length = text.bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
            let value = u32::from_str_radix(&text[..length], 8).ok().and_then(char::from_u32);
            plain.push(value.ok_or_else(|| "a string has an escape that is no character".to_owned())?);
            return Ok(&text[length..]);
        }
        other => {
            plain.push('\\');
            Some(other)
        }
    };
    plain.extend(simple);
    Ok(&text[first.len_utf8()..])
}

fn code<'a>(text: &'a str, digits: usize, plain: &mut String) -> Result<&'a str, String> {
    let hex = text.get(1..1 + digits).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let value = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
    plain.push(value.ok_or_else(|| format!("a string has a \\{} that is no character", &text[..1]))?);
    Ok(&text[1 + digits..])
}

/// The length of `\d` with single underscores between them.
fn digits(text: &str) -> usize {
    run(text, |byte| byte.is_ascii_digit(), false)
}

/// The length of a run of digits with single underscores between (`leading`: also before) them.
fn run(text: &str, digit: impl Fn(u8) -> bool, leading: bool) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        let underscore = usize::from(bytes.get(at) == Some(&b'_') && (at > 0 || leading));
        if !bytes.get(at + underscore).is_some_and(|byte| digit(*byte)) {
            return at;
        }
        at += underscore + 1;
    }
}

/// The length of the float literal at the start of `text`.
pub(super) fn float(text: &str) -> Option<usize> {
    let whole = digits(text);
    if whole == 0 {
        return None;
    }
    let fraction = text[whole..].strip_prefix('.').map_or(0, digits);
    let mantissa = whole + if fraction > 0 { fraction + 1 } else { 0 };
    let exponent = text[mantissa..].strip_prefix(['e', 'E']).and_then(|rest| {
        let sign = usize::from(rest.starts_with(['+', '-']));
        let length = digits(&rest[sign..]);
        (length > 0).then_some(1 + sign + length)
    });
    match exponent {
        Some(exponent) => Some(mantissa + exponent),
        None => (fraction > 0).then_some(mantissa),
    }
}

/// The length of the integer literal at the start of `text`, and its radix.
pub(super) fn integer(text: &str) -> Option<(usize, u32)> {
    for (prefix, radix) in [("0b", 2), ("0o", 8), ("0x", 16)] {
        if text.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix)) {
            let length = run(&text[2..], |byte| char::from(byte).is_digit(radix), true);
            if length > 0 {
                return Some((2 + length, radix));
            }
        }
    }
    let zeros = text.starts_with('0');
    let length = run(text, |byte| if zeros { byte == b'0' } else { byte.is_ascii_digit() }, false);
    (length > 0).then_some((length, 10))
}
