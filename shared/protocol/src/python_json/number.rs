//! How Python's `int()` and `float()` read a JSON value (grail-miner 5, grail-validation 5 and 7).

use serde_json::Value;

/// `int(value)`: integers, booleans, floats cut towards zero, decimal strings. `None` where Python raises. What does not
/// fit 64 bits becomes the nearest that does, which no check tells apart.
#[must_use]
pub fn python_int(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(flag) => Some(i64::from(*flag)),
        Value::Number(number) => {
            number.as_i64().or_else(|| number.as_u64().map(|_| i64::MAX)).or_else(|| number.as_f64().map(|float| float as i64))
        }
        Value::String(text) => integer_text(text),
        _ => None,
    }
}

/// `float(value)`: numbers, booleans, decimal strings, `nan` and `inf` in any case. `None` where Python raises.
#[must_use]
pub fn python_float(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => float_text(text),
        _ => None,
    }
}

/// A number, or one of the words `NaN`, `Infinity`, `-Infinity` by which a JSON value carries a float that is not finite.
/// Any other string is none: later checks see the raw value, and Python does not compute with strings.
#[must_use]
pub fn raw_float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(word) => match word.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// A float as JSON: a number, or one of the three words that [`raw_float`] reads.
#[must_use]
pub fn float_value(float: f64) -> Value {
    serde_json::Number::from_f64(float).map_or_else(
        || {
            let infinite = if float > 0.0 { "Infinity" } else { "-Infinity" };
            Value::from(if float.is_nan() { "NaN" } else { infinite })
        },
        Value::Number,
    )
}

/// A decimal string as `int()` reads it: blanks around, a sign, underscores between digits.
#[must_use]
pub fn integer_text(text: &str) -> Option<i64> {
    let digits = without_underscores(text.trim())?;
    let (negative, magnitude) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits.strip_prefix('+').unwrap_or(&digits)),
    };
    if magnitude.is_empty() || !magnitude.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let magnitude = magnitude.parse::<i64>().unwrap_or(i64::MAX);
    Some(if negative { -magnitude } else { magnitude })
}

/// A string as `float()` reads it.
#[must_use]
pub fn float_text(text: &str) -> Option<f64> {
    // Rust reads the same words (`nan`, `inf`, `infinity`, any case) and decimal forms.
    without_underscores(text.trim())?.parse().ok()
}

/// Python allows one underscore between two digits.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let stray = |position: usize| {
        let before = position.checked_sub(1).and_then(|index| bytes.get(index));
        let after = bytes.get(position + 1);
        !(before.is_some_and(u8::is_ascii_digit) && after.is_some_and(u8::is_ascii_digit))
    };
    let legal = !text.match_indices('_').any(|(position, _)| stray(position));
    legal.then(|| text.replace('_', ""))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_python_reads() {
        let integers = [json!("64"), json!(" +6_4\n"), json!(64.9), json!(64)];
        assert!(integers.iter().all(|value| python_int(value) == Some(64)));
        let none = [json!("64.0"), json!("6__4"), json!(""), json!(null), json!("x"), json!([])];
        assert!(none.iter().all(|value| python_int(value).is_none()));
        assert_eq!(python_int(&json!(-1.9)), Some(-1));
        assert_eq!(python_float(&json!(" 1e3 ")), Some(1000.0));
        assert!(python_float(&json!("NaN")).unwrap().is_nan());
        assert_eq!(raw_float(&json!("1.0")), None);
        assert_eq!(raw_float(&float_value(f64::NEG_INFINITY)), Some(f64::NEG_INFINITY));
    }
}
