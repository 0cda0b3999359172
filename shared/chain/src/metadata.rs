//! What a runtime says of itself (chain 2, 7). Versions 14 and 16 are read into one form.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use frame_metadata::v14::{StorageEntryModifier, StorageEntryType};
use frame_metadata::{RuntimeMetadata, RuntimeMetadataPrefixed, v14, v16};
use parity_scale_codec::Decode;
use scale_info::form::PortableForm;
use scale_info::{PortableRegistry, TypeDef, Variant};

use crate::bounds::{METADATA_BYTES, judge_types};

pub use frame_metadata::v14::StorageHasher;

/// The version of extrinsics that is written: by it the extensions are chosen.
pub const EXTRINSIC_VERSION: u8 = 4;

/// Something that this program relies on is not in the metadata, or the metadata cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Not SCALE, or not metadata.
    #[error("the node's metadata cannot be decoded ({0}); use another endpoint")]
    Undecodable(String),
    /// A version that is not read here.
    #[error("the metadata has version {0}; this program reads 14 and 16, a newer one is needed")]
    Version(u32),
    /// More than any runtime has, or types that hold themselves: nobody could read values of them.
    #[error("the node's metadata is not to be believed ({0}); use another endpoint")]
    Excess(String),
    /// The runtime lacks a pallet, item, call, constant or type.
    #[error("the runtime has no {what} {name}; it was changed in an upgrade, and a newer version of this program is needed")]
    Missing {
        /// `pallet`, `storage item`, `call`, `type` …
        what: &'static str,
        /// Its name.
        name: String,
    },
}

impl MetadataError {
    pub(crate) fn missing(what: &'static str, name: impl Into<String>) -> Self {
        Self::Missing { what, name: name.into() }
    }
}

/// One transaction extension: what it adds to the extrinsic, and what to the signed payload only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Identifier.
    pub name: String,
    /// Type of what goes into the extrinsic.
    pub extra: u32,
    /// Type of what is signed in addition.
    pub additional: u32,
}

/// One storage item.
#[derive(Debug, Clone)]
pub struct StorageItem {
    /// Prefix of the pallet in keys.
    pub prefix: Arc<str>,
    /// Name.
    pub name: String,
    /// One for each argument.
    pub hashers: Vec<StorageHasher>,
    /// Type of the arguments: one type, or a tuple of as many as there are hashers.
    pub arguments: Option<u32>,
    /// Type of the value.
    pub value: u32,
    /// Whether an absent value stands for a default. It is still told as absent here.
    pub has_default: bool,
}

#[derive(Debug)]
struct Pallet {
    index: u8,
    storage: BTreeMap<String, StorageItem>,
    calls: Option<u32>,
    errors: Option<u32>,
    constants: BTreeMap<String, (u32, Vec<u8>)>,
}

/// The metadata of one runtime version.
#[derive(Debug)]
pub struct Metadata {
    types: PortableRegistry,
    pallets: BTreeMap<String, Pallet>,
    extensions: Vec<Extension>,
    extrinsic_versions: Vec<u8>,
}

