//! What stands after `|`: which filters there are, and what they take.

use std::rc::Rc;

use super::call::{Args, text};
use super::methods::case::cased;
use super::render::Renderer;
use super::value::{Outcome, Value};
use super::{attribute, json};

mod sequence;
mod words;

pub(super) use sequence::next_batch;

/// Jinja's filters. Those that are not the same each time, or not worth their rules, are refused where they are used.
const FILTERS: [&str; 54] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

/// Whether there is such a filter.
pub(super) fn exists(name: &str) -> bool {
    FILTERS.contains(&name)
}

/// The value of an attribute that a filter's argument names, dots and numbers included.
pub(super) struct Attribute {
    parts: Vec<Value>,
    ignore_case: bool,
    default: Option<Value>,
}

impl Attribute {
    pub(super) fn new(name: Option<&Value>, ignore_case: bool) -> Outcome<Self> {
        let parts = match name {
            None | Some(Value::None) => Vec::new(),
            Some(Value::Str(name)) => name.split('.').map(part).collect::<Outcome<_>>()?,
            Some(index @ (Value::Int(_) | Value::Bool(_))) => vec![index.clone()],
            Some(other) => return Err(format!("{} names no attribute", other.kind())),
        };
        Ok(Self { parts, ignore_case, default: None })
    }

    fn or(self, default: Option<Value>) -> Self {
        Self { default: default.filter(|default| !matches!(default, Value::None)), ..self }
    }

    pub(super) fn of(&self, value: &Value, renderer: &mut Renderer<'_>) -> Outcome<Value> {
        let mut found = value.clone();
        for part in &self.parts {
            found = attribute::item(&found, part, renderer)?;
            if let (true, Some(default)) = (found.is_undefined(), &self.default) {
                found = default.clone();
            }
        }
        match &found {
            Value::Str(text) if self.ignore_case => Ok(Value::str(cased(text, "lower")?)),
            _ => Ok(found),
        }
    }
}

fn part(name: &str) -> Outcome<Value> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return name.parse().map(Value::Int).map_err(|_| format!("the number {name} is too large"));
    }
    if name.chars().any(|character| !character.is_ascii() && character.is_numeric()) {
        return Err(format!("the attribute `{name}` is not supported"));
    }
    Ok(Value::str(name))
}

fn truth(value: Option<&Value>) -> bool {
    value.is_some_and(Value::truth)
}

/// markupsafe's `soft_str`; markup would stay markup and is refused.
fn soft(value: &Value) -> Outcome<Rc<str>> {
    match value {
        Value::Safe(_) => Err("filters on safe markup are not supported".to_owned()),
        other => other.to_text(),
    }
}

impl Renderer<'_> {
    /// Applies a filter.
    pub(super) fn call_filter(&mut self, name: &str, value: Value, args: Args) -> Outcome<Value> {
        self.step(1)?;
        match name {
            "abs" => {
                let [] = args.positional(0)?;
                match value.defined()? {
                    Value::Float(value) => Ok(Value::Float(value.abs())),
                    other => Ok(Value::Int(super::call::integer(other)?.abs())),
                }
            }
            "attr" => {
                let [name] = args.bind(["name"], 1)?;
                attribute::only(&value, text(&name.unwrap_or(Value::None))?, self)
            }
            "d" | "default" => {
                let [default, boolean] = args.bind(["default_value", "boolean"], 0)?;
                let absent = value.is_undefined() || (truth(boolean.as_ref()) && !value.truth());
                Ok(if absent { default.unwrap_or_else(|| Value::str("")) } else { value })
            }
            "string" => {
                let [] = args.positional(0)?;
                match value {
                    Value::Str(_) | Value::Safe(_) => Ok(value),
                    other => Ok(Value::Str(other.to_text()?)),
                }
            }
            "safe" => {
                let [] = args.positional(0)?;
                Ok(Value::Safe(value.to_text()?))
            }
            "tojson" => {
                let parameters = ["ensure_ascii", "indent", "separators", "sort_keys"];
                let [ascii, indent, separators, sort] = args.bind(parameters, 0)?;
                let layout = json::Layout::new(truth(ascii.as_ref()), indent, separators, truth(sort.as_ref()))?;
                let json = json::dumps(&value, &layout)?;
                self.text(json)
            }
            "pprint" => {
                let [] = args.positional(0)?;
                self.pretty(&value)
            }
            "batch" | "count" | "dictsort" | "first" | "groupby" | "items" | "join" | "last" | "length" | "list" | "map"
            | "max" | "min" | "reject" | "rejectattr" | "reverse" | "select" | "selectattr" | "slice" | "sort" | "sum"
            | "unique" => self.sequence_filter(name, value, args),
            "random" | "urlize" | "wordwrap" => Err(format!("the filter `{name}` is not supported")),
            _ if exists(name) => self.word_filter(name, &value, args),
            _ => Err(format!("there is no filter `{name}`")),
        }
    }

    /// Python's `pprint.pformat`, where it fits on one line.
    fn pretty(&mut self, value: &Value) -> Outcome<Value> {
        const WIDTH: usize = 80;
        let mut text = String::new();
        ordered(value)?.repr(&mut text)?;
        if text.chars().count() > WIDTH || text.contains("Markup(") {
            return Err(format!("`pprint` of more than {WIDTH} characters is not supported"));
        }
        self.text(text)
    }
}

/// The value with the keys of its dictionaries in order, as `pprint` shows them.
fn ordered(value: &Value) -> Outcome<Value> {
    let all = |values: &[Value]| values.iter().map(ordered).collect::<Outcome<Vec<_>>>();
    match value {
        Value::List(items) => Value::list(all(&items.values)?),
        Value::Tuple(items) => Value::tuple(all(&items.values)?),
        Value::Dict(dict) => {
            let pairs = dict.entries().iter().map(|(key, value)| Ok((text(key)?, ordered(value)?)));
            let mut pairs = pairs.collect::<Outcome<Vec<(&str, Value)>>>()?;
            pairs.sort_by_key(|(key, _)| *key);
            Value::dict(pairs.into_iter().map(|(key, value)| (Value::str(key), value)).collect())
        }
        Value::View(..) => Err("`pprint` of a view is not supported".to_owned()),
        other => Ok(other.clone()),
    }
}
