//! How much is made of what a node sends. Its metadata says how its values are to be read, so it could make us recurse for ever,
//! or build millions of values out of a few bytes: depth, count and size are bounded here, before anything is believed.

use parity_scale_codec::{Compact, Decode};
use scale_info::form::PortableForm;
use scale_info::{Field, PortableRegistry, TypeDef};
use scale_value::{Composite, Value, ValueDef, Variant};

/// A decoded value; every part carries the number of its type.
pub type Decoded = Value<u32>;

/// Bytes of metadata: the largest runtime known has a third of a megabyte, ten times as much with its documentation.
pub(crate) const METADATA_BYTES: usize = 4 << 20;
/// Levels of types that hold each other without anything between them that takes bytes, and of values within each other. Real
/// ones have about ten.
const DEPTH: usize = 64;
/// Variants of an enum: their index is a byte.
const VARIANTS: usize = 256;
/// Memory of the values that are made of one answer. A block's events take some tens of megabytes at most.
const VALUE_BYTES: usize = 64 << 20;
/// Memory of one value without what it holds.
const ONE_VALUE: usize = size_of::<(String, Decoded)>();

/// Why bytes are no value of a type.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// No honest node sends such a thing.
    Excess(String),
    /// They do not go with the type.
    Form(String),
}

/// Judges a runtime's types: none may hold itself but through a list or an enum, of which an empty one or another variant is an
/// end. The error is what is too much.
pub(crate) fn judge_types(types: &PortableRegistry) -> Result<(), String> {
    let mut levels = vec![None; types.types.len()];
    for (number, entry) in types.types.iter().enumerate() {
        let number = u32::try_from(number).map_err(|error| error.to_string())?;
        if let TypeDef::Variant(variant) = &entry.ty.type_def
            && variant.variants.len() > VARIANTS
        {
            return Err(format!("type {number} has {} variants", variant.variants.len()));
        }
        levels_of(types, number, 0, &mut levels)?;
    }
    Ok(())
}

/// Levels of what a type holds. Above the bound nothing is followed any more, so that this ends too.
fn levels_of(types: &PortableRegistry, ty: u32, above: usize, known: &mut [Option<usize>]) -> Result<usize, String> {
    let excess = || format!("type {ty} holds itself, or types more than {DEPTH} levels deep");
    let found = known.get(ty as usize).copied().flatten();
    // A type that is missing is told where it is needed.
    let Some(entry) = types.types.get(ty as usize) else { return Ok(0) };
    if above + found.unwrap_or(0) > DEPTH {
        return Err(excess());
    }
    if let Some(levels) = found {
        return Ok(levels);
    }
    let mut deepest = 0;
    let mut follow = |held: u32| levels_of(types, held, above + 1, known).map(|levels| deepest = deepest.max(levels + 1));
    match &entry.ty.type_def {
        TypeDef::Composite(composite) => composite.fields.iter().try_for_each(|field| follow(field.ty.id))?,
        TypeDef::Tuple(tuple) => tuple.fields.iter().try_for_each(|field| follow(field.id))?,
        TypeDef::Array(array) => follow(array.type_param.id)?,
        TypeDef::Compact(compact) => follow(compact.type_param.id)?,
        TypeDef::Variant(_) | TypeDef::Sequence(_) | TypeDef::Primitive(_) | TypeDef::BitSequence(_) => {}
    }
    known[ty as usize] = Some(deepest);
    Ok(deepest)
}

