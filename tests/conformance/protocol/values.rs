//! How the vectors write what JSON cannot: non-finite floats, binary arrays, numbers as text.

use base64::Engine as _;
use serde_json::Value;

/// The items of a list; none if it is absent.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A text field.
pub fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

/// An index or a count.
pub fn size(value: &Value) -> usize {
    usize::try_from(value.as_u64().expect("a count")).expect("a count of this machine")
}

/// A list of integers.
pub fn integers(value: &Value) -> Vec<i64> {
    items(value).iter().map(|item| item.as_i64().expect("an integer")).collect()
}

/// A list of counts.
pub fn sizes(value: &Value) -> Vec<usize> {
    items(value).iter().map(size).collect()
}

/// A number, a decimal text, `"NaN"` and its kin, or `{"$f": "nan"}`.
pub fn float(value: &Value) -> f64 {
    let word = value.get("$f").unwrap_or(value);
    value.as_f64().or_else(|| word.as_str()?.parse().ok()).expect("a number or a word for one")
}

/// A list of such numbers.
pub fn floats(value: &Value) -> Vec<f64> {
    items(value).iter().map(float).collect()
}

/// The same document with every `{"$f": …}` written as the word that the checks read.
pub fn with_words(value: &Value) -> Value {
    match value {
        Value::Object(object) if object.len() == 1 && object.contains_key("$f") => {
            grail_protocol::python_json::number::float_value(float(value))
        }
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), with_words(value))).collect(),
        Value::Array(items) => items.iter().map(with_words).collect(),
        other => other.clone(),
    }
}

/// Little-endian `f32` behind base64.
pub fn binary(value: &Value) -> Vec<f32> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text(value)).expect("base64");
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Bytes behind hex.
pub fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(text(value)).expect("hex")
}

/// Whether two numbers agree to a share of the larger, or both are no numbers.
pub fn near(got: f64, want: f64, relative: f64) -> bool {
    got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= relative * want.abs().max(1.0)
}

/// The big-endian bytes of a decimal integer of any size, without its sign.
pub fn magnitude(decimal: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = vec![0];
    for digit in decimal.trim_start_matches('-').bytes() {
        let mut carry = u32::from(digit - b'0');
        for byte in bytes.iter_mut().rev() {
            let product = u32::from(*byte) * 10 + carry;
            *byte = (product & 0xff) as u8;
            carry = product >> 8;
        }
        if carry > 0 {
            bytes.insert(0, carry as u8);
        }
    }
    bytes
}
