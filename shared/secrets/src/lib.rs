//! What must never be shown, as types: a value as a whole ([`Secret`]), the parts of an address that let somebody in ([`Address`]),
//! words of a command line ([`Words`]). None of them has a `Display` or `Debug` that tells more than may be told; whoever needs the
//! whole says `reveal`, which is easy to look for. [`Filter`] takes what is known to be secret out of texts that others wrote: a
//! server prints its own command line, a library its address.

mod address;
mod filter;
mod words;

use std::fmt;

pub use address::{Address, shown_addresses};
pub use filter::Filter;
pub use words::{Words, speaks_of_secret};

/// What stands in the place of a secret.
pub const HIDDEN: &str = "(hidden)";

/// A text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// Whether a text is long and mixed enough to be a key of its own; shorter ones are words that stand in any text.
fn looks_like_a_key(text: &str) -> bool {
    (text.len() >= 8 && text.bytes().any(|byte| byte.is_ascii_digit())) || text.len() >= 20
}
