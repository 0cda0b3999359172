//! Python's numbers: how they print, compare and compute. Integers end at 127 bits, beyond it is an error.

use std::cmp::Ordering;

use super::ast::Binary;
use super::value::{Outcome, Value};
use crate::python_text::{decimal_digit, strip};

/// Python's `repr` of a float: the shortest digits that read back the same.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

/// The whole number that a float is exactly, if it is one.
pub(super) fn exact_integer(value: f64) -> Option<i128> {
    (value.is_finite() && value.fract() == 0.0 && value.abs() < 1e38).then_some(value as i128)
}

/// A number as a float, if that is exact enough not to matter.
pub(super) fn float(value: &Value) -> Outcome<f64> {
    match value {
        Value::Float(value) => Ok(*value),
        _ => match value.integer() {
            Some(whole) if whole.unsigned_abs() <= 1 << 53 => Ok(whole as f64),
            Some(whole) => Err(format!("{whole} as a float is not supported")),
            None => Err(format!("{} is no number", value.kind())),
        },
    }
}

/// The order of two numbers; none where one is not a number.
pub(super) fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Float(left), Value::Float(right)) => left.partial_cmp(right),
        (Value::Float(left), right) => mixed(right.integer()?, *left).map(Ordering::reverse),
        (left, Value::Float(right)) => mixed(left.integer()?, *right),
        (left, right) => Some(left.integer()?.cmp(&right.integer()?)),
    }
}

/// An integer beside a float, compared exactly.
fn mixed(left: i128, right: f64) -> Option<Ordering> {
    if right.is_nan() {
        return None;
    }
    if right.abs() >= 1e38 {
        return Some(if right > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    let whole = right.trunc();
    let order = left.cmp(&(whole as i128));
    Some(order.then_with(|| 0.0.partial_cmp(&(right - whole)).unwrap_or(Ordering::Equal)))
}

/// A number that Jinja could keep as a constant: a program with an infinite one does not run.
pub(super) fn finite(value: f64) -> Outcome<Value> {
    if value.is_finite() { Ok(Value::Float(value)) } else { Err("a result is infinite or not a number".to_owned()) }
}

fn overflow() -> String {
    "a whole number is too large".to_owned()
}

/// `left operator right` of two numbers.
pub(super) fn binary(operator: Binary, left: &Value, right: &Value) -> Outcome<Value> {
    if let (Some(left), Some(right)) = (left.integer(), right.integer())
        && operator != Binary::Divide
    {
        return integers(operator, left, right);
    }
    let (left, right) = (float(left)?, float(right)?);
    let by_zero = || "division by zero".to_owned();
    finite(match operator {
        Binary::Add => left + right,
        Binary::Subtract => left - right,
        Binary::Multiply => left * right,
        Binary::Divide | Binary::FloorDivide | Binary::Modulo if right == 0.0 => return Err(by_zero()),
        Binary::Divide => left / right,
        Binary::FloorDivide => floor_divide(left, right).0,
        Binary::Modulo => floor_divide(left, right).1,
        Binary::Power if left == 0.0 && right < 0.0 => return Err(by_zero()),
        Binary::Power => left.powf(right),
    })
}

/// Python's `divmod` of floats.
fn floor_divide(left: f64, right: f64) -> (f64, f64) {
    let mut rest = left % right;
    let mut quotient = (left - rest) / right;
    if rest == 0.0 {
        rest = 0.0_f64.copysign(right);
    } else if (right < 0.0) != (rest < 0.0) {
        rest += right;
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return (0.0_f64.copysign(left / right), rest);
    }
    let floor = quotient.floor();
    (if quotient - floor > 0.5 { floor + 1.0 } else { floor }, rest)
}

fn integers(operator: Binary, left: i128, right: i128) -> Outcome<Value> {
    let result = match operator {
        Binary::Add => left.checked_add(right),
        Binary::Subtract => left.checked_sub(right),
        Binary::Multiply => left.checked_mul(right),
        Binary::FloorDivide | Binary::Modulo | Binary::Divide if right == 0 => return Err("division by zero".to_owned()),
        Binary::FloorDivide => {
            left.checked_div(right).map(|quotient| quotient - i128::from(left % right != 0 && (left < 0) != (right < 0)))
        }
        Binary::Modulo => {
            left.checked_rem(right).map(|rest| if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest })
        }
        Binary::Power if right < 0 => return binary(operator, &Value::Float(left as f64), &Value::Float(right as f64)),
        Binary::Power => u32::try_from(right).ok().and_then(|right| left.checked_pow(right)),
        Binary::Divide => return Err("division of integers is a float's".to_owned()),
    };
    result.map(Value::Int).ok_or_else(overflow)
}

/// `-value`.
pub(super) fn negative(value: &Value) -> Outcome<Value> {
    match value.defined()? {
        Value::Float(value) => Ok(Value::Float(-value)),
        other => match other.integer() {
            Some(whole) => whole.checked_neg().map(Value::Int).ok_or_else(overflow),
            None => Err(format!("{} has no negative", other.kind())),
        },
    }
}

/// Digits with single underscores between them, in any script, as ASCII.
fn plain_digits(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut last = '_';
    for character in text.chars() {
        match decimal_digit(character) {
            Some(digit) => plain.extend(char::from_digit(digit, 10)),
            None if character == '_' => {
                if !last.is_alphanumeric() || decimal_digit(last).is_none() {
                    return None;
                }
            }
            None => plain.push(character),
        }
        last = character;
    }
    (last != '_').then_some(plain)
}

/// Python's `int(text, base)`; none where it raises a `ValueError`.
pub(super) fn parse_integer(text: &str, base: u32) -> Outcome<Option<i128>> {
    if base != 10 {
        return Err(format!("the base {base} of `int` is not supported"));
    }
    let text = strip(text);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let Some(digits) = plain_digits(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit())) else {
        return Ok(None);
    };
    let value: i128 = digits.parse().map_err(|_| overflow())?;
    Ok(Some(if negative { -value } else { value }))
}

/// Python's `float(text)`; none where it raises a `ValueError`.
pub(super) fn parse_float(text: &str) -> Outcome<Option<f64>> {
    let text = strip(text);
    let Some(plain) = plain_digits(text) else { return Ok(None) };
    let number = plain.trim_start_matches(['+', '-']).to_ascii_lowercase();
    if ["inf", "infinity", "nan"].contains(&number.as_str()) {
        return Err(format!("`{plain}` as a float is not supported"));
    }
    if !number.starts_with(|first: char| first.is_ascii_digit() || first == '.') || !number.is_ascii() {
        return Ok(None);
    }
    match plain.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Some(value)),
        Ok(_) => Err("a number is infinite".to_owned()),
        Err(_) => Ok(None),
    }
}

/// Python's `round(value, digits)`.
pub(super) fn round(value: &Value, digits: i128) -> Outcome<Value> {
    let digits = usize::try_from(digits).map_err(|_| "rounding to tens is not supported".to_owned())?;
    match value {
        Value::Float(value) if digits <= 22 => {
            let text = format!("{value:.digits$}");
            text.parse().map_err(|_| "a number cannot be rounded".to_owned()).and_then(finite)
        }
        Value::Float(_) => Err("rounding to so many digits is not supported".to_owned()),
        other => match other.integer() {
            Some(whole) => Ok(Value::Int(whole)),
            None => Err(format!("{} cannot be rounded", other.kind())),
        },
    }
}
