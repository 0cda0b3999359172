//! A runtime version with its metadata, as a node gives it.

use std::sync::Arc;

use parity_scale_codec::Decode;
use serde_json::{Value, json};

use super::error::NodeError;
use super::session::Session;
use crate::metadata::Metadata;

/// The version of metadata that is asked for first; older runtimes have 14 only.
const NEWEST_METADATA: u32 = 16;

/// A runtime version with its metadata.
#[derive(Debug)]
pub struct Runtime {
    /// specVersion.
    pub spec_version: u32,
    /// transactionVersion.
    pub transaction_version: u32,
    /// What the runtime says of itself.
    pub metadata: Metadata,
}

/// specVersion and transactionVersion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Versions {
    pub spec: u32,
    pub transaction: u32,
}

/// Reads the answer of `state_getRuntimeVersion`, which is also the notification of its subscription.
pub(crate) fn versions(answer: &Value) -> Result<Versions, NodeError> {
    let number = |name: &str| {
        let number = answer[name].as_u64().and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| NodeError::answer("state_getRuntimeVersion", format!("{name} is missing")))
    };
    Ok(Versions { spec: number("specVersion")?, transaction: number("transactionVersion")? })
}

/// Asks for the version at a block, or at the best one.
pub(crate) async fn versions_at(session: &Session, at: Option<&str>) -> Result<Versions, NodeError> {
    versions(&session.request("state_getRuntimeVersion", json!(at.into_iter().collect::<Vec<_>>())).await?)
}

/// Fetches the metadata of the runtime at a block, or at the best one.
pub(crate) async fn fetch(session: &Session, versions: Versions, at: Option<&str>) -> Result<Arc<Runtime>, NodeError> {
    let newest = newest_metadata(session, at).await?;
    let bytes = match newest {
        Some(bytes) => bytes,
        None => bytes_of(
            "state_getMetadata",
            &session.request("state_getMetadata", json!(at.into_iter().collect::<Vec<_>>())).await?,
        )?,
    };
    // A third of a megabyte is decoded: not on a thread that serves everything else.
    let decoded = tokio::task::spawn_blocking(move || Metadata::decode(&bytes)).await;
    let metadata = decoded.map_err(|error| NodeError::answer("state_getMetadata", error.to_string()))??;
    Ok(Arc::new(Runtime { spec_version: versions.spec, transaction_version: versions.transaction, metadata }))
}

/// `None` where the runtime has no such version, or no way to ask for one.
async fn newest_metadata(session: &Session, at: Option<&str>) -> Result<Option<Vec<u8>>, NodeError> {
    let version = format!("0x{}", hex::encode(NEWEST_METADATA.to_le_bytes()));
    let mut params = vec!["Metadata_metadata_at_version", version.as_str()];
    params.extend(at);
    let method = "state_call";
    match session.request(method, json!(params)).await {
        Ok(answer) => {
            let bytes = bytes_of(method, &answer)?;
            Option::<Vec<u8>>::decode(&mut bytes.as_slice()).map_err(|error| NodeError::answer(method, error.to_string()))
        }
        Err(NodeError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes behind `0x` and hex.
pub(crate) fn bytes_of(method: &'static str, answer: &Value) -> Result<Vec<u8>, NodeError> {
    let text = answer.as_str().and_then(|text| text.strip_prefix("0x"));
    let text = text.ok_or_else(|| NodeError::answer(method, "it is not hex with 0x"))?;
    hex::decode(text).map_err(|error| NodeError::answer(method, error.to_string()))
}

/// A hash.
pub(crate) fn hash_of(method: &'static str, answer: &Value) -> Result<[u8; 32], NodeError> {
    bytes_of(method, answer)?.try_into().map_err(|_| NodeError::answer(method, "it is not a hash of 32 bytes"))
}
