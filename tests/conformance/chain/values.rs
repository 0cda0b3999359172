//! How these vectors write bytes, hashes and decoded values.

use scale_value::{Composite, Value as Scale, ValueDef};
use serde_json::{Map, Value};

/// Bytes behind `0x` and hex.
pub fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("text");
    hex::decode(text.strip_prefix("0x").expect("0x")).expect("hex")
}

/// A hash or key of 32 bytes.
pub fn hash(value: &Value) -> [u8; 32] {
    bytes(value).try_into().expect("32 bytes")
}

/// A number that fits.
pub fn number<T: TryFrom<u64>>(value: &Value) -> T {
    T::try_from(value.as_u64().expect("a number")).unwrap_or_else(|_| panic!("{value} does not fit"))
}

/// A decoded value in the form of the vectors: bytes as `0x…`, enums as `{name: fields}`, wrappers of one field left out.
pub fn shown(value: &Scale<u32>) -> Value {
    match &value.value {
        ValueDef::Primitive(primitive) => match (primitive.as_u128(), primitive.as_bool()) {
            (_, Some(flag)) => flag.into(),
            (Some(number), _) => u64::try_from(number).map_or_else(|_| number.to_string().into(), Value::from),
            _ => format!("{primitive:?}").into(),
        },
        ValueDef::Variant(variant) => Map::from_iter([(variant.name.clone(), fields(&variant.values))]).into(),
        ValueDef::Composite(composite) => fields(composite),
        ValueDef::BitSequence(_) => panic!("no bits in these vectors"),
    }
}

/// The fields of a composite or variant.
pub fn fields(composite: &Composite<u32>) -> Value {
    match composite {
        Composite::Named(fields) => fields.iter().map(|(name, value)| (name.clone(), shown(value))).collect(),
        Composite::Unnamed(values) if is_bytes(values) => {
            let bytes: Vec<u8> = values.iter().map(|value| byte(value).expect("a byte")).collect();
            format!("0x{}", hex::encode(bytes)).into()
        }
        Composite::Unnamed(values) if values.len() == 1 => shown(&values[0]),
        Composite::Unnamed(values) => values.iter().map(shown).collect(),
    }
}

fn byte(value: &Scale<u32>) -> Option<u8> {
    match &value.value {
        ValueDef::Primitive(primitive) => u8::try_from(primitive.as_u128()?).ok(),
        _ => None,
    }
}

fn is_bytes(values: &[Scale<u32>]) -> bool {
    values.len() > 1 && values.iter().all(|value| byte(value).is_some())
}