impl Metadata {
    /// Reads SCALE bytes that begin with `meta`.
    ///
    /// # Errors
    /// When they are something else or of another version than 14 or 16.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, MetadataError> {
        if bytes.len() > METADATA_BYTES {
            return Err(MetadataError::Excess(format!("it has {} bytes", bytes.len())));
        }
        let prefixed =
            RuntimeMetadataPrefixed::decode(&mut bytes).map_err(|error| MetadataError::Undecodable(error.to_string()))?;
        if prefixed.0 != frame_metadata::META_RESERVED {
            return Err(MetadataError::Undecodable("it does not begin with \"meta\"".into()));
        }
        let metadata = match prefixed.1 {
            RuntimeMetadata::V14(metadata) => Self::from_v14(metadata),
            RuntimeMetadata::V16(metadata) => Self::from_v16(metadata)?,
            other => return Err(MetadataError::Version(other.version())),
        };
        judge_types(&metadata.types).map_err(MetadataError::Excess)?;
        Ok(metadata)
    }

    fn from_v14(metadata: v14::RuntimeMetadataV14) -> Self {
        let extension = |one: v14::SignedExtensionMetadata<PortableForm>| Extension {
            name: one.identifier,
            extra: one.ty.id,
            additional: one.additional_signed.id,
        };
        let pallet = |one: v14::PalletMetadata<PortableForm>| {
            let entries = one.storage.into_iter().flat_map(|storage| {
                let prefix: Arc<str> = storage.prefix.into();
                storage.entries.into_iter().map(move |entry| storage_item(&prefix, entry.name, entry.modifier, entry.ty))
            });
            let pallet = Pallet {
                index: one.index,
                storage: entries.map(|item| (item.name.clone(), item)).collect(),
                calls: one.calls.map(|calls| calls.ty.id),
                errors: one.error.map(|error| error.ty.id),
                constants: one.constants.into_iter().map(|constant| (constant.name, (constant.ty.id, constant.value))).collect(),
            };
            (one.name, pallet)
        };
        Self {
            types: metadata.types,
            pallets: metadata.pallets.into_iter().map(pallet).collect(),
            extensions: metadata.extrinsic.signed_extensions.into_iter().map(extension).collect(),
            extrinsic_versions: vec![metadata.extrinsic.version],
        }
    }

    fn from_v16(metadata: v16::RuntimeMetadataV16) -> Result<Self, MetadataError> {
        let listed = metadata.extrinsic.transaction_extensions;
        // Extensions are listed once and chosen by extrinsic version; this program writes version 4.
        let chosen = match metadata.extrinsic.transaction_extensions_by_version.get(&EXTRINSIC_VERSION) {
            Some(indices) => indices.iter().map(|index| index.0 as usize).collect(),
            None => (0..listed.len()).collect::<Vec<_>>(),
        };
        // Each once: a name that is listed a million times would be copied as often.
        if chosen.iter().collect::<BTreeSet<_>>().len() != chosen.len() {
            return Err(MetadataError::Excess("a transaction extension is listed twice".into()));
        }
        let extension = |index: usize| {
            let one =
                listed.get(index).ok_or_else(|| MetadataError::missing("transaction extension", format!("number {index}")))?;
            Ok(Extension { name: one.identifier.clone(), extra: one.ty.id, additional: one.implicit.id })
        };
        let pallet = |one: v16::PalletMetadata<PortableForm>| {
            let entries = one.storage.into_iter().flat_map(|storage| {
                let prefix: Arc<str> = storage.prefix.into();
                storage.entries.into_iter().map(move |entry| storage_item(&prefix, entry.name, entry.modifier, entry.ty))
            });
            let pallet = Pallet {
                index: one.index,
                storage: entries.map(|item| (item.name.clone(), item)).collect(),
                calls: one.calls.map(|calls| calls.ty.id),
                errors: one.error.map(|error| error.ty.id),
                constants: one.constants.into_iter().map(|constant| (constant.name, (constant.ty.id, constant.value))).collect(),
            };
            (one.name, pallet)
        };
        Ok(Self {
            extensions: chosen.into_iter().map(extension).collect::<Result<_, _>>()?,
            types: metadata.types,
            pallets: metadata.pallets.into_iter().map(pallet).collect(),
            extrinsic_versions: metadata.extrinsic.versions,
        })
    }

    /// The runtime's types.
    #[must_use]
    pub fn types(&self) -> &PortableRegistry {
        &self.types
    }

    /// Extensions of a version 4 extrinsic, in order of the wire.
    #[must_use]
    pub fn extensions(&self) -> &[Extension] {
        &self.extensions
    }

    /// Extrinsic versions that the runtime takes.
    #[must_use]
    pub fn extrinsic_versions(&self) -> &[u8] {
        &self.extrinsic_versions
    }

    /// A storage item.
    ///
    /// # Errors
    /// When pallet or item is missing.
    pub fn storage(&self, pallet: &str, item: &str) -> Result<&StorageItem, MetadataError> {
        let found = self.pallet(pallet)?.storage.get(item);
        found.ok_or_else(|| MetadataError::missing("storage item", format!("{pallet}.{item}")))
    }

    /// Index of a pallet, and the variant of a call within it.
    ///
    /// # Errors
    /// When pallet or call is missing.
    pub fn call(&self, pallet: &str, call: &str) -> Result<(u8, &Variant<PortableForm>), MetadataError> {
        let missing = || MetadataError::missing("call", format!("{pallet}.{call}"));
        let found = self.pallet(pallet)?;
        let variants = self.variants(found.calls.ok_or_else(missing)?)?;
        Ok((found.index, variants.iter().find(|variant| variant.name == call).ok_or_else(missing)?))
    }

    /// Type and SCALE bytes of a constant.
    ///
    /// # Errors
    /// When pallet or constant is missing.
    pub fn constant(&self, pallet: &str, name: &str) -> Result<(u32, &[u8]), MetadataError> {
        let (ty, value) = self
            .pallet(pallet)?
            .constants
            .get(name)
            .ok_or_else(|| MetadataError::missing("constant", format!("{pallet}.{name}")))?;
        Ok((*ty, value))
    }

    /// Names of pallet and error for the numbers of a module error.
    ///
    /// # Errors
    /// When there is no such pallet or error.
    pub fn error_name(&self, pallet_index: u8, error_index: u8) -> Result<(&str, &str), MetadataError> {
        let missing = || MetadataError::missing("error", format!("{error_index} of pallet {pallet_index}"));
        let (name, pallet) = self.pallets.iter().find(|(_, pallet)| pallet.index == pallet_index).ok_or_else(missing)?;
        let variants = self.variants(pallet.errors.ok_or_else(missing)?)?;
        let error = variants.iter().find(|variant| variant.index == error_index).ok_or_else(missing)?;
        Ok((name, &error.name))
    }

    /// Whether values of a type take no bytes.
    ///
    /// # Errors
    /// When the type is missing.
    pub fn is_empty(&self, ty: u32) -> Result<bool, MetadataError> {
        self.holds_nothing(ty, &mut BTreeSet::new())
    }

    /// `empty` are types that are known to be: each is looked at once. Types do not hold themselves, so this ends.
    fn holds_nothing(&self, ty: u32, empty: &mut BTreeSet<u32>) -> Result<bool, MetadataError> {
        if empty.contains(&ty) {
            return Ok(true);
        }
        let held: Vec<u32> = match self.definition(ty)? {
            TypeDef::Composite(composite) => composite.fields.iter().map(|field| field.ty.id).collect(),
            TypeDef::Tuple(tuple) => tuple.fields.iter().map(|field| field.id).collect(),
            TypeDef::Array(array) if array.len == 0 => Vec::new(),
            TypeDef::Array(array) => vec![array.type_param.id],
            _ => return Ok(false),
        };
        for ty in held {
            if !self.holds_nothing(ty, empty)? {
                return Ok(false);
            }
        }
        empty.insert(ty);
        Ok(true)
    }

    /// Variants of an enum.
    ///
    /// # Errors
    /// When the type is missing or no enum.
    pub fn variants(&self, ty: u32) -> Result<&[Variant<PortableForm>], MetadataError> {
        match self.definition(ty)? {
            TypeDef::Variant(variant) => Ok(&variant.variants),
            _ => Err(MetadataError::missing("enum of type", ty.to_string())),
        }
    }

    /// Definition of a type.
    ///
    /// # Errors
    /// When it is missing.
    pub fn definition(&self, ty: u32) -> Result<&TypeDef<PortableForm>, MetadataError> {
        Ok(&self.types.resolve(ty).ok_or_else(|| MetadataError::missing("type", ty.to_string()))?.type_def)
    }

    fn pallet(&self, name: &str) -> Result<&Pallet, MetadataError> {
        self.pallets.get(name).ok_or_else(|| MetadataError::missing("pallet", name))
    }
}

fn storage_item(
    prefix: &Arc<str>,
    name: String,
    modifier: StorageEntryModifier,
    ty: StorageEntryType<PortableForm>,
) -> StorageItem {
    let (hashers, arguments, value) = match ty {
        StorageEntryType::Plain(value) => (Vec::new(), None, value.id),
        StorageEntryType::Map { hashers, key, value } => (hashers, Some(key.id), value.id),
    };
    StorageItem {
        prefix: prefix.clone(),
        name,
        hashers,
        arguments,
        value,
        has_default: modifier == StorageEntryModifier::Default,
    }
}
