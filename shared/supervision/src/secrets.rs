//! The last net below the types: whatever this process writes passes here, because what others say (a server's own command line, a
//! library's error) is in none of our types. It knows what the settings and the environment hold, from the moment they are read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::OnceLock;

use grail_secrets::{Filter, speaks_of_secret};
use serde_json::Value;

/// Shorter values of variables with telling names are no keys: `true`, `8192`.
const SHORTEST_OF_ENVIRONMENT: usize = 8;

static KNOWN: OnceLock<Filter> = OnceLock::new();

/// Everything that is secret on this host, as far as settings and environment tell.
pub fn of_host(settings: impl IntoIterator<Item = String>, environment: &BTreeMap<String, String>) -> Filter {
    Filter::new(settings.into_iter().chain(of_environment(environment)))
}

/// From now on what is known is taken out of everything that this process writes. The first word counts.
pub fn know(filter: Filter) {
    let _ = KNOWN.set(filter);
}

/// The bytes as they may leave the process.
pub fn clean(bytes: &[u8]) -> Cow<'_, [u8]> {
    KNOWN.get().map_or(Cow::Borrowed(bytes), |filter| filter.clean(bytes))
}

/// The text as it may leave the process.
pub fn clean_text(text: &str) -> Cow<'_, str> {
    match clean(text.as_bytes()) {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// Data as it may leave the process. Where nothing of it is known, which is the rule, it is not touched.
pub fn clean_value(value: Value) -> Value {
    let text = value.to_string();
    match clean_text(&text) {
        Cow::Borrowed(_) => value,
        Cow::Owned(cleaned) => serde_json::from_str(&cleaned).unwrap_or(Value::Null),
    }
}

/// A writer whose lines pass the net. What writes here writes a whole line at once.
pub struct Redacting<W>(pub W);

impl<W: Write> Write for Redacting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(&clean(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn of_environment(environment: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    // A path or a number under such a name is the place of a key or a count of tokens.
    let a_value = |value: &&str| {
        value.len() >= SHORTEST_OF_ENVIRONMENT && !value.starts_with('/') && !value.bytes().all(|byte| byte.is_ascii_digit())
    };
    let named = environment.iter().filter(|(name, _)| speaks_of_secret(name)).map(|(_, value)| value.trim());
    named.filter(a_value).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_with_telling_names_are_known_and_no_others() {
        let variables = [
            ("HF_TOKEN", "c4n4ry-hf"),
            ("WANDB_API_KEY", " c4n4ry-wandb "),
            ("MAX_TOKENS", "c4n4ry-no"),
            ("SSH_KEY", "/home/miner/.ssh/id"),
            ("SOME_TOKEN", "12345678"),
            ("ANOTHER_KEY", "true"),
        ];
        let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut found: Vec<String> = of_environment(&environment).collect();
        found.sort();
        assert_eq!(found, ["c4n4ry-hf", "c4n4ry-wandb"]);
    }
}
