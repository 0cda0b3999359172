//! A signed extrinsic of version 4, byte for byte (chain 5). Nothing is hidden: era, nonce and every extension are given.

use blake2::{Blake2b256, Digest};
use grail_protocol::keys::{Hotkey, KeyScheme, verify};
use parity_scale_codec::{Compact, Encode};
use scale_value::Value;

use crate::commitment;
use crate::era::Era;
use crate::metadata::{EXTRINSIC_VERSION, Extension, Metadata, MetadataError};
use crate::storage::whole_value;

/// Version 4 with the bit that says it is signed.
const SIGNED: u8 = 0x84;
/// `MultiAddress::Id`.
const ADDRESS_ID: u8 = 0;
/// `MultiSignature::Sr25519`.
const SIGNATURE_SR25519: u8 = 1;
/// A longer payload is signed by its hash.
const LONGEST_PLAIN_PAYLOAD: usize = 256;

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SigningError {
    /// The runtime lacks the call or a type.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The runtime no longer takes version 4.
    #[error(
        "the runtime takes extrinsics of versions {0:?} only, this program writes version 4; a newer version of it is needed"
    )]
    Version(Vec<u8>),
    /// An extension that carries something nobody here knows the meaning of.
    #[error(
        "the runtime's transaction extension {0} carries data that this program does not know; a newer version of it is needed"
    )]
    UnknownExtension(String),
    /// An extension that is known by name, but not of this form.
    #[error(
        "the runtime's transaction extension {name} has changed its form ({reason}); a newer version of this program is needed"
    )]
    ChangedExtension {
        /// The extension.
        name: String,
        /// What does not fit.
        reason: String,
    },
    /// The call's arguments do not fit.
    #[error("the call {call} does not take these arguments: {reason}")]
    Arguments {
        /// The call.
        call: String,
        /// What does not fit.
        reason: String,
    },
    /// The network's validators of transactions know sr25519 hotkeys only.
    #[error("the hotkey {0} is not sr25519, and the chain's hotkeys are; make one with: btcli wallet new_hotkey")]
    Scheme(String),
    /// The signature that was just made does not verify.
    #[error(
        "the signature that was just made does not verify with the hotkey {0}; the memory of this machine is not to be trusted"
    )]
    OwnSignature(String),
}

/// What is signed beside the call. All hashes are 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Of the runtime.
    pub spec_version: u32,
    /// Of the runtime.
    pub transaction_version: u32,
    /// Hash of block 0.
    pub genesis: [u8; 32],
    /// Life.
    pub era: Era,
    /// Hash of the era's birth block; of block 0 for an immortal one.
    pub birth_hash: [u8; 32],
    /// Next transaction of the account.
    pub nonce: u32,
    /// Always 0 for a miner: any tip makes the call fail for an account without balance.
    pub tip: u64,
}

/// What one extension contributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contribution {
    /// Identifier.
    pub name: String,
    /// Into the extrinsic.
    pub extra: Vec<u8>,
    /// Into the signed payload only.
    pub additional: Vec<u8>,
}

/// A signed extrinsic. Its bytes are not shown: the call may hold a read secret.
#[derive(Clone)]
pub struct SignedExtrinsic {
    /// With the length prefix, as a node takes it.
    pub bytes: Vec<u8>,
    /// blake2b-256 of the bytes, by which nodes name it.
    pub hash: [u8; 32],
}

impl std::fmt::Debug for SignedExtrinsic {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SignedExtrinsic").field("hash", &hex::encode(self.hash)).finish_non_exhaustive()
    }
}

/// The bytes of a call: indices of pallet and call by name, arguments by their types.
///
/// # Errors
/// When the runtime has no such call or it takes other arguments.
pub fn call(metadata: &Metadata, pallet: &str, name: &str, arguments: &[(&str, Value)]) -> Result<Vec<u8>, SigningError> {
    let (index, variant) = metadata.call(pallet, name)?;
    let refuse = |reason: String| SigningError::Arguments { call: format!("{pallet}.{name}"), reason };
    if variant.fields.len() != arguments.len() {
        return Err(refuse(format!("{} are needed, {} are given", variant.fields.len(), arguments.len())));
    }
    let mut bytes = vec![index, variant.index];
    for field in &variant.fields {
        let wanted = field.name.as_deref().unwrap_or_default();
        let argument = arguments.iter().find(|(given, _)| *given == wanted);
        let (_, value) = argument.ok_or_else(|| refuse(format!("{wanted} is missing")))?;
        scale_value::scale::encode_as_type(value, field.ty.id, metadata.types(), &mut bytes)
            .map_err(|error| refuse(format!("{wanted}: {error}")))?;
    }
    Ok(bytes)
}

