//! Filters on texts and numbers.

use super::super::call::{Args, integer, text};
use super::super::methods::{case::cased, lines, padded, replaced, stripped};
use super::super::number;
use super::super::render::Renderer;
use super::super::value::{Outcome, Value};
use super::super::{MAX_BYTES, format, too_long};
use super::{soft, truth};
use crate::python_text::is_space;

impl Renderer<'_> {
    pub(super) fn word_filter(&mut self, name: &str, value: &Value, args: Args) -> Outcome<Value> {
        match name {
            "int" => whole(value, args),
            "float" => {
                let [default] = args.bind(["default"], 0)?;
                let parsed = match value.defined()? {
                    Value::Str(text) => number::parse_float(text)?,
                    Value::Safe(_) => return Err("filters on safe markup are not supported".to_owned()),
                    Value::Bool(_) | Value::Int(_) | Value::Float(_) => Some(number::float(value)?),
                    _ => None,
                };
                Ok(parsed.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
            }
            "round" => round(value.defined()?, args),
            "filesizeformat" => {
                let [binary] = args.bind(["binary"], 0)?;
                let bytes = match value.defined()? {
                    Value::Str(text) => number::parse_float(text)?.ok_or("a size is no number")?,
                    other => number::float(other)?,
                };
                self.text(file_size(bytes, truth(binary.as_ref())))
            }
            "e" | "escape" | "forceescape" => {
                let [] = args.positional(0)?;
                match value {
                    Value::Safe(_) if name != "forceescape" => Ok(value.clone()),
                    other => {
                        let text = escaped(&other.to_text()?);
                        self.made(text.len())?;
                        Ok(Value::Safe(text.into()))
                    }
                }
            }
            "xmlattr" => self.xml_attributes(value, args),
            "striptags" => {
                let [] = args.positional(0)?;
                let text = strip_tags(&value.to_text()?)?;
                self.text(text)
            }
            "urlencode" => {
                let [] = args.positional(0)?;
                self.url_encode(value)
            }
            "indent" => self.indent(value, args),
            "truncate" => self.truncate(value, args),
            _ => {
                let text = self.simple_words(name, &soft(value)?, args)?;
                match text {
                    Value::Str(text) => self.text(text.to_string()),
                    other => Ok(other),
                }
            }
        }
    }

    fn simple_words(&mut self, name: &str, receiver: &str, args: Args) -> Outcome<Value> {
        match name {
            "upper" | "lower" | "capitalize" => {
                let [] = args.positional(0)?;
                Ok(Value::str(cased(receiver, name)?))
            }
            "title" => {
                let [] = args.positional(0)?;
                Ok(Value::str(titled(receiver)?))
            }
            "trim" => {
                let [characters] = args.bind(["chars"], 0)?;
                Ok(Value::str(stripped(receiver, "strip", characters.as_ref())?))
            }
            "center" => {
                let [width] = args.bind(["width"], 0)?;
                Ok(Value::str(padded(receiver, "center", &width.unwrap_or(Value::Int(80)), ' ')?))
            }
            "replace" => {
                let [old, new, most] = args.bind(["old", "new", "count"], 2)?;
                let most = match most {
                    None | Some(Value::None) => -1,
                    Some(most) => integer(&most)?,
                };
                let (old, new) = (old.unwrap_or(Value::None).to_text()?, new.unwrap_or(Value::None).to_text()?);
                Ok(Value::str(replaced(receiver, &old, &new, most)?))
            }
            "format" => {
                if !args.named.is_empty() && !args.positional.is_empty() {
                    return Err("`format` takes arguments by place or by name, not both".to_owned());
                }
                let right = if args.named.is_empty() {
                    Value::tuple(args.positional)?
                } else {
                    Value::dict(args.named.into_iter().map(|(name, value)| (Value::str(name), value)).collect())?
                };
                Ok(Value::str(format::percent(receiver, &right)?))
            }
            "wordcount" => {
                let [] = args.positional(0)?;
                if !receiver.is_ascii() {
                    return Err("`wordcount` of more than ASCII is not supported".to_owned());
                }
                let words = receiver.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
                Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i128))
            }
            _ => Err(format!("the filter `{name}` is not supported")),
        }
    }

    fn xml_attributes(&mut self, value: &Value, args: Args) -> Outcome<Value> {
        let [space] = args.bind(["autospace"], 0)?;
        let Value::Dict(dict) = value.defined()? else { return Err(format!("{} is no dict", value.kind())) };
        let mut attributes = Vec::new();
        for (key, value) in dict.entries() {
            if matches!(value, Value::None | Value::Undefined(_)) {
                continue;
            }
            let key = text(key)?;
            if key.contains(['\t', '\n', '\u{b}', '\u{c}', '\r', ' ', '/', '>', '=']) {
                return Err(format!("`{key}` cannot be the name of an attribute"));
            }
            let value = match value {
                Value::Safe(text) => text.to_string(),
                other => escaped(&other.to_text()?),
            };
            attributes.push(format!("{}=\"{value}\"", escaped(key)));
        }
        let text = attributes.join(" ");
        let space = space.is_none_or(|space| space.truth()) && !text.is_empty();
        self.text(if space { format!(" {text}") } else { text })
    }

    fn url_encode(&mut self, value: &Value) -> Outcome<Value> {
        let pairs = match value {
            Value::Dict(dict) => dict.viewed(super::super::value::View::Items)?,
            Value::Str(_) | Value::Safe(_) | Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                let text = quoted(&value.to_text()?, "/");
                return self.text(text);
            }
            Value::List(items) | Value::Tuple(items) => items.values.clone(),
            other => return Err(format!("`urlencode` of {} is not supported", other.kind())),
        };
        let mut parts = Vec::new();
        for pair in pairs {
            let pair = super::super::iterate::Iter::of(&pair)?.all(self)?;
            let [key, value] = pair.as_slice() else { return Err("`urlencode` takes pairs".to_owned()) };
            let quote = |value: &Value| Ok::<_, String>(quoted(&value.to_text()?, "").replace("%20", "+"));
            parts.push(format!("{}={}", quote(key)?, quote(value)?));
        }
        self.text(parts.join("&"))
    }

    fn indent(&mut self, value: &Value, args: Args) -> Outcome<Value> {
        let [width, first, blank] = args.bind(["width", "first", "blank"], 0)?;
        let receiver = text(value.defined()?)?;
        let indent = match width.unwrap_or(Value::Int(4)) {
            Value::Str(indent) => indent.to_string(),
            width => {
                let width = super::super::call::count(&width)?;
                if width > MAX_BYTES { return Err(too_long()) } else { " ".repeat(width) }
            }
        };
        let whole = format!("{receiver}\n");
        let lines = lines(&whole, false);
        if lines.len().saturating_mul(indent.len()).saturating_add(whole.len()) > MAX_BYTES {
            return Err(too_long());
        }
        let blank = truth(blank.as_ref());
        let mut indented = if truth(first.as_ref()) { indent.clone() } else { String::new() };
        for (at, line) in lines.iter().enumerate() {
            if at > 0 {
                indented.push('\n');
                if blank || !line.is_empty() {
                    indented.push_str(&indent);
                }
            }
            indented.push_str(line);
        }
        self.text(indented)
    }

    fn truncate(&mut self, value: &Value, args: Args) -> Outcome<Value> {
        let [length, kill, end, leeway] = args.bind(["length", "killwords", "end", "leeway"], 0)?;
        let length = length.map_or(Ok(255), |length| integer(&length))?;
        let end = end.unwrap_or_else(|| Value::str("..."));
        let end = text(&end)?;
        let leeway = match leeway {
            None | Some(Value::None) => 5,
            Some(leeway) => integer(&leeway)?,
        };
        let room = length - end.chars().count() as i128;
        if room < 0 || leeway < 0 {
            return Err("`truncate` leaves no room".to_owned());
        }
        if value.is_undefined() {
            return Ok(value.clone());
        }
        let receiver = text(value)?;
        if receiver.chars().count() as i128 <= length.saturating_add(leeway) {
            return Ok(value.clone());
        }
        let kept: String = receiver.chars().take(usize::try_from(room).unwrap_or(usize::MAX)).collect();
        let kept =
            if truth(kill.as_ref()) { kept.as_str() } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(kept, _)| kept) };
        self.text(format!("{kept}{end}"))
    }
}

