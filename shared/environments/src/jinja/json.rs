//! transformers' `tojson`: Python's `json.dumps`.

use super::number;
use super::value::{Outcome, Value};

/// How it is laid out.
pub(super) struct Layout {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

impl Layout {
    pub(super) fn new(ascii: bool, indent: Option<Value>, separators: Option<Value>, sort: bool) -> Outcome<Self> {
        let indent = match indent {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) => Some(indent.to_string()),
            Some(width) => Some(" ".repeat(super::call::count(&width)?.min(super::MAX_BYTES))),
        };
        let mut layout =
            Self { ascii, item: if indent.is_some() { "," } else { ", " }.to_owned(), key: ": ".to_owned(), indent, sort };
        match separators {
            None | Some(Value::None) => {}
            Some(Value::Tuple(items) | Value::List(items)) if items.values.len() == 2 => {
                layout.item = super::call::text(&items.values[0])?.to_owned();
                layout.key = super::call::text(&items.values[1])?.to_owned();
            }
            Some(other) => return Err(format!("separators cannot be {}", other.kind())),
        }
        Ok(layout)
    }

    fn line(&self, depth: usize, out: &mut String) -> Outcome<()> {
        if let Some(indent) = &self.indent {
            out.push('\n');
            if out.len().saturating_add(indent.len().saturating_mul(depth)) > super::MAX_BYTES {
                return Err(super::too_long());
            }
            out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }
}

/// The value as JSON.
pub(super) fn dumps(value: &Value, layout: &Layout) -> Outcome<String> {
    let mut out = String::new();
    write(value, layout, 0, &mut out)?;
    Ok(out)
}

fn write(value: &Value, layout: &Layout, depth: usize, out: &mut String) -> Outcome<()> {
    if out.len() > super::MAX_BYTES {
        return Err(super::too_long());
    }
    match value {
        Value::Str(text) | Value::Safe(text) => quote(text, layout.ascii, out),
        Value::List(items) | Value::Tuple(items) if items.values.is_empty() => out.push_str("[]"),
        Value::List(items) | Value::Tuple(items) => {
            out.push('[');
            for (at, item) in items.values.iter().enumerate() {
                if at > 0 {
                    out.push_str(&layout.item);
                }
                layout.line(depth + 1, out)?;
                write(item, layout, depth + 1, out)?;
            }
            layout.line(depth, out)?;
            out.push(']');
        }
        Value::Dict(dict) if dict.entries().is_empty() => out.push_str("{}"),
        Value::Dict(dict) => {
            out.push('{');
            let mut pairs: Vec<&(Value, Value)> = dict.entries().iter().collect();
            if layout.sort {
                sort(&mut pairs)?;
            }
            for (at, (key, value)) in pairs.into_iter().enumerate() {
                if at > 0 {
                    out.push_str(&layout.item);
                }
                layout.line(depth + 1, out)?;
                match key {
                    Value::Str(text) | Value::Safe(text) => quote(text, layout.ascii, out),
                    other => quote(&plain(other)?, layout.ascii, out),
                }
                out.push_str(&layout.key);
                write(value, layout, depth + 1, out)?;
            }
            layout.line(depth, out)?;
            out.push('}');
        }
        other => out.push_str(&plain(other)?),
    }
    Ok(())
}

/// Sorts by keys, which must have an order.
fn sort(pairs: &mut [&(Value, Value)]) -> Outcome<()> {
    let mut failure = None;
    pairs.sort_by(|left, right| match left.0.compare(&right.0) {
        Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
        Err(error) => {
            failure = Some(error);
            std::cmp::Ordering::Equal
        }
    });
    failure.map_or(Ok(()), Err)
}

/// What needs no quotes as a value.
fn plain(value: &Value) -> Outcome<String> {
    Ok(match value {
        Value::None => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => number::float_repr(*value),
        other => return Err(format!("{} cannot be written as JSON", other.kind())),
    })
}

fn quote(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' => out.push_str(&format!("\\u{:04x}", u32::from(character))),
            '\u{7f}'.. if ascii => {
                character.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}
