//! Methods of texts, lists, tuples and dictionaries.

use std::rc::Rc;

use super::call::{Args, count, integer, text};
use super::iterate::Iter;
use super::render::Renderer;
use super::value::{Outcome, Value, View};
use super::{format, methods};
use crate::python_text::{is_space, strip};

pub(super) mod case;

impl Renderer<'_> {
    /// Calls a method of a value.
    pub(super) fn call_method(&mut self, of: &Value, name: &str, args: Args) -> Outcome<Value> {
        match of {
            Value::Str(receiver) => self.call_text(receiver, name, args),
            Value::List(items) | Value::Tuple(items) => self.call_sequence(of, &items.values, name, args),
            Value::Dict(dict) => match name {
                "keys" | "values" | "items" => {
                    let [] = args.positional(0)?;
                    let view = match name {
                        "keys" => View::Keys,
                        "values" => View::Values,
                        _ => View::Items,
                    };
                    Ok(Value::View(Rc::clone(dict), view))
                }
                "copy" => {
                    let [] = args.positional(0)?;
                    Ok(of.clone())
                }
                "get" => {
                    let [key, default] = args.positional(1)?;
                    let key = key.unwrap_or(Value::None);
                    let known = key.key()?.ok_or_else(|| format!("{} cannot be a key", key.kind()))?;
                    Ok(dict.get(&known).cloned().or(default).unwrap_or(Value::None))
                }
                _ => Err(format!("the method `{name}` of a dict is not supported")),
            },
            Value::Loop(state) => state.method(name, args),
            Value::Cycler(cycler) => {
                let [] = args.positional(0)?;
                if name == "reset" {
                    cycler.at.set(0);
                    return Ok(Value::None);
                }
                let at = cycler.at.get();
                cycler.at.set((at + 1) % cycler.items.len());
                Ok(cycler.items[at].clone())
            }
            other => Err(format!("the method `{name}` of {} is not supported", other.kind())),
        }
    }

    fn call_sequence(&mut self, of: &Value, values: &[Value], name: &str, args: Args) -> Outcome<Value> {
        self.step(values.len() as u64)?;
        match name {
            "copy" => {
                let [] = args.positional(0)?;
                Ok(of.clone())
            }
            "count" => {
                let [wanted] = args.positional(1)?;
                let wanted = wanted.unwrap_or(Value::None);
                let mut count = 0;
                for value in values {
                    count += i128::from(value.equals(&wanted)?);
                }
                Ok(Value::Int(count))
            }
            _ => {
                let [wanted] = args.positional(1)?;
                let wanted = wanted.unwrap_or(Value::None);
                for (at, value) in values.iter().enumerate() {
                    if value.equals(&wanted)? {
                        return Ok(Value::Int(at as i128));
                    }
                }
                Err("a list does not have what `index` looks for".to_owned())
            }
        }
    }

    fn call_text(&mut self, receiver: &Rc<str>, name: &str, args: Args) -> Outcome<Value> {
        self.made(receiver.len())?;
        match name {
            "format" | "format_map" => {
                let text = match name {
                    "format" => format::braces(receiver, &args, self)?,
                    _ => {
                        let [mapping] = args.positional(1)?;
                        let Some(Value::Dict(mapping)) = mapping else {
                            return Err("`format_map` takes a dict".to_owned());
                        };
                        let named = mapping.entries().iter().map(|(key, value)| Ok((text(key)?.to_owned(), value.clone())));
                        let named = named.collect::<Outcome<_>>()?;
                        format::braces(receiver, &Args { positional: Vec::new(), named }, self)?
                    }
                };
                self.text(text)
            }
            "join" => {
                let [items] = args.positional(1)?;
                let mut joined = String::new();
                for (at, item) in Iter::of(&items.unwrap_or(Value::None))?.all(self)?.iter().enumerate() {
                    if at > 0 {
                        joined.push_str(receiver);
                    }
                    joined.push_str(text(item)?);
                    if joined.len() > super::MAX_BYTES {
                        return Err(super::too_long());
                    }
                }
                self.text(joined)
            }
            "split" | "rsplit" => self.split(receiver, name == "rsplit", args),
            "splitlines" => {
                let [keep] = args.bind(["keepends"], 0)?;
                let keep = keep.map_or(Ok(0), |keep| integer(&keep))? != 0;
                let lines: Vec<Value> = lines(receiver, keep).into_iter().map(Value::str).collect();
                self.listed(lines.len())?;
                Value::list(lines)
            }
            "partition" | "rpartition" => {
                let [separator] = args.positional(1)?;
                let separator = separator.unwrap_or(Value::None);
                partition(receiver, text(&separator)?, name == "rpartition")
            }
            "startswith" | "endswith" => affix(receiver, name == "startswith", args),
            "find" | "rfind" | "index" | "rindex" | "count" => search(receiver, name, args),
            _ => {
                let changed = methods::case::changed(receiver, name, args)?;
                match changed {
                    Value::Str(text) => self.text(text.to_string()),
                    other => Ok(other),
                }
            }
        }
    }

    fn split(&mut self, receiver: &str, from_right: bool, args: Args) -> Outcome<Value> {
        let [separator, most] = args.bind(["sep", "maxsplit"], 0)?;
        let most = most.map_or(Ok(-1), |most| integer(&most))?;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let parts: Vec<&str> = match separator.unwrap_or(Value::None) {
            Value::None if from_right => split_spaces_right(receiver, most),
            Value::None => split_spaces(receiver, most),
            separator => {
                let separator = text(&separator)?;
                if separator.is_empty() {
                    return Err("a text cannot be split at nothing".to_owned());
                }
                let parts = most.saturating_add(1);
                if from_right {
                    let mut parts: Vec<&str> = receiver.rsplitn(parts, separator).collect();
                    parts.reverse();
                    parts
                } else {
                    receiver.splitn(parts, separator).collect()
                }
            }
        };
        self.listed(parts.len())?;
        Value::list(parts.into_iter().map(Value::str).collect())
    }
}

