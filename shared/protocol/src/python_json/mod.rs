//! JSON as Python's `json.dumps` writes it, byte for byte: ASCII escapes, float repr, sorted keys (grail-protocol 3.1 and 6.3).
//!
//! Hashes run over such texts, so nothing here may round or reorder differently. A [`serde_json::Value`] cannot hold
//! non-finite floats; the typed writer in [`commit`] can, and [`text`] keeps integers beyond 64 bits.

pub mod commit;
pub mod number;
pub mod text;

use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

/// Where canonical text goes: a string, or straight into a hash.
pub trait Sink {
    /// Takes the next piece of text.
    fn write(&mut self, text: &str);
}

impl Sink for String {
    fn write(&mut self, text: &str) {
        self.push_str(text);
    }
}

impl Sink for Sha256 {
    fn write(&mut self, text: &str) {
        Digest::update(self, text);
    }
}

/// Separators and key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// `", "` and `": "` instead of `","` and `":"`.
    pub spaced: bool,
    /// Keys sorted by code point instead of in their own order.
    pub sorted: bool,
}

/// What is hashed: sorted keys, no spaces.
pub const CANONICAL: Style = Style { spaced: false, sorted: true };
/// `json.dumps` without arguments, as the columns of a window file are written.
pub const DEFAULT: Style = Style { spaced: true, sorted: false };
/// Sorted keys with Python's default separators.
pub const SPACED_SORTED: Style = Style { spaced: true, sorted: true };

impl Style {
    fn comma(self) -> &'static str {
        if self.spaced { ", " } else { "," }
    }

    fn colon(self) -> &'static str {
        if self.spaced { ": " } else { ":" }
    }
}

/// A JSON value as Python writes it.
#[must_use]
pub fn to_string(value: &Value, style: Style) -> String {
    let mut text = String::new();
    write_value(value, style, &mut text);
    text
}

/// SHA-256 of the canonical text of a JSON value.
#[must_use]
pub fn canonical_hash(value: &Value) -> [u8; 32] {
    let mut hasher = Buffered::new(Sha256::new());
    write_value(value, CANONICAL, &mut hasher);
    hasher.into_inner().finalize().into()
}

/// Writes a JSON value as Python does.
pub fn write_value(value: &Value, style: Style, sink: &mut impl Sink) {
    match value {
        Value::Null => sink.write("null"),
        Value::Bool(true) => sink.write("true"),
        Value::Bool(false) => sink.write("false"),
        Value::Number(number) => write_number(number, sink),
        Value::String(text) => write_text(text, sink),
        Value::Array(items) => write_list(items.iter(), style, sink, |item, sink| write_value(item, style, sink)),
        Value::Object(object) => write_object(object, style, sink),
    }
}

fn write_object(object: &Map<String, Value>, style: Style, sink: &mut impl Sink) {
    let mut entries: Vec<(&String, &Value)> = object.iter().collect();
    if style.sorted {
        // The order of UTF-8 bytes is the order of code points, which is Python's.
        entries.sort_unstable_by_key(|(key, _)| *key);
    }
    sink.write("{");
    for (index, (key, value)) in entries.into_iter().enumerate() {
        if index > 0 {
            sink.write(style.comma());
        }
        write_text(key, sink);
        sink.write(style.colon());
        write_value(value, style, sink);
    }
    sink.write("}");
}

/// Writes a list whose items `write_item` writes.
pub fn write_list<T, S: Sink>(items: impl Iterator<Item = T>, style: Style, sink: &mut S, write_item: impl Fn(T, &mut S)) {
    sink.write("[");
    for (index, item) in items.enumerate() {
        if index > 0 {
            sink.write(style.comma());
        }
        write_item(item, sink);
    }
    sink.write("]");
}

fn write_number(number: &Number, sink: &mut impl Sink) {
    match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(integer), _, _) => write_integer(integer, sink),
        (None, Some(integer), _) => sink.write(&integer.to_string()),
        (None, None, float) => write_float(float.unwrap_or(f64::NAN), sink),
    }
}

/// Writes an integer in decimal, without an allocation.
pub fn write_integer(integer: i64, sink: &mut impl Sink) {
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    let mut rest = integer.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if integer < 0 {
        sink.write("-");
    }
    sink.write(std::str::from_utf8(&digits[start..]).unwrap_or_default());
}

/// Writes a float as Python's `repr`: the shortest digits that read back, an exponent below 1e-4 and from 1e16 on,
/// `NaN`, `Infinity`, `-Infinity`.
pub fn write_float(float: f64, sink: &mut impl Sink) {
    if float.is_nan() {
        return sink.write("NaN");
    }
    if float.is_infinite() {
        return sink.write(if float > 0.0 { "Infinity" } else { "-Infinity" });
    }
    if float == 0.0 {
        return sink.write(if float.is_sign_negative() { "-0.0" } else { "0.0" });
    }
    if float < 0.0 {
        sink.write("-");
    }
    write_positive(float.abs(), sink);
}

/// Of two shortest forms that are equally near, Python takes the even one, and the standard library the larger. Widened
/// `f32` values are full of such ties, so the digits come from an algorithm that breaks them as Python does.
fn write_positive(float: f64, sink: &mut impl Sink) {
    let mut buffer = zmij::Buffer::new();
    let shortest = buffer.format_finite(float);
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let leading = digits.len() - digits.trim_start_matches('0').len();
    let exponent = exponent.parse::<i32>().unwrap_or(0) + count(whole.len()) - 1 - count(leading);
    write_digits(digits.trim_matches('0'), exponent, sink);
}

