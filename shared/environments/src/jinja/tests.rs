//! What stands after `is`.

use super::ast::Comparison;
use super::call::Args;
use super::iterate::Iter;
use super::render::Renderer;
use super::value::{Outcome, Value};
use super::{filters, methods};

const TESTS: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Whether there is such a test.
pub(super) fn exists(name: &str) -> bool {
    TESTS.contains(&name)
}

impl Renderer<'_> {
    /// Whether a value passes a test.
    pub(super) fn call_test(&mut self, name: &str, value: &Value, args: Args) -> Outcome<bool> {
        self.step(1)?;
        let comparison = match name {
            "==" | "eq" | "equalto" => Some(Comparison::Equal),
            "!=" | "ne" => Some(Comparison::NotEqual),
            ">" | "gt" | "greaterthan" => Some(Comparison::Greater),
            ">=" | "ge" => Some(Comparison::GreaterOrEqual),
            "<" | "lt" | "lessthan" => Some(Comparison::Less),
            "<=" | "le" => Some(Comparison::LessOrEqual),
            _ => None,
        };
        if let Some(comparison) = comparison {
            let [other] = args.positional(1)?;
            return self.holds(comparison, value, &other.unwrap_or(Value::None));
        }
        match name {
            "in" => {
                let [container] = args.bind(["seq"], 1)?;
                self.contains(&container.unwrap_or(Value::None), value)
            }
            "divisibleby" => {
                let [divisor] = args.bind(["num"], 1)?;
                let rest = self.binary(super::ast::Binary::Modulo, value, &divisor.unwrap_or(Value::None))?;
                rest.equals(&Value::Int(0))
            }
            "sameas" => {
                let [other] = args.bind(["other"], 1)?;
                same(value, &other.unwrap_or(Value::None))
            }
            _ => {
                let [] = args.positional(0)?;
                self.simple_test(name, value)
            }
        }
    }

    fn simple_test(&mut self, name: &str, value: &Value) -> Outcome<bool> {
        Ok(match name {
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "false" => matches!(value, Value::Bool(false)),
            "true" => matches!(value, Value::Bool(true)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
            "string" => value.text().is_some(),
            "escaped" => matches!(value, Value::Safe(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "lower" => methods::case::is(&value.to_text()?, "islower")?,
            "upper" => methods::case::is(&value.to_text()?, "isupper")?,
            "odd" | "even" => {
                let rest = self.binary(super::ast::Binary::Modulo, value, &Value::Int(2))?;
                rest.equals(&Value::Int(i128::from(name == "odd")))?
            }
            "sequence" => match value {
                Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Str(_) | Value::Safe(_) | Value::Range(_) => true,
                Value::Undefined(_) => true,
                Value::View(..) | Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Iterator(_) => false,
                other => return Err(format!("`is sequence` of {} is not supported", other.kind())),
            },
            "iterable" => match value {
                Value::Function(_) | Value::Method(_) | Value::Cycler(_) | Value::Loop(_) => {
                    return Err(format!("`is iterable` of {} is not supported", value.kind()));
                }
                other => Iter::maybe(other)?.is_some(),
            },
            "callable" => match value {
                Value::Macro(_) | Value::Function(_) | Value::Method(_) | Value::Joiner(_) | Value::Loop(_) => true,
                Value::Undefined(_) => true,
                Value::Namespace(_) | Value::Cycler(_) => return Err("`is callable` is not supported here".to_owned()),
                _ => false,
            },
            "filter" => filters::exists(super::call::text(value)?),
            "test" => exists(super::call::text(value)?),
            _ => return Err(format!("there is no test `{name}`")),
        })
    }
}

/// Python's `is`, where it does not depend on the interpreter's memory.
fn same(left: &Value, right: &Value) -> Outcome<bool> {
    let single = |value: &Value| matches!(value, Value::None | Value::Bool(_));
    match (left, right) {
        (Value::None, Value::None) => Ok(true),
        (Value::Bool(left), Value::Bool(right)) => Ok(left == right),
        _ if single(left) || single(right) => Ok(false),
        _ => Err("`is sameas` of such values is not supported".to_owned()),
    }
}
