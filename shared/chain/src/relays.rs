//! drand over HTTP: relays in order, the first verified round wins (chain 10).

use std::time::Duration;

use bytes::Bytes;
use grail_process::with_causes;
use grail_secrets::Address;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

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
pub struct NoBeacon(pub Vec<(Address, RelayError)>);

/// The relays, and the client that asks them.
#[derive(Debug, Clone)]
pub struct Relays {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    addresses: Vec<Address>,
}

impl Relays {
    /// Relays by address (`https://host[:port]`), asked in order.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(addresses: Vec<impl Into<Address>>) -> Result<Self, TlsError> {
        let tls = client_config()?.as_ref().clone();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, addresses: addresses.into_iter().map(Into::into).collect() })
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

    async fn ask(&self, address: &Address, unix_seconds: &impl Fn() -> f64) -> Result<(u64, String), RelayError> {
        let late = |_| RelayError::Http(format!("no answer within {} s", RELAY_LIMIT.as_secs()));
        let body = tokio::time::timeout(RELAY_LIMIT, self.get(address)).await.map_err(late)??;
        let round: Round = serde_json::from_slice(&body).map_err(|error| RelayError::Form(error.to_string()))?;
        let randomness = round.verified_at(unix_seconds())?;
        Ok((round.round, randomness))
    }

    async fn get(&self, address: &Address) -> Result<Bytes, RelayError> {
        let http = |error: &dyn std::fmt::Display| RelayError::Http(address.clean(&error.to_string()));
        let url = format!("{}/{CHAIN_HASH}/public/latest", address.reveal().trim_end_matches('/'));
        let url = url.parse().map_err(|error| http(&error))?;
        let response = self.client.get(url).await.map_err(|error| http(&with_causes(&error)))?;
        if !response.status().is_success() {
            return Err(http(&response.status()));
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        Ok(body.map_err(|error| RelayError::Form(format!("{error} ({ANSWER_BYTES} bytes)")))?.to_bytes())
    }
}
