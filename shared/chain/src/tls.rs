//! TLS as every outgoing connection here uses it: the host's certificates, one provider of cryptography.

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

/// TLS cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// No certificate authority is known, so no server can be believed.
    #[error("this host has no certificate authorities ({0}); install the package ca-certificates")]
    NoRoots(String),
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// A configuration with the host's certificate authorities.
///
/// # Errors
/// When there are none.
pub fn client_config() -> Result<Arc<ClientConfig>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (known, _) = roots.add_parsable_certificates(found.certs);
    if known == 0 {
        let reason = found.errors.first().map_or_else(|| "none were found".into(), ToString::to_string);
        return Err(TlsError::NoRoots(reason));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| TlsError::Setup(error.to_string()))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
