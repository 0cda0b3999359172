//! Storage keys and values (chain 3), both by metadata.

use blake2::{Blake2b128, Blake2b256, Digest};
use parity_scale_codec::{Compact, Decode};
use scale_info::TypeDef;
use scale_value::{Composite, Value, ValueDef};
use twox_hash::XxHash64;

use crate::bounds::{Reader, Unreadable};
use crate::metadata::{Metadata, MetadataError, StorageHasher, StorageItem};

pub use crate::bounds::Decoded;

/// Why a key cannot be made or a value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The runtime lacks something.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Arguments do not fit the item.
    #[error("the storage item {item} does not take these arguments: {reason}")]
    Arguments {
        /// The item.
        item: String,
        /// What does not fit.
        reason: String,
    },
    /// The bytes, or the metadata that says how to read them, are those of no honest node.
    #[error("a value of {what} is not to be believed: {reason}")]
    Excess {
        /// What was to be decoded.
        what: String,
        /// What is too much.
        reason: String,
    },
    /// The bytes are no value of the type.
    #[error("a value of {what} cannot be decoded by the runtime's metadata: {reason}")]
    Value {
        /// What was to be decoded.
        what: String,
        /// Where it broke off.
        reason: String,
    },
}

/// xxh64 with seeds 0 and 1, little-endian: the prefix hash of pallets and items.
fn twox_128(bytes: &[u8]) -> [u8; 16] {
    let mut hash = [0; 16];
    hash[..8].copy_from_slice(&XxHash64::oneshot(0, bytes).to_le_bytes());
    hash[8..].copy_from_slice(&XxHash64::oneshot(1, bytes).to_le_bytes());
    hash
}

/// What all keys of an item begin with.
#[must_use]
pub fn prefix(item: &StorageItem) -> Vec<u8> {
    [twox_128(item.prefix.as_bytes()), twox_128(item.name.as_bytes())].concat()
}

/// The key of one value.
///
/// # Errors
/// When the arguments do not fit the item in number or type.
pub fn key(metadata: &Metadata, pallet: &str, item: &str, arguments: &[Value]) -> Result<Vec<u8>, StorageError> {
    let found = metadata.storage(pallet, item)?;
    let types = argument_types(metadata, found)?;
    let refuse = |reason: String| StorageError::Arguments { item: format!("{pallet}.{item}"), reason };
    if types.len() != arguments.len() {
        return Err(refuse(format!("{} are needed, {} are given", types.len(), arguments.len())));
    }
    let mut key = prefix(found);
    for ((argument, ty), hasher) in arguments.iter().zip(types).zip(&found.hashers) {
        let mut encoded = Vec::new();
        scale_value::scale::encode_as_type(argument, ty, metadata.types(), &mut encoded)
            .map_err(|error| refuse(error.to_string()))?;
        append_hashed(&mut key, hasher, &encoded);
    }
    Ok(key)
}

fn argument_types(metadata: &Metadata, item: &StorageItem) -> Result<Vec<u32>, StorageError> {
    let Some(ty) = item.arguments else { return Ok(Vec::new()) };
    match metadata.definition(ty)? {
        TypeDef::Tuple(tuple) if item.hashers.len() != 1 => Ok(tuple.fields.iter().map(|field| field.id).collect()),
        _ => Ok(vec![ty]),
    }
}

fn append_hashed(key: &mut Vec<u8>, hasher: &StorageHasher, encoded: &[u8]) {
    match hasher {
        StorageHasher::Identity => key.extend(encoded),
        StorageHasher::Twox64Concat => {
            key.extend(XxHash64::oneshot(0, encoded).to_le_bytes());
            key.extend(encoded);
        }
        StorageHasher::Twox128 => key.extend(twox_128(encoded)),
        StorageHasher::Twox256 => (0..4).for_each(|seed| key.extend(XxHash64::oneshot(seed, encoded).to_le_bytes())),
        StorageHasher::Blake2_128 => key.extend(Blake2b128::digest(encoded)),
        StorageHasher::Blake2_128Concat => {
            key.extend(Blake2b128::digest(encoded));
            key.extend(encoded);
        }
        StorageHasher::Blake2_256 => key.extend(Blake2b256::digest(encoded)),
    }
}

/// A value of the item, all bytes used.
///
/// # Errors
/// When the bytes are no such value.
pub fn value(metadata: &Metadata, pallet: &str, item: &str, bytes: &[u8]) -> Result<Decoded, StorageError> {
    let ty = metadata.storage(pallet, item)?.value;
    whole_value(metadata, ty, bytes, || format!("{pallet}.{item}"))
}

/// A value of a type, all bytes used.
pub(crate) fn whole_value(
    metadata: &Metadata,
    ty: u32,
    mut bytes: &[u8],
    what: impl Fn() -> String,
) -> Result<Decoded, StorageError> {
    let fail = |reason: String| StorageError::Value { what: what(), reason };
    let value = Reader::new(metadata.types()).value(ty, &mut bytes).map_err(|error| match error {
        Unreadable::Excess(reason) => StorageError::Excess { what: what(), reason },
        Unreadable::Form(reason) => fail(reason),
    })?;
    if bytes.is_empty() { Ok(value) } else { Err(fail(format!("{} bytes are left over", bytes.len()))) }
}

/// A whole number that fits `T`. One within wrappers of a single field counts too.
#[must_use]
pub fn number<T: TryFrom<u128>>(value: &Decoded) -> Option<T> {
    match &value.value {
        ValueDef::Primitive(primitive) => T::try_from(primitive.as_u128()?).ok(),
        ValueDef::Composite(composite) if composite.len() == 1 => number(composite.values().next()?),
        _ => None,
    }
}

/// The bytes of a byte array or byte vector. One within wrappers of a single field counts too.
#[must_use]
pub fn bytes(value: &Decoded) -> Option<Vec<u8>> {
    let ValueDef::Composite(composite) = &value.value else { return None };
    let mut values = composite.values();
    if let (1, Some(inner)) = (values.len(), composite.values().next())
        && matches!(inner.value, ValueDef::Composite(_))
    {
        return bytes(inner);
    }
    values.try_fold(Vec::new(), |mut all, value| match &value.value {
        ValueDef::Primitive(primitive) => {
            all.push(u8::try_from(primitive.as_u128()?).ok()?);
            Some(all)
        }
        _ => None,
    })
}

/// A named field of a composite.
#[must_use]
pub fn field<'a>(value: &'a Decoded, name: &str) -> Option<&'a Decoded> {
    match &value.value {
        ValueDef::Composite(composite) => named(composite, name),
        _ => None,
    }
}

pub(crate) fn named<'a>(composite: &'a Composite<u32>, name: &str) -> Option<&'a Decoded> {
    match composite {
        Composite::Named(fields) => fields.iter().find(|(field, _)| field == name).map(|(_, value)| value),
        Composite::Unnamed(_) => None,
    }
}

/// Splits the compact count off a vector's bytes.
pub(crate) fn count(bytes: &mut &[u8]) -> Option<u32> {
    Compact::<u32>::decode(bytes).ok().map(|count| count.0)
}