/// Decodes values of one answer.
pub(crate) struct Reader<'a> {
    types: &'a PortableRegistry,
    left: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(types: &'a PortableRegistry) -> Self {
        Self { types, left: VALUE_BYTES }
    }

    /// The next value in `bytes`, which are moved on.
    pub(crate) fn value(&mut self, ty: u32, bytes: &mut &[u8]) -> Result<Decoded, Unreadable> {
        self.at(ty, bytes, 0)
    }

    fn at(&mut self, ty: u32, bytes: &mut &[u8], depth: usize) -> Result<Decoded, Unreadable> {
        if depth > DEPTH {
            return Err(Unreadable::Excess(format!("it is more than {DEPTH} levels deep")));
        }
        self.spend(ONE_VALUE)?;
        let found = self.types.types.get(ty as usize).ok_or_else(|| Unreadable::Form(format!("there is no type {ty}")))?;
        let value = match &found.ty.type_def {
            TypeDef::Composite(composite) => ValueDef::Composite(self.fields(&composite.fields, bytes, depth)?),
            TypeDef::Variant(variant) => {
                let (index, rest) = bytes.split_first().ok_or_else(|| Unreadable::Form("it ends within an enum".into()))?;
                *bytes = rest;
                let chosen = variant.variants.iter().find(|one| one.index == *index);
                let chosen = chosen.ok_or_else(|| Unreadable::Form(format!("type {ty} has no variant {index}")))?;
                self.spend(chosen.name.len())?;
                ValueDef::Variant(Variant { name: chosen.name.clone(), values: self.fields(&chosen.fields, bytes, depth)? })
            }
            TypeDef::Sequence(sequence) => {
                let count = Compact::<u32>::decode(bytes).map_err(|error| Unreadable::Form(error.to_string()))?.0;
                self.items(std::iter::repeat_n(sequence.type_param.id, count as usize), bytes, depth)?
            }
            TypeDef::Array(array) => self.items(std::iter::repeat_n(array.type_param.id, array.len as usize), bytes, depth)?,
            TypeDef::Tuple(tuple) => self.items(tuple.fields.iter().map(|field| field.id), bytes, depth)?,
            TypeDef::BitSequence(_) => {
                let bits = Compact::<u32>::decode(&mut &**bytes).map_err(|error| Unreadable::Form(error.to_string()))?.0;
                if bits as usize / 8 > bytes.len() {
                    return Err(Unreadable::Form("it ends within a sequence of bits".into()));
                }
                self.leaf(ty, bytes)?
            }
            TypeDef::Primitive(_) | TypeDef::Compact(_) => self.leaf(ty, bytes)?,
        };
        Ok(Value { value, context: ty })
    }

    /// What holds no other values: its memory is that of its bytes.
    fn leaf(&mut self, ty: u32, bytes: &mut &[u8]) -> Result<ValueDef<u32>, Unreadable> {
        let before = bytes.len();
        let value =
            scale_value::scale::decode_as_type(bytes, ty, self.types).map_err(|error| Unreadable::Form(error.to_string()))?;
        self.spend(before - bytes.len())?;
        Ok(value.value)
    }

    fn fields(&mut self, fields: &[Field<PortableForm>], bytes: &mut &[u8], depth: usize) -> Result<Composite<u32>, Unreadable> {
        if fields.is_empty() || fields.iter().any(|field| field.name.is_none()) {
            let values = self.list(fields.iter().map(|field| field.ty.id), bytes, depth)?;
            return Ok(Composite::Unnamed(values));
        }
        let mut named = Vec::new();
        for field in fields {
            let name = field.name.clone().unwrap_or_default();
            self.spend(name.len())?;
            named.push((name, self.at(field.ty.id, bytes, depth + 1)?));
        }
        Ok(Composite::Named(named))
    }

    fn items(&mut self, types: impl Iterator<Item = u32>, bytes: &mut &[u8], depth: usize) -> Result<ValueDef<u32>, Unreadable> {
        Ok(ValueDef::Composite(Composite::Unnamed(self.list(types, bytes, depth)?)))
    }

    fn list(&mut self, types: impl Iterator<Item = u32>, bytes: &mut &[u8], depth: usize) -> Result<Vec<Decoded>, Unreadable> {
        // It grows as values are there: an announced number is never believed.
        let mut values = Vec::new();
        for ty in types {
            values.push(self.at(ty, bytes, depth + 1)?);
        }
        Ok(values)
    }

    fn spend(&mut self, memory: usize) -> Result<(), Unreadable> {
        let left = self.left.checked_sub(memory);
        self.left = left.ok_or_else(|| Unreadable::Excess(format!("its values take more than {} MiB", VALUE_BYTES >> 20)))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use frame_metadata::{RuntimeMetadata, RuntimeMetadataPrefixed};
    use parity_scale_codec::Encode;
    use scale_info::build::Fields;
    use scale_info::{Path, Registry, Type, TypeDefArray, TypeDefComposite, TypeDefTuple, TypeInfo, meta_type};

    use super::*;
    use crate::metadata::{Metadata, MetadataError};

    /// A tree of nothing but branches.
    struct Tree;

    impl TypeInfo for Tree {
        type Identity = Self;

        fn type_info() -> Type {
            let fields = Fields::unnamed().field(|field| field.ty::<Vec<Tree>>());
            Type::builder().path(Path::new("Tree", "tests")).composite(fields)
        }
    }

    fn registry<T: TypeInfo + 'static>() -> (PortableRegistry, u32) {
        let mut registry = Registry::new();
        let ty = registry.register_type(&meta_type::<T>()).id;
        (registry.into(), ty)
    }

    fn read<T: TypeInfo + 'static>(mut bytes: &[u8]) -> Result<Decoded, Unreadable> {
        let (types, ty) = registry::<T>();
        assert_eq!(judge_types(&types), Ok(()));
        Reader::new(&types).value(ty, &mut bytes)
    }

    fn is_excess<T: std::fmt::Debug>(read: Result<T, Unreadable>) -> bool {
        matches!(read, Err(Unreadable::Excess(_)))
    }

    #[test]
    fn few_bytes_make_few_values() {
        assert!(is_excess(read::<Vec<()>>(&Compact(20_000_000_u32).encode())), "twenty million empty values");
        assert!(read::<Vec<()>>(&Compact(1000_u32).encode()).is_ok());
        assert!(is_excess(read::<Tree>(&[4; 1000])), "a thousand levels");
        assert!(read::<Tree>(&[[4; 20].as_slice(), &[0]].concat()).is_ok());
        let text = read::<Vec<u8>>(&Compact(u32::MAX).encode());
        assert!(matches!(text, Err(Unreadable::Form(_))), "four gigabytes that are not there: {text:?}");
        // An array of four billion nothings, whose number costs no byte at all.
        let (mut types, ty) = registry::<[(); 3]>();
        let TypeDef::Array(TypeDefArray { len, .. }) = &mut types.types[ty as usize].ty.type_def else { panic!("an array") };
        *len = u32::MAX;
        assert!(is_excess(Reader::new(&types).value(ty, &mut [].as_slice())));
    }

    #[test]
    fn what_honest_nodes_send_reads_as_before() {
        type Sample = (u8, Option<Vec<(u16, String)>>, [bool; 3], (), Compact<u64>, Result<i32, u128>, Vec<Vec<u8>>);
        let sample: Sample = (
            7,
            Some(vec![(300, "text".into())]),
            [true, false, true],
            (),
            Compact(1 << 40),
            Err(9),
            vec![vec![1, 2], Vec::new()],
        );
        let (types, ty) = registry::<Sample>();
        let bytes = sample.encode();
        let (mut ours, mut theirs) = (bytes.as_slice(), bytes.as_slice());
        let read = Reader::new(&types).value(ty, &mut ours).unwrap().remove_context();
        let known = scale_value::scale::decode_as_type(&mut theirs, ty, &types).unwrap().remove_context();
        assert_eq!((read, ours), (known, theirs));
        for end in 0..bytes.len() {
            let cut = Reader::new(&types).value(ty, &mut &bytes[..end]);
            assert!(matches!(cut, Err(Unreadable::Form(_))), "{end}: {cut:?}");
        }
    }

    /// The real metadata of the vectors, after `change`.
    fn changed(change: impl FnOnce(&mut frame_metadata::v14::RuntimeMetadataV14)) -> Result<Metadata, MetadataError> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/chain/metadata_218_v14.scale.gz");
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
        let mut prefixed = RuntimeMetadataPrefixed::decode(&mut bytes.as_slice()).unwrap();
        let RuntimeMetadata::V14(metadata) = &mut prefixed.1 else { panic!("version 14") };
        change(metadata);
        Metadata::decode(&prefixed.encode())
    }

    fn excess(decoded: Result<Metadata, MetadataError>, word: &str) {
        let error = decoded.map(|_| ()).unwrap_err();
        assert!(matches!(&error, MetadataError::Excess(_)) && error.to_string().contains(word), "{error}");
    }

    #[test]
    fn a_type_that_holds_itself_is_refused_before_anything_is_made_of_it() {
        changed(|_| ()).unwrap();
        let of_extension = |metadata: &frame_metadata::v14::RuntimeMetadataV14| metadata.extrinsic.signed_extensions[0].ty.id;
        excess(
            changed(|metadata| {
                let ty = of_extension(metadata);
                let tuple = TypeDefTuple { fields: vec![ty.into(), ty.into()] };
                metadata.types.types[ty as usize].ty.type_def = TypeDef::Tuple(tuple);
            }),
            "holds itself",
        );
        // In two steps, through an array.
        excess(
            changed(|metadata| {
                let (ty, other) = (of_extension(metadata), metadata.types.types.len() as u32);
                let mut array = metadata.types.types[ty as usize].clone();
                array.id = other;
                array.ty.type_def = TypeDef::Array(TypeDefArray { len: 1, type_param: ty.into() });
                metadata.types.types.push(array);
                let field = Field { name: None, ty: other.into(), type_name: None, docs: Vec::new() };
                metadata.types.types[ty as usize].ty.type_def = TypeDef::Composite(TypeDefComposite { fields: vec![field] });
            }),
            "holds itself",
        );
        // A chain of ten thousand, and pairs of pairs of which there would be more than atoms.
        for (links, width) in [(10_000, 1), (60, 2)] {
            let decoded = changed(|metadata| {
                let (ty, first) = (of_extension(metadata), metadata.types.types.len() as u32);
                for link in 0..links {
                    let mut one = metadata.types.types[ty as usize].clone();
                    (one.id, one.ty.type_def) = (
                        first + link,
                        TypeDef::Tuple(TypeDefTuple {
                            fields: vec![(first + link + 1).into(); if link + 1 == links { 0 } else { width }],
                        }),
                    );
                    metadata.types.types.push(one);
                }
                metadata.types.types[ty as usize].ty.type_def = TypeDef::Tuple(TypeDefTuple { fields: vec![first.into()] });
            });
            if width == 1 {
                excess(decoded, "levels deep");
            } else {
                let metadata = decoded.unwrap();
                let ty = metadata.extensions()[0].extra;
                assert_eq!(metadata.is_empty(ty), Ok(true));
                assert!(is_excess(Reader::new(metadata.types()).value(ty, &mut [].as_slice())));
            }
        }
    }

    #[test]
    fn metadata_is_no_larger_than_any_runtime_s() {
        excess(Metadata::decode(&vec![0; METADATA_BYTES + 1]).map(|_| panic!("it is no metadata")), "bytes");
        excess(
            changed(|metadata| {
                let ty = metadata.types.types.iter_mut().find(|ty| matches!(ty.ty.type_def, TypeDef::Variant(_))).unwrap();
                let TypeDef::Variant(variant) = &mut ty.ty.type_def else { panic!("an enum") };
                variant.variants = vec![variant.variants[0].clone(); 300];
            }),
            "has 300 variants",
        );
    }
}
