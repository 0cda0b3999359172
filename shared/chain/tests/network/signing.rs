//! What is not understood is not signed, and reading goes on.

use std::io::Read;

use crate::common::{credentials, key, vectors};
use grail_chain::era::Era;
use grail_chain::extrinsic::{SigningError, Terms, call, set_commitment, sign};
use grail_chain::metadata::{Metadata, MetadataError};
use grail_chain::storage;
use scale_value::Value;

/// Runtime 218, with one name of the metadata replaced by another of the same length.
fn runtime(name: &str, other: &str) -> Metadata {
    assert_eq!(name.len(), other.len());
    let file = std::fs::File::open(vectors().join("chain/metadata_218_v14.scale.gz")).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    // A name stands behind its compact length.
    let encoded = |text: &str| [&[(text.len() as u8) << 2], text.as_bytes()].concat();
    let (wanted, replacement) = (encoded(name), encoded(other));
    let found: Vec<usize> = (0..bytes.len() - wanted.len()).filter(|at| bytes[*at..].starts_with(&wanted)).collect();
    assert!(!found.is_empty(), "{name} is in the metadata");
    found.into_iter().for_each(|at| bytes[at..at + wanted.len()].copy_from_slice(&replacement));
    Metadata::decode(&bytes).unwrap()
}

fn signed(metadata: &Metadata) -> Result<(), SigningError> {
    let terms = Terms {
        spec_version: 218,
        transaction_version: 1,
        genesis: [0x45; 32],
        era: Era::mortal(64, 1000),
        birth_hash: [1; 32],
        nonce: 7,
        tip: 0,
    };
    let call = set_commitment(metadata, 81, credentials('a').as_bytes())?;
    sign(metadata, &call, &terms, &key("//Alice")).map(|_| ())
}

#[test]
fn an_unknown_extension_that_carries_data_is_named_and_nothing_is_signed() {
    assert_eq!(signed(&runtime("CheckNonce", "CheckNonce")), Ok(()));
    let renamed = runtime("CheckNonce", "CheckNewer");
    assert_eq!(signed(&renamed), Err(SigningError::UnknownExtension("CheckNewer".into())));
    let arguments = [Value::u128(81), Value::from_bytes(key("//Alice").public_key())];
    assert!(storage::key(&renamed, "SubtensorModule", "Uids", &arguments).is_ok(), "reading goes on");
}

#[test]
fn an_unknown_extension_that_carries_nothing_contributes_nothing() {
    assert_eq!(signed(&runtime("CheckWeight", "CheckHeight")), Ok(()));
}

#[test]
fn a_known_extension_of_another_form_is_named() {
    // What is now called mortality carries a version, not an era and a hash.
    let wrong = runtime("CheckTxVersion", "CheckMortality");
    assert!(matches!(signed(&wrong), Err(SigningError::ChangedExtension { name, .. }) if name == "CheckMortality"));
}

#[test]
fn a_call_that_is_gone_or_changed_is_named() {
    let gone = runtime("set_commitment", "put_commitment");
    let missing = MetadataError::Missing { what: "call", name: "Commitments.set_commitment".into() };
    assert_eq!(signed(&gone), Err(SigningError::Metadata(missing)));
    let metadata = runtime("CheckNonce", "CheckNonce");
    let arguments = [("netuid", Value::u128(1 << 20)), ("info", grail_chain::commitment::info(b"x"))];
    let refused = call(&metadata, "Commitments", "set_commitment", &arguments).unwrap_err();
    assert!(refused.to_string().contains("netuid"), "{refused}");
    let long = set_commitment(&metadata, 81, &[b'x'; 129]).unwrap_err();
    assert!(matches!(&long, SigningError::Arguments { call, .. } if call == "Commitments.set_commitment"), "{long}");
}