fn count(digits: usize) -> i32 {
    i32::try_from(digits).unwrap_or(i32::MAX)
}

fn write_digits(digits: &str, exponent: i32, sink: &mut impl Sink) {
    let (first, rest) = digits.split_at(1);
    if !(-4..16).contains(&exponent) {
        sink.write(first);
        if !rest.is_empty() {
            sink.write(".");
            sink.write(rest);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        return sink.write(&format!("e{sign}{:02}", exponent.unsigned_abs()));
    }
    if exponent < 0 {
        sink.write("0.");
        sink.write(&"0".repeat(exponent.unsigned_abs() as usize - 1));
        return sink.write(digits);
    }
    let whole = exponent.unsigned_abs() as usize + 1;
    if digits.len() <= whole {
        sink.write(digits);
        sink.write(&"0".repeat(whole - digits.len()));
        return sink.write(".0");
    }
    let (integer, fraction) = digits.split_at(whole);
    sink.write(integer);
    sink.write(".");
    sink.write(fraction);
}

/// Writes a string with its quotes, everything beyond printable ASCII as `\uXXXX`.
pub fn write_text(text: &str, sink: &mut impl Sink) {
    sink.write("\"");
    let mut plain = 0;
    for (position, character) in text.char_indices() {
        if matches!(character, ' '..='~') && !matches!(character, '"' | '\\') {
            continue;
        }
        sink.write(&text[plain..position]);
        plain = position + character.len_utf8();
        write_escaped(character, sink);
    }
    sink.write(&text[plain..]);
    sink.write("\"");
}

fn write_escaped(character: char, sink: &mut impl Sink) {
    let short = match character {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        '\x08' => "\\b",
        '\x0c' => "\\f",
        _ => {
            for unit in character.encode_utf16(&mut [0; 2]) {
                sink.write(&format!("\\u{unit:04x}"));
            }
            return;
        }
    };
    sink.write(short);
}

/// Collects small pieces so that a hash sees kilobytes at a time; hashing a few bytes per call costs more than the hash.
pub struct Buffered<S: Sink> {
    inner: S,
    pieces: String,
}

const BUFFER_BYTES: usize = 8192;

impl<S: Sink> Buffered<S> {
    /// A buffer of 8 KiB in front of `inner`.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self { inner, pieces: String::with_capacity(BUFFER_BYTES) }
    }

    /// Passes on what is held and gives back the sink.
    #[must_use]
    pub fn into_inner(mut self) -> S {
        self.inner.write(&self.pieces);
        self.inner
    }
}

impl<S: Sink> Sink for Buffered<S> {
    fn write(&mut self, text: &str) {
        if self.pieces.len() + text.len() > BUFFER_BYTES {
            self.inner.write(&self.pieces);
            self.pieces.clear();
        }
        if text.len() > BUFFER_BYTES { self.inner.write(text) } else { self.pieces.push_str(text) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn repr(float: f64) -> String {
        let mut text = String::new();
        write_float(float, &mut text);
        text
    }

    #[test]
    fn floats_print_as_python_prints_them() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-0.0, "-0.0"),
            (1e-7, "1e-07"),
            (0.0001, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e22, "1.25e+22"),
            (123_456_789.125, "123456789.125"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
            (9_007_199_254_740_993.0, "9007199254740992.0"),
            (-1e-5, "-1e-05"),
            (f64::from(-0.989_795_2_f32), "-0.9897952079772949"),
            // Exact ties between two shortest forms.
            (-1.183_570_861_816_406_2, "-1.1835708618164062"),
            (-0.699_165_344_238_281_2, "-0.6991653442382812"),
        ];
        for (float, text) in cases {
            assert_eq!(repr(float), text);
        }
    }

    #[test]
    fn strings_are_ascii() {
        let text = to_string(&json!({"b": "é中😀\"\\/\n\t\u{1}\u{7f}", "a": [1, -2, null, true]}), CANONICAL);
        assert_eq!(text, r#"{"a":[1,-2,null,true],"b":"\u00e9\u4e2d\ud83d\ude00\"\\/\n\t\u0001\u007f"}"#);
        assert_eq!(to_string(&json!({"b": 1, "a": []}), DEFAULT), r#"{"b": 1, "a": []}"#);
        assert_eq!(to_string(&json!([i64::MIN, u64::MAX]), SPACED_SORTED), "[-9223372036854775808, 18446744073709551615]");
    }

    proptest! {
        #[test]
        fn a_written_float_reads_back(bits in any::<u64>()) {
            let float = f64::from_bits(bits);
            prop_assume!(float.is_finite());
            prop_assert_eq!(repr(float).parse::<f64>().unwrap().to_bits(), float.to_bits());
        }

        #[test]
        fn a_buffer_changes_nothing(pieces in proptest::collection::vec(".{0,40}", 0..50), long in 0_usize..20_000) {
            let mut plain = String::new();
            let mut buffered = Buffered::new(String::new());
            for piece in pieces.iter().cloned().chain([ "x".repeat(long) ]) {
                plain.write(&piece);
                buffered.write(&piece);
            }
            prop_assert_eq!(plain, buffered.into_inner());
        }
    }
}