fn split_spaces(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    parts
}

fn split_spaces_right(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let start = rest.char_indices().rev().find(|(_, character)| is_space(*character));
        let start = start.map_or(0, |(at, character)| at + character.len_utf8());
        parts.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

/// Python's `str.splitlines`.
pub(super) fn lines(text: &str, keep: bool) -> Vec<&str> {
    let ends = |character: char| matches!(character, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ends) {
        let end = rest[at..].chars().next().map_or(1, char::len_utf8);
        let end = at + if rest[at..].starts_with("\r\n") { 2 } else { end };
        lines.push(&rest[..if keep { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn partition(receiver: &str, separator: &str, from_right: bool) -> Outcome<Value> {
    if separator.is_empty() {
        return Err("a text cannot be parted at nothing".to_owned());
    }
    let found = if from_right { receiver.rfind(separator) } else { receiver.find(separator) };
    let parts = match found {
        Some(at) => [&receiver[..at], separator, &receiver[at + separator.len()..]],
        None if from_right => ["", "", receiver],
        None => [receiver, "", ""],
    };
    Value::tuple(parts.map(Value::str).to_vec())
}

/// The part of a text between two bounds in characters, and where it begins; none where Python finds nothing in it.
fn within(text: &str, start: Option<Value>, end: Option<Value>) -> Outcome<Option<(&str, usize)>> {
    let length = text.chars().count() as i128;
    let bound = |bound: Option<Value>, absent: i128| match bound {
        None | Some(Value::None) => Ok::<_, String>(absent),
        Some(bound) => {
            let bound = integer(&bound)?;
            Ok(if bound < 0 { (bound + length).max(0) } else { bound })
        }
    };
    let (start, end) = (bound(start, 0)?, bound(end, length)?.min(length));
    if start > end {
        return Ok(None);
    }
    let byte = |at: i128| {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte)
    };
    Ok(Some((&text[byte(start)..byte(end)], usize::try_from(start).unwrap_or_default())))
}

fn affix(receiver: &str, start: bool, args: Args) -> Outcome<Value> {
    let [wanted, from, to] = args.positional(1)?;
    let part = within(receiver, from, to)?;
    let holds =
        |wanted: &str| part.is_some_and(|(part, _)| if start { part.starts_with(wanted) } else { part.ends_with(wanted) });
    match wanted.unwrap_or(Value::None) {
        Value::Tuple(any) => {
            let any = any.values.iter().map(text).collect::<Outcome<Vec<_>>>()?;
            Ok(Value::Bool(any.into_iter().any(holds)))
        }
        wanted => Ok(Value::Bool(holds(text(&wanted)?))),
    }
}

fn search(receiver: &str, name: &str, args: Args) -> Outcome<Value> {
    let [wanted, from, to] = args.positional(1)?;
    let wanted = wanted.unwrap_or(Value::None);
    let wanted = text(&wanted)?;
    let part = within(receiver, from, to)?;
    if name == "count" {
        let found = part.map_or(0, |(part, _)| match wanted {
            "" => part.chars().count() + 1,
            _ => part.matches(wanted).count(),
        });
        return Ok(Value::Int(found as i128));
    }
    let found = part.and_then(|(part, start)| {
        let byte = if name.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) }?;
        Some((start + part[..byte].chars().count()) as i128)
    });
    match found {
        Some(at) => Ok(Value::Int(at)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(format!("a text does not have what `{name}` looks for")),
    }
}

/// Python's `str.strip` and its like.
pub(super) fn stripped<'a>(receiver: &'a str, name: &str, characters: Option<&Value>) -> Outcome<&'a str> {
    let characters = match characters {
        None | Some(Value::None) if name == "strip" => return Ok(strip(receiver)),
        None | Some(Value::None) => None,
        Some(characters) => Some(text(characters)?),
    };
    let taken = |character: char| characters.map_or_else(|| is_space(character), |taken| taken.contains(character));
    Ok(match name {
        "lstrip" => receiver.trim_start_matches(taken),
        "rstrip" => receiver.trim_end_matches(taken),
        _ => receiver.trim_matches(taken),
    })
}

/// Python's `str.replace`.
pub(super) fn replaced(receiver: &str, old: &str, new: &str, most: i128) -> Outcome<String> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let found = if old.is_empty() { receiver.chars().count() + 1 } else { receiver.matches(old).count() };
    let grown = found.min(most).saturating_mul(new.len());
    if grown.saturating_add(receiver.len()) > super::MAX_BYTES {
        return Err(super::too_long());
    }
    Ok(receiver.replacen(old, new, most))
}

/// Python's `str.center`, `ljust` and `rjust`.
pub(super) fn padded(receiver: &str, name: &str, width: &Value, fill: char) -> Outcome<String> {
    let width = count(width)?;
    let length = receiver.chars().count();
    let missing = width.saturating_sub(length);
    if missing > super::MAX_BYTES / 4 {
        return Err(super::too_long());
    }
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // CPython's own choice where the space is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let pad = |count: usize| std::iter::repeat_n(fill, count);
    Ok(pad(left).chain(receiver.chars()).chain(pad(missing - left)).collect())
}