fn whole(value: &Value, args: Args) -> Outcome<Value> {
    let [default, base] = args.bind(["default", "base"], 0)?;
    let parsed = match value.defined()? {
        Value::Str(text) => {
            let base = base.map_or(Ok(10), |base| integer(&base))?;
            match number::parse_integer(text, u32::try_from(base).unwrap_or_default())? {
                Some(whole) => Some(whole),
                None => number::parse_float(text)?.map(truncated).transpose()?,
            }
        }
        Value::Safe(_) => return Err("filters on safe markup are not supported".to_owned()),
        Value::Float(value) => Some(truncated(*value)?),
        other => other.integer(),
    };
    Ok(parsed.map(Value::Int).or(default).unwrap_or(Value::Int(0)))
}

fn truncated(value: f64) -> Outcome<i128> {
    number::exact_integer(value.trunc()).ok_or_else(|| "a whole number is too large".to_owned())
}

fn round(value: &Value, args: Args) -> Outcome<Value> {
    let [precision, method] = args.bind(["precision", "method"], 0)?;
    let precision = precision.map_or(Ok(0), |precision| integer(&precision))?;
    let method = method.unwrap_or_else(|| Value::str("common"));
    let method = text(&method)?;
    if method == "common" {
        return number::round(value, precision);
    }
    let scale = usize::try_from(precision).ok().filter(|precision| *precision <= 15);
    let scale = scale.map(|precision| 10_f64.powi(precision as i32)).ok_or("rounding to so many digits is not supported")?;
    let scaled = number::float(value)? * scale;
    let rounded = match method {
        "ceil" => scaled.ceil(),
        "floor" => scaled.floor(),
        other => return Err(format!("rounding by `{other}` is unknown")),
    };
    // Python makes an int of it, which has no negative zero.
    number::finite((rounded + 0.0) / scale)
}

