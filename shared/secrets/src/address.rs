//! Addresses as `scheme://host:port`. User, path, query and fragment are where providers put their keys
//! (`wss://host/v1/<key>`, `https://user:password@host`, `?apikey=<key>`), so none of them is shown.

use std::fmt;

use super::{HIDDEN, looks_like_a_key};

/// An address whose `Display` and `Debug` show scheme, host and port only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Address(String);

/// The pieces of an address.
struct Parts<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    host: &'a str,
    /// From the first slash, question mark or number sign on.
    tail: &'a str,
}

impl Address {
    /// Wraps an address.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The whole of it, for whoever connects.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether what is shown is all there is.
    pub fn is_plain(&self) -> bool {
        self.to_string() == self.0.trim_end_matches('/')
    }

    /// Every piece that a text must not hold, the whole first; none of a plain address.
    pub fn secrets(&self) -> Vec<String> {
        if self.is_plain() {
            return Vec::new();
        }
        let mut found = vec![self.0.clone()];
        let Some(parts) = Parts::of(&self.0) else { return found };
        if let Some(user) = parts.user {
            found.push(user.to_owned());
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            found.extend([name].into_iter().filter(|name| looks_like_a_key(name)).map(str::to_owned));
            found.extend([password].into_iter().filter(|password| password.len() >= 6).map(str::to_owned));
        }
        if parts.tail.len() >= 8 {
            found.push(parts.tail.to_owned());
        }
        let pieces = parts.tail.split(['/', '?', '&', '#', '=']).filter(|piece| looks_like_a_key(piece));
        found.extend(pieces.map(str::to_owned));
        found
    }

    /// `text` with this address, and every key in it, as they may be shown: what a library says of a connection may name it.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        let whole = text.replace(&self.0, &self.to_string());
        self.secrets().iter().fold(whole, |text, secret| text.replace(secret.as_str(), HIDDEN))
    }
}

impl<'a> Parts<'a> {
    /// `None` where nobody can tell which part of it is the host.
    fn of(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let tail = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(tail);
        // A password with a slash in it looks like a path, and what comes before it like a host.
        if tail.contains('@') || scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        Some(Self { scheme, user, host, tail })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Parts::of(self.0.trim()) {
            Some(Parts { scheme, host, tail, .. }) => {
                let rest = if tail.trim_matches('/').is_empty() { "" } else { "/…" };
                write!(formatter, "{scheme}://{host}{rest}")
            }
            None if self.0.is_empty() => Ok(()),
            None => formatter.write_str(HIDDEN),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{self}\"")
    }
}

impl From<String> for Address {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A text that consists of addresses, such as a setting or a list of TOML, with each as it may be shown.
pub fn shown_addresses(text: &str) -> String {
    let separator = |letter: char| letter.is_whitespace() || ",[]\"'".contains(letter);
    let mut shown = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(separator).unwrap_or(rest.len());
        if end > 0 {
            shown.push_str(&Address::from(&rest[..end]).to_string());
        }
        let next = rest[end..].find(|letter| !separator(letter)).map_or(rest.len(), |length| end + length);
        shown.push_str(&rest[end..next]);
        rest = &rest[next..];
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_host_and_port_are_all_that_is_shown() {
        for (whole, shown) in [
            ("wss://entrypoint-finney.opentensor.ai:443", "wss://entrypoint-finney.opentensor.ai:443"),
            ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
            ("wss://node.example/v1/c4n4ry", "wss://node.example/…"),
            ("wss://node.example?apikey=c4n4ry", "wss://node.example/…"),
            ("wss://node.example/#c4n4ry", "wss://node.example/…"),
            ("https://user:c4n4ry@host:9000/x", "https://host:9000/…"),
            ("https://c4n4ry@host", "https://host"),
            ("https://user:c4/n4ry@host", HIDDEN),
            ("https://user:c4?n4ry@host", HIDDEN),
            ("user:c4n4ry@host", HIDDEN),
            ("c4n4ry", HIDDEN),
            ("", ""),
        ] {
            let address = Address::from(whole);
            assert_eq!((address.to_string(), format!("{address:?}")), (shown.to_owned(), format!("\"{shown}\"")), "{whole}");
            assert_eq!(address.is_plain(), !whole.contains("c4"), "{whole}");
            assert_eq!(address.reveal(), whole);
        }
        let both = "[\"wss://a/c4n4ry\", 'wss://b:443'] ";
        assert_eq!(shown_addresses(both), "[\"wss://a/…\", 'wss://b:443'] ");
        assert_eq!(shown_addresses("wss://a/c4,c4n4ry"), format!("wss://a/…,{HIDDEN}"));
    }

    #[test]
    fn what_others_say_of_it_is_cleaned() {
        let address = Address::from("wss://user:pass-w0rd@node.example:443/v1/c4n4ry-0001?key=c4n4ry-0002");
        for text in [
            "cannot connect to wss://user:pass-w0rd@node.example:443/v1/c4n4ry-0001?key=c4n4ry-0002: refused",
            "GET /v1/c4n4ry-0001?key=c4n4ry-0002 gave 401",
            "key c4n4ry-0002 and c4n4ry-0001 of pass-w0rd",
        ] {
            let cleaned = address.clean(text);
            assert!(!cleaned.contains("c4n4ry") && !cleaned.contains("w0rd"), "{cleaned}");
        }
        assert!(address.clean("version v1 of the user").contains("version v1 of the user"), "words of every text stay");
        assert!(Address::from("wss://node.example:443/").secrets().is_empty());
    }
}
