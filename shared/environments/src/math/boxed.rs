//! The answer in a worked solution: `\boxed{…}` with balanced braces.

const OPEN: &str = "\\boxed{";

/// The content of the first `\boxed{`; none where there is none, or its braces are not closed.
pub fn first_boxed(text: &str) -> Option<&str> {
    content(&text[text.find(OPEN)? + OPEN.len()..])
}

/// The content of the last `\boxed{`; none where there is none, or its braces are not closed.
pub fn last_boxed(text: &str) -> Option<&str> {
    content(&text[text.rfind(OPEN)? + OPEN.len()..])
}

/// What stands before the brace that closes. A backslash before a brace changes nothing.
fn content(text: &str) -> Option<&str> {
    let mut depth = 1_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[..at]);
        }
    }
    None
}
