//! Requests that carry the server's own keys, where it asks for them.

use grail_secrets::Secret;
use reqwest::ClientBuilder;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

/// The credential that requests carry: that of `--api-key`.
const KEY: &str = "--api-key";
/// The credential that SGLang asks of whoever changes its weights, where it has one; the other key opens nothing there then.
const ADMIN_KEY: &str = "--admin-api-key";

/// A client whose requests carry the key among `credentials`, if there is one.
///
/// # Errors
/// When the client cannot be built.
pub fn keyed(client: ClientBuilder, credentials: &[(String, Secret)]) -> Result<reqwest::Client, reqwest::Error> {
    let Some(value) = authorization(KEY, credentials) else { return client.build() };
    client.default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)])).build()
}

/// What authorises a change of weights in place of the client's own key, if there is something of the kind among `credentials`.
pub(crate) fn admin_authorization(credentials: &[(String, Secret)]) -> Option<HeaderValue> {
    authorization(ADMIN_KEY, credentials)
}

/// Words of a command line that HTTP cannot carry are no key that the server could be asked with.
fn authorization(wanted: &str, credentials: &[(String, Secret)]) -> Option<HeaderValue> {
    let (_, key) = credentials.iter().rev().find(|(flag, _)| flag == wanted)?;
    let mut value = HeaderValue::from_str(&format!("Bearer {}", key.reveal())).ok()?;
    value.set_sensitive(true);
    Some(value)
}
