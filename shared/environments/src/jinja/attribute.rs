//! `value.name` and `value[index]`, as the sandbox allows them.

use std::rc::Rc;

use super::render::Renderer;
use super::value::{Outcome, Value};

/// Python's public attributes of each type. Jinja prefers them to a dictionary's keys where a dot is used.
const STR: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const LIST: [&str; 3] = ["copy", "count", "index"];
const TUPLE: [&str; 2] = ["count", "index"];
const INT: [&str; 10] = [
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "denominator",
    "from_bytes",
    "imag",
    "numerator",
    "real",
    "to_bytes",
];
const FLOAT: [&str; 7] = ["as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"];
const RANGE: [&str; 5] = ["count", "index", "start", "step", "stop"];
const VIEW: [&str; 2] = ["isdisjoint", "mapping"];
const GENERATOR: [&str; 8] = ["close", "gi_code", "gi_frame", "gi_running", "gi_suspended", "gi_yieldfrom", "send", "throw"];
const CYCLER: [&str; 5] = ["current", "items", "next", "pos", "reset"];
const JOINER: [&str; 2] = ["sep", "used"];
const MACRO: [&str; 6] = ["arguments", "caller", "catch_kwargs", "catch_varargs", "explicit_caller", "name"];
/// What would change a list or dictionary: the sandbox answers with an undefined value.
const CHANGES_DICT: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const CHANGES_LIST: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];

enum Found {
    Value(Value),
    /// There, but the sandbox hides it.
    Unsafe,
    Nothing,
}

/// `of.name`: the attribute, else the item.
pub(super) fn attribute(of: &Value, name: &str, renderer: &mut Renderer<'_>) -> Outcome<Value> {
    of.defined()?;
    match python(of, name, renderer)? {
        Found::Value(value) => Ok(value),
        Found::Unsafe => Ok(undefined(of, name)),
        Found::Nothing => match of {
            Value::Dict(dict) => Ok(dict.get_str(name).cloned().unwrap_or_else(|| undefined(of, name))),
            _ => Ok(undefined(of, name)),
        },
    }
}

/// `of[index]`: the item, else the attribute of that name.
pub(super) fn item(of: &Value, index: &Value, renderer: &mut Renderer<'_>) -> Outcome<Value> {
    of.defined()?;
    if let Some(value) = element(of, index)? {
        return Ok(value);
    }
    let Some(name) = index.text() else { return Ok(undefined(of, &index.to_text().unwrap_or_default())) };
    match python(of, name, renderer)? {
        Found::Value(value) => Ok(value),
        Found::Unsafe | Found::Nothing => Ok(undefined(of, name)),
    }
}

/// The `attr` filter: the attribute alone.
pub(super) fn only(of: &Value, name: &str, renderer: &mut Renderer<'_>) -> Outcome<Value> {
    of.defined()?;
    match python(of, name, renderer)? {
        Found::Value(value) => Ok(value),
        Found::Unsafe | Found::Nothing => Ok(undefined(of, name)),
    }
}

fn undefined(of: &Value, name: &str) -> Value {
    Value::undefined(format!("`{name}` of {}", of.kind()))
}

/// Python's `of[index]`, none where it raises what Jinja catches.
fn element(of: &Value, index: &Value) -> Outcome<Option<Value>> {
    let place = |length: i128| {
        let at = index.integer()?;
        let at = if at < 0 { at + length } else { at };
        usize::try_from(at).ok().filter(|_| at < length)
    };
    Ok(match of {
        Value::Dict(dict) => match index.key()? {
            Some(key) => dict.get(&key).cloned(),
            None => None,
        },
        Value::List(items) | Value::Tuple(items) => place(items.values.len() as i128).map(|at| items.values[at].clone()),
        Value::Str(text) => {
            let length = text.chars().count() as i128;
            place(length).and_then(|at| text.chars().nth(at)).map(|character| Value::str(character.to_string()))
        }
        Value::Safe(_) => return Err("characters of safe markup are not supported".to_owned()),
        Value::Range(range) => place(range.len()).map(|at| range.get(at as i128)),
        _ => None,
    })
}

fn python(of: &Value, name: &str, renderer: &mut Renderer<'_>) -> Outcome<Found> {
    if name.starts_with('_') {
        // Which of them are really there differs from type to type; a dictionary may have such a key.
        let key = matches!(of, Value::Dict(dict) if dict.get_str(name).is_some());
        return if key && name.starts_with("__") {
            Err(format!("the key `{name}` is not supported"))
        } else if key {
            Ok(Found::Nothing)
        } else {
            Ok(Found::Unsafe)
        };
    }
    let method = || Found::Value(Value::Method(Rc::new((of.clone(), name.to_owned()))));
    let unknown = |names: &[&str]| match names.contains(&name) {
        true => Err(format!("`{name}` of {} is not supported", of.kind())),
        false => Ok(Found::Nothing),
    };
    Ok(match of {
        Value::Str(_) if STR.contains(&name) => method(),
        Value::Safe(_) => return unknown(&[&STR[..], &["escape", "striptags", "unescape"]].concat()),
        Value::Dict(_) if DICT.contains(&name) => method(),
        Value::Dict(_) if CHANGES_DICT.contains(&name) => Found::Unsafe,
        Value::List(_) if LIST.contains(&name) => method(),
        Value::List(_) if CHANGES_LIST.contains(&name) => Found::Unsafe,
        Value::Tuple(items) if items.group && name == "grouper" => Found::Value(items.values[0].clone()),
        Value::Tuple(items) if items.group && name == "list" => Found::Value(items.values[1].clone()),
        Value::Tuple(_) if TUPLE.contains(&name) => method(),
        Value::Bool(_) | Value::Int(_) => return unknown(&INT),
        Value::Float(_) => return unknown(&FLOAT),
        Value::Range(_) => return unknown(&RANGE),
        Value::View(..) => return unknown(&VIEW),
        Value::Iterator(_) => return unknown(&GENERATOR),
        Value::Namespace(namespace) => {
            let attributes = namespace.attributes.borrow();
            match attributes.iter().find(|(known, _)| known == name) {
                Some((_, value)) => Found::Value(value.clone()),
                None => Found::Nothing,
            }
        }
        Value::Loop(state) => match state.attribute(name, renderer)? {
            Some(value) => Found::Value(value),
            None => Found::Nothing,
        },
        Value::Cycler(cycler) if name == "current" => Found::Value(cycler.items[cycler.at.get()].clone()),
        Value::Cycler(_) if name == "next" || name == "reset" => method(),
        Value::Cycler(_) => return unknown(&CYCLER),
        Value::Joiner(_) => return unknown(&JOINER),
        Value::Macro(inner) if name == "name" => Found::Value(inner.definition.name.as_deref().map_or(Value::None, Value::str)),
        Value::Macro(_) => return unknown(&MACRO),
        Value::Function(_) | Value::Method(_) => return Err(format!("`{name}` of {} is not supported", of.kind())),
        _ => Found::Nothing,
    })
}
