//! Python's two ways to format a text: `%`, and `str.format` as the sandbox has it.

use super::call::Args;
use super::render::Renderer;
use super::value::{Outcome, Value};
use super::{MAX_BYTES, attribute, too_long};

mod field;

use field::Field;

/// `text % right`.
pub(super) fn percent(text: &str, right: &Value) -> Outcome<String> {
    let mut arguments = Arguments::new(right);
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = conversion(&rest[at + 1..], &mut arguments, &mut out)?;
        if out.len() > MAX_BYTES {
            return Err(too_long());
        }
    }
    out.push_str(rest);
    arguments.finish()?;
    Ok(out)
}

/// What `%` is given.
struct Arguments<'a> {
    sequence: std::slice::Iter<'a, Value>,
    mapping: Option<&'a Value>,
    /// Python does not mind what is left over of something that could be a mapping.
    lenient: bool,
}

impl<'a> Arguments<'a> {
    fn new(right: &'a Value) -> Self {
        let sequence = match right {
            Value::Tuple(items) => items.values.iter(),
            other => std::slice::from_ref(other).iter(),
        };
        let lenient = matches!(right, Value::Dict(_) | Value::List(_) | Value::Undefined(_) | Value::Range(_));
        Self { sequence, mapping: matches!(right, Value::Dict(_)).then_some(right), lenient }
    }

    fn next(&mut self) -> Outcome<&'a Value> {
        self.sequence.next().ok_or_else(|| "a format has more places than values".to_owned())
    }

    fn finish(mut self) -> Outcome<()> {
        if self.lenient || self.sequence.next().is_none() {
            return Ok(());
        }
        Err("a format has fewer places than values".to_owned())
    }
}

/// One conversion, after its percent sign.
fn conversion<'a>(text: &'a str, arguments: &mut Arguments<'_>, out: &mut String) -> Outcome<&'a str> {
    let mut rest = text;
    let mut named = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let end = inner.find(')').filter(|end| !inner[..*end].contains('(')).ok_or("a format's key is not closed")?;
        let Some(Value::Dict(mapping)) = arguments.mapping else { return Err("a format needs a dict".to_owned()) };
        let key = &inner[..end];
        named = Some(mapping.get_str(key).cloned().ok_or_else(|| format!("a format has no value for `{key}`"))?);
        rest = &inner[end + 1..];
    }
    let flags = rest.len() - rest.trim_start_matches(['-', '+', ' ', '0', '#']).len();
    let mut field = Field::flags(&rest[..flags])?;
    rest = &rest[flags..];
    let digits = rest.len() - rest.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    field.width = field::size(&rest[..digits])?.unwrap_or(0);
    rest = &rest[digits..];
    if let Some(precision) = rest.strip_prefix('.') {
        let digits = precision.len() - precision.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
        field.precision = Some(field::size(&precision[..digits])?.unwrap_or(0));
        rest = &precision[digits..];
    }
    let kind = rest.chars().next().ok_or("a format ends in the middle")?;
    let after = &rest[kind.len_utf8()..];
    if kind == '%' {
        if rest.len() != text.len() {
            return Err("a percent sign with a width is not supported".to_owned());
        }
        out.push('%');
        return Ok(after);
    }
    let value = match named {
        Some(value) => value,
        None => arguments.next()?.clone(),
    };
    out.push_str(&field.percent(kind, &value)?);
    Ok(after)
}

/// `text.format(…)`.
pub(super) fn braces(text: &str, args: &Args, renderer: &mut Renderer<'_>) -> Outcome<String> {
    let mut out = String::new();
    let mut rest = text;
    let mut automatic = 0;
    let mut manual = false;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let tail = &rest[at..];
        if tail.starts_with("{{") || tail.starts_with("}}") {
            out.push_str(&tail[..1]);
            rest = &tail[2..];
            continue;
        }
        let end = tail.find('}').filter(|end| *end > 0 && !tail[1..*end].contains('{'));
        let end = end.ok_or("a format's braces do not match or stand within each other")?;
        let inner = &tail[1..end];
        let (name, spec) = inner.split_once(':').unwrap_or((inner, ""));
        if name.contains('[') {
            return Err("brackets within a format are not supported".to_owned());
        }
        let (name, conversion) = match name.split_once('!') {
            Some((name, conversion)) => (name, Some(conversion)),
            None => (name, None),
        };
        let mut parts = name.split('.');
        let first = parts.next().unwrap_or_default();
        if first.is_empty() && name.starts_with('.') {
            return Err("a format asks for an attribute of nothing".to_owned());
        }
        let mut value = argument(first, args, &mut automatic, &mut manual)?;
        for part in parts {
            value = attribute::attribute(&value, part, renderer)?;
        }
        value = match conversion {
            None => value,
            Some("s") => Value::Str(value.to_text()?),
            Some("r") => {
                let mut text = String::new();
                value.repr(&mut text)?;
                Value::str(text)
            }
            Some(other) => return Err(format!("the conversion `!{other}` is not supported")),
        };
        out.push_str(&field::formatted(&value, spec)?);
        if out.len() > MAX_BYTES {
            return Err(too_long());
        }
        rest = &tail[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn argument(name: &str, args: &Args, automatic: &mut usize, manual: &mut bool) -> Outcome<Value> {
    let at = if name.is_empty() {
        *automatic += 1;
        *automatic - 1
    } else if name.bytes().all(|byte| byte.is_ascii_digit()) {
        *manual = true;
        name.parse().map_err(|_| format!("the place {name} is too large"))?
    } else {
        let found = args.named.iter().find(|(known, _)| known == name);
        return found.map(|(_, value)| value.clone()).ok_or_else(|| format!("a format has no value for `{name}`"));
    };
    if *manual && *automatic > 0 {
        return Err("a format counts its places and names them".to_owned());
    }
    args.positional.get(at).cloned().ok_or_else(|| "a format has more places than values".to_owned())
}
