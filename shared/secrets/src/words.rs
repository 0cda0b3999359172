//! Words of a command line, such as the operator's own for a generation server: shown, save what is or may be a secret.

use std::fmt;

use super::{Address, HIDDEN, Secret, looks_like_a_key};

/// Words of a command line, whose `Display` and `Debug` hide values of flags that speak of secrets, and what looks like one.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Words(Vec<String>);

impl Words {
    /// Wraps words.
    pub fn new(words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self(words.into_iter().map(Into::into).collect())
    }

    /// The words themselves, for the program they are meant for.
    pub fn reveal(&self) -> &[String] {
        &self.0
    }

    /// Each word as it may be shown.
    pub fn shown(&self) -> Vec<String> {
        let mut of_secret = false;
        let mut shown = Vec::with_capacity(self.0.len());
        for word in &self.0 {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) if name.starts_with('-') => (Some(name), Some(value)),
                _ if word.starts_with('-') && word.parse::<f64>().is_err() => (Some(word.as_str()), None),
                _ => (None, Some(word.as_str())),
            };
            if let Some(name) = name {
                of_secret = speaks_of_secret(name);
            }
            let value = value.map(|value| if of_secret { HIDDEN.to_owned() } else { shown_value(value) });
            shown.push(match (name, value) {
                (Some(name), Some(value)) => format!("{name}={value}"),
                (Some(name), None) => name.to_owned(),
                (None, value) => value.unwrap_or_default(),
            });
        }
        shown
    }

    /// Flags whose one value lets somebody in, each with it; and the other words.
    pub fn without_credentials(&self) -> (Vec<(String, Secret)>, Words) {
        let (mut credentials, mut rest) = (Vec::new(), Vec::new());
        let mut words = self.0.iter().peekable();
        while let Some(word) = words.next() {
            let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
            let lets_in = name.starts_with("--") && is_credential(name);
            match value {
                Some(value) if lets_in => credentials.push((name.to_owned(), Secret::new(value))),
                None if lets_in => {
                    let mut values: Vec<&String> = Vec::new();
                    while let Some(value) = words.next_if(|next| !next.starts_with("--")) {
                        values.push(value);
                    }
                    match values[..] {
                        [value] => credentials.push((name.to_owned(), Secret::new(value))),
                        _ => rest.extend([word].into_iter().chain(values).cloned()),
                    }
                }
                _ => rest.push(word.clone()),
            }
        }
        (credentials, Words(rest))
    }

    /// Every value that is not shown.
    pub fn secrets(&self) -> Vec<String> {
        let of_word = |(word, shown): (&String, String)| {
            let value = word.split_once('=').filter(|(name, _)| name.starts_with('-')).map_or(word.as_str(), |(_, value)| value);
            let address = Address::from(value).secrets();
            let whole = (*word != shown && value != HIDDEN).then(|| value.to_owned());
            if value.contains("://") { address } else { whole.into_iter().collect() }
        };
        self.0.iter().zip(self.shown()).flat_map(of_word).collect()
    }
}

impl fmt::Display for Words {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown().join(" "))
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(formatter)
    }
}

fn shown_value(value: &str) -> String {
    if value.contains("://") {
        return Address::from(value).to_string();
    }
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
    let a_key = value.len() >= 20 && looks_like_a_key(value) && value.chars().all(plain) && value.contains(char::is_alphabetic);
    // JSON and the like are hidden as a whole where a field of theirs speaks of one.
    let a_field = value.contains(['{', '"']) && value.split(|letter| !plain(letter)).any(speaks_of_secret);
    if a_key || a_field { HIDDEN.into() } else { value.into() }
}

/// Whether the name of a flag, field or variable says that its value is secret: `--api-key`, `HF_TOKEN`, and not `--tokenizer`,
/// `MAX_TOKENS`.
pub fn speaks_of_secret(name: &str) -> bool {
    const WORDS: [&str; 6] = ["key", "secret", "token", "password", "mnemonic", "seed"];
    const MORE: [&str; 6] = ["keys", "secrets", "passwd", "passphrase", "credential", "credentials"];
    let lower = name.to_ascii_lowercase();
    let mut parts = lower.split(|letter: char| !letter.is_ascii_alphanumeric());
    parts.any(|part| WORDS.iter().any(|word| part.ends_with(word)) || MORE.contains(&part))
}

/// Of what speaks of a secret, what lets somebody in: a seed of random numbers does not.
fn is_credential(name: &str) -> bool {
    speaks_of_secret(name) && !name.to_ascii_lowercase().ends_with("seed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_told_from_other_words() {
        let words = "--api-key k1 --x 1 --admin-api-key=k2 --random-seed 7 --hf-token a b --tokenizer t --api-key";
        let (credentials, rest) = Words::new(words.split(' ')).without_credentials();
        let credentials: Vec<_> = credentials.iter().map(|(name, value)| format!("{name} {}", value.reveal())).collect();
        assert_eq!(credentials, ["--api-key k1", "--admin-api-key k2"]);
        assert_eq!(rest.reveal().join(" "), "--x 1 --random-seed 7 --hf-token a b --tokenizer t --api-key");
    }

    #[test]
    fn values_that_are_or_may_be_secrets_are_hidden() {
        let given = "--api-key c4n4ry-1 --mem 0.8 --hf-token=c4n4ry-2 --shift -1 --model Qwen/Qwen2.5-7B --max-total-tokens 4096 \
                     --metrics http://user:c4n4ry-3@host:1/c4n4ry-44 --who sk0123456789c4n4ry0123456789 --json {\"api_key\":\"c4n4ry-5\"} \
                     --tokenizer-mode auto --config {\"method\":\"ngram\"}";
        let words = Words::new(given.split_whitespace());
        let shown = "--api-key (hidden) --mem 0.8 --hf-token=(hidden) --shift -1 --model Qwen/Qwen2.5-7B --max-total-tokens 4096 \
                     --metrics http://host:1/… --who (hidden) --json (hidden) --tokenizer-mode auto --config {\"method\":\"ngram\"}";
        assert_eq!(words.to_string(), shown);
        assert!(!format!("{words:?}").contains("c4n4ry"));
        assert_eq!(words.reveal().join(" "), given.split_whitespace().collect::<Vec<_>>().join(" "));
        let secrets = words.secrets();
        for secret in ["c4n4ry-1", "c4n4ry-2", "user:c4n4ry-3", "c4n4ry-44", "sk0123456789c4n4ry0123456789"] {
            assert!(secrets.iter().any(|found| found == secret), "{secret} is missing in {secrets:?}");
        }
        assert!(secrets.iter().all(|secret| secret.contains("c4n4ry")), "{secrets:?}");
    }
}
