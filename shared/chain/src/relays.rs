//! drand over HTTP: relays in order, the first verified round wins (chain 10).

use std::time::Duration;

use crate::beacon::{CHAIN_HASH, Round, RoundError};
use crate::tls::{TlsError, client_config};

/// The public relays, in the reference's order.
pub const PUBLIC_RELAYS: [&str; 3] =
    ["https://api.drand.sh", "https://drand.cloudflare.com", "https://api.drand.secureweb3.com:6875"];
/// Time for one relay.
const RELAY_LIMIT: Duration = Duration::from_secs(10);
/// A round has about 250 bytes.
const ANSWER_BYTES: usize = 16 * 1024;

/// Why one relay gave no round.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// No connection, no answer, or an error of HTTP.
    #[error("{0}")]
    Http(String),
    /// An answer that is no round.
    #[error("its answer is not a round: {0}")]
    Form(String),
    /// A round that is not to be believed.
    #[error(transparent)]
    Round(#[from] RoundError),
}

/// No relay gave a round.
#[derive(Debug, thiserror::Error)]
#[error("no drand relay gave a round that verifies:{}", .0.iter().map(|(relay, error)| format!("\n  {relay}: {error}")).collect::<String>())]
pub struct NoBeacon(pub Vec<(String, RelayError)>);

/// The relays, and the client that asks them.
#[derive(Debug, Clone)]
pub struct Relays {
    client: reqwest::Client,
    addresses: Vec<String>,
}

impl Relays {
    /// Relays by address (`https://host[:port]`), asked in order.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(addresses: Vec<String>) -> Result<Self, TlsError> {
        let tls = client_config()?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.as_ref().clone())
            .timeout(RELAY_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| TlsError::Setup(error.to_string()))?;
        Ok(Self { client, addresses })
    }

    /// The round of now (`unix_seconds`) and its randomness, 64 hex digits, verified.
    ///
    /// # Errors
    /// When no relay gives one; what each did is in the error.
    pub async fn latest(&self, unix_seconds: impl Fn() -> f64) -> Result<(u64, String), NoBeacon> {
        let mut errors = Vec::new();
        for address in &self.addresses {
            match self.ask(address, &unix_seconds).await {
                Ok(found) => return Ok(found),
                Err(error) => errors.push((address.clone(), error)),
            }
        }
        Err(NoBeacon(errors))
    }

    async fn ask(&self, address: &str, unix_seconds: &impl Fn() -> f64) -> Result<(u64, String), RelayError> {
        let http = |error: reqwest::Error| RelayError::Http(error.without_url().to_string());
        let url = format!("{}/{CHAIN_HASH}/public/latest", address.trim_end_matches('/'));
        let mut response = self.client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(http)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(http)? {
            if body.len() + chunk.len() > ANSWER_BYTES {
                return Err(RelayError::Form(format!("it has more than {ANSWER_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        let round: Round = serde_json::from_slice(&body).map_err(|error| RelayError::Form(error.to_string()))?;
        let randomness = round.verified_at(unix_seconds())?;
        Ok((round.round, randomness))
    }
}
