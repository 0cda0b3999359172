//! Requests that carry the server's own key, where it asks for one.

use grail_secrets::Secret;
use reqwest::ClientBuilder;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

/// The credential that requests carry: that of `--api-key`.
const KEY: &str = "--api-key";

/// A client whose requests carry the key among `credentials`, if there is one.
///
/// # Errors
/// When the client cannot be built.
pub fn keyed(client: ClientBuilder, credentials: &[(String, Secret)]) -> Result<reqwest::Client, reqwest::Error> {
    let key = credentials.iter().rev().find(|(flag, _)| flag == KEY);
    // Words of a command line that HTTP cannot carry are no key that the server could be asked with.
    let value = key.and_then(|(_, key)| HeaderValue::from_str(&format!("Bearer {}", key.reveal())).ok());
    let Some(mut value) = value else { return client.build() };
    value.set_sensitive(true);
    client.default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)])).build()
}
