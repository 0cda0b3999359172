//! Takes known secrets out of texts.

use std::borrow::Cow;

use memchr::memmem;

use super::HIDDEN;

/// Shorter values are no secrets, and hiding them would garble every text.
const SHORTEST: usize = 4;

/// Knows secrets, and takes them out of what is about to be written.
#[derive(Clone, Default)]
pub struct Filter {
    /// Longest first, so that a secret that is part of another does not leave the rest of it.
    secrets: Vec<Vec<u8>>,
}

impl Filter {
    /// Knows these values, plain and as JSON writes them.
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let long = |secret: &String| secret.len() >= SHORTEST;
        let plain: Vec<String> = secrets.into_iter().filter(long).collect();
        // In JSON a secret may stand with its quotes and backslashes escaped.
        let escaped = plain.iter().filter_map(|secret| {
            let text = serde_json::to_string(secret).ok()?;
            Some(text.strip_prefix('"')?.strip_suffix('"')?.to_owned())
        });
        let mut secrets: Vec<Vec<u8>> = escaped.chain(plain.iter().cloned()).map(String::into_bytes).collect();
        secrets.sort_by(|one, other| other.len().cmp(&one.len()).then(one.cmp(other)));
        secrets.dedup();
        Self { secrets }
    }

    /// The bytes without any of them.
    pub fn clean<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let mut cleaned = Cow::Borrowed(bytes);
        for secret in &self.secrets {
            if memmem::find(&cleaned, secret).is_some() {
                cleaned = Cow::Owned(replace(&cleaned, secret));
            }
        }
        cleaned
    }

    /// Whether any of them is there.
    pub fn finds_any(&self, bytes: &[u8]) -> bool {
        self.secrets.iter().any(|secret| memmem::find(bytes, secret).is_some())
    }
}

fn replace(bytes: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut cleaned = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(place) = memmem::find(rest, secret) {
        cleaned.extend_from_slice(&rest[..place]);
        cleaned.extend_from_slice(HIDDEN.as_bytes());
        rest = &rest[place + secret.len()..];
    }
    cleaned.extend_from_slice(rest);
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_within_another_leaves_nothing_behind() {
        let filter = Filter::new(["abcd", "abcdefgh", "xy", "a\"b\\c"].map(str::to_owned));
        assert_eq!(filter.clean(b"1 abcdefgh 2 abcd 3 xy"), b"1 (hidden) 2 (hidden) 3 xy".as_slice());
        assert_eq!(filter.clean(br#"{"x":"a\"b\\c"}"#), br#"{"x":"(hidden)"}"#.as_slice());
        assert!(matches!(filter.clean(b"nothing"), Cow::Borrowed(_)));
        assert!(filter.finds_any(b"-abcd-") && !filter.finds_any(b"xy"));
    }
}