fn file_size(bytes: f64, binary: bool) -> String {
    let (base, infix): (f64, &str) = if binary { (1024.0, "iB") } else { (1000.0, "B") };
    if bytes == 1.0 {
        return "1 Byte".to_owned();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc() as i128);
    }
    let mut unit = base;
    for (at, prefix) in ["k", "M", "G", "T", "P", "E", "Z", "Y"].iter().enumerate() {
        unit *= base;
        if bytes < unit || at == 7 {
            let prefix = if binary { prefix.to_ascii_uppercase() } else { (*prefix).to_owned() };
            return format!("{:.1} {prefix}{infix}", base * bytes / unit);
        }
    }
    String::new()
}

/// markupsafe's `escape`.
fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\'', "&#39;").replace('"', "&#34;")
}

fn strip_tags(text: &str) -> Outcome<String> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (from, end) = if rest[start..].starts_with("<!--") { (start + 4, "-->") } else { (start, ">") };
        let Some(found) = rest[from..].find(end) else { break };
        plain.push_str(&rest[..start]);
        rest = &rest[from + found + end.len()..];
    }
    plain.push_str(rest);
    if plain.contains('&') {
        return Err("`striptags` of a text with `&` is not supported".to_owned());
    }
    Ok(plain.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "))
}

/// Python's `urllib.parse.quote`.
fn quoted(text: &str, safe: &str) -> String {
    let mut quoted = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) || safe.as_bytes().contains(&byte) {
            quoted.push(char::from(byte));
        } else {
            quoted.push_str(&format!("%{byte:02X}"));
        }
    }
    quoted
}

/// Jinja's `title`: every word's first letter, words ending where its pattern says.
fn titled(text: &str) -> Outcome<String> {
    let mut titled = String::new();
    let ends = |character: char| is_space(character) || "-({[<".contains(character);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = if ends(first) { rest.find(|character| !ends(character)) } else { rest.find(ends) };
        let (item, after) = rest.split_at(end.unwrap_or(rest.len()));
        let (head, tail) = item.split_at(first.len_utf8());
        titled.push_str(&cased(head, "upper")?);
        titled.push_str(&cased(tail, "lower")?);
        rest = after;
    }
    Ok(titled)
}