/// The miner's one call: publishes `text` as the hotkey's commitment on a subnet.
///
/// # Errors
/// When the runtime has no such call, or no variant of so many bytes.
pub fn set_commitment(metadata: &Metadata, netuid: u16, text: &[u8]) -> Result<Vec<u8>, SigningError> {
    let arguments = [("netuid", Value::u128(netuid.into())), ("info", commitment::info(text))];
    call(metadata, "Commitments", "set_commitment", &arguments)
}

/// What each extension of the runtime contributes, in order of the wire.
///
/// # Errors
/// An extension that is unknown and carries something, or that is known and has another form than known.
pub fn contributions(metadata: &Metadata, terms: &Terms) -> Result<Vec<Contribution>, SigningError> {
    metadata.extensions().iter().map(|extension| contribution(metadata, extension, terms)).collect()
}

fn contribution(metadata: &Metadata, extension: &Extension, terms: &Terms) -> Result<Contribution, SigningError> {
    let name = extension.name.clone();
    let (extra, additional) = match name.as_str() {
        "CheckSpecVersion" => (Vec::new(), terms.spec_version.encode()),
        "CheckTxVersion" => (Vec::new(), terms.transaction_version.encode()),
        "CheckGenesis" => (Vec::new(), terms.genesis.to_vec()),
        "CheckMortality" => (terms.era.encode(), terms.birth_hash.to_vec()),
        "CheckNonce" => (Compact(terms.nonce).encode(), Vec::new()),
        "ChargeTransactionPayment" | "ChargeTransactionPaymentWrapper" => (Compact(terms.tip).encode(), Vec::new()),
        // Mode "disabled", and no hash.
        "CheckMetadataHash" => (vec![0], vec![0]),
        _ if metadata.is_empty(extension.extra)? && metadata.is_empty(extension.additional)? => (Vec::new(), Vec::new()),
        _ => return Err(SigningError::UnknownExtension(name)),
    };
    for (ty, bytes) in [(extension.extra, &extra), (extension.additional, &additional)] {
        whole_value(metadata, ty, bytes, || name.clone())
            .map_err(|error| SigningError::ChangedExtension { name: name.clone(), reason: error.to_string() })?;
    }
    Ok(Contribution { name, extra, additional })
}

/// What is signed: call, extra, additional; by its hash where that is longer than 256 bytes.
#[must_use]
pub fn signed_bytes(call: &[u8], contributions: &[Contribution]) -> Vec<u8> {
    let mut payload = call.to_vec();
    contributions.iter().for_each(|one| payload.extend(&one.extra));
    contributions.iter().for_each(|one| payload.extend(&one.additional));
    if payload.len() > LONGEST_PLAIN_PAYLOAD { Blake2b256::digest(&payload).to_vec() } else { payload }
}

/// Puts a signed extrinsic together.
#[must_use]
pub fn assemble(call: &[u8], contributions: &[Contribution], public_key: &[u8; 32], signature: &[u8; 64]) -> SignedExtrinsic {
    let mut body = vec![SIGNED, ADDRESS_ID];
    body.extend(public_key);
    body.push(SIGNATURE_SR25519);
    body.extend(signature);
    contributions.iter().for_each(|one| body.extend(&one.extra));
    body.extend(call);
    let mut bytes = Compact(body.len() as u32).encode();
    bytes.append(&mut body);
    SignedExtrinsic { hash: Blake2b256::digest(&bytes).into(), bytes }
}

/// Signs a call and checks the signature.
///
/// # Errors
/// Whatever keeps this program from knowing what it would sign: see [`SigningError`].
pub fn sign(metadata: &Metadata, call: &[u8], terms: &Terms, hotkey: &Hotkey) -> Result<SignedExtrinsic, SigningError> {
    if hotkey.scheme() != KeyScheme::Sr25519 {
        return Err(SigningError::Scheme(hotkey.address().into()));
    }
    if !metadata.extrinsic_versions().contains(&EXTRINSIC_VERSION) {
        return Err(SigningError::Version(metadata.extrinsic_versions().to_vec()));
    }
    let contributions = contributions(metadata, terms)?;
    let message = signed_bytes(call, &contributions);
    let signature = hotkey.sign(&message);
    if !verify(KeyScheme::Sr25519, hotkey.address(), &message, &hex::encode(signature)) {
        return Err(SigningError::OwnSignature(hotkey.address().into()));
    }
    Ok(assemble(call, &contributions, &hotkey.public_key(), &signature))
}
