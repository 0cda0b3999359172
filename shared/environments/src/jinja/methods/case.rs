//! Methods that change a text or tell what it is made of. Where Unicode's versions or rules may differ between Python and
//! Rust, only ASCII is answered.

use super::super::call::{Args, integer, text};
use super::super::printable::is_printable;
use super::super::value::{Outcome, Value};
use super::{padded, replaced, stripped};
use crate::python_text::{decimal_digit, is_space};

/// The rest of a text's methods.
pub(super) fn changed(receiver: &str, name: &str, args: Args) -> Outcome<Value> {
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let [characters] = args.positional(0)?;
            Ok(Value::str(stripped(receiver, name, characters.as_ref())?))
        }
        "replace" => {
            let [old, new, most] = args.positional(2)?;
            let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
            let most = most.map_or(Ok(-1), |most| integer(&most))?;
            Ok(Value::str(replaced(receiver, text(&old)?, text(&new)?, most)?))
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = args.positional(1)?;
            let affix = affix.unwrap_or(Value::None);
            let affix = text(&affix)?;
            let rest = if name == "removeprefix" { receiver.strip_prefix(affix) } else { receiver.strip_suffix(affix) };
            Ok(Value::str(rest.unwrap_or(receiver)))
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.positional(1)?;
            let fill = fill.unwrap_or_else(|| Value::str(" "));
            let mut fill = text(&fill)?.chars();
            match (fill.next(), fill.next()) {
                (Some(fill), None) => Ok(Value::str(padded(receiver, name, &width.unwrap_or(Value::None), fill)?)),
                _ => Err("what fills a text must be one character".to_owned()),
            }
        }
        "zfill" => {
            let [width] = args.positional(1)?;
            zfill(receiver, &width.unwrap_or(Value::None))
        }
        "expandtabs" => {
            let [size] = args.bind(["tabsize"], 0)?;
            expand_tabs(receiver, size.map_or(Ok(8), |size| integer(&size))?)
        }
        "upper" | "lower" | "capitalize" | "title" | "swapcase" | "casefold" => {
            let [] = args.positional(0)?;
            Ok(Value::str(cased(receiver, name)?))
        }
        _ if name.starts_with("is") => {
            let [] = args.positional(0)?;
            Ok(Value::Bool(is(receiver, name)?))
        }
        _ => Err(format!("the method `{name}` of a text is not supported")),
    }
}

fn zfill(receiver: &str, width: &Value) -> Outcome<Value> {
    let padded = padded(receiver, "rjust", width, '0')?;
    let zeros = padded.len() - receiver.len();
    match receiver.chars().next() {
        Some(sign @ ('+' | '-')) if zeros > 0 => Ok(Value::str(format!("{sign}{}{}", &padded[..zeros], &receiver[1..]))),
        _ => Ok(Value::str(padded)),
    }
}

fn expand_tabs(receiver: &str, size: i128) -> Outcome<Value> {
    let size = usize::try_from(size).unwrap_or_default();
    let tabs = receiver.matches('\t').count();
    if tabs.saturating_mul(size) > super::super::MAX_BYTES {
        return Err(super::super::too_long());
    }
    let mut expanded = String::with_capacity(receiver.len());
    let mut column = 0;
    for character in receiver.chars() {
        match character {
            '\t' if size == 0 => {}
            '\t' => {
                let spaces = size - column % size;
                expanded.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                expanded.push(character);
                column = 0;
            }
            _ => {
                expanded.push(character);
                column += 1;
            }
        }
    }
    Ok(Value::str(expanded))
}

/// A text all of whose characters Unicode 14 knows: later versions may give new ones another case.
fn assigned(receiver: &str) -> Outcome<&str> {
    let strange = receiver.chars().find(|character| !character.is_ascii() && !is_printable(*character) && !is_space(*character));
    match strange {
        Some(character) => Err(format!("the case of {character:?} is not supported")),
        None => Ok(receiver),
    }
}

/// Python's `str.upper` and its like.
pub(in super::super) fn cased(receiver: &str, name: &str) -> Outcome<String> {
    let ascii = || if receiver.is_ascii() { Ok(receiver) } else { Err(format!("`{name}` of more than ASCII is not supported")) };
    Ok(match name {
        "upper" => assigned(&assigned(receiver)?.to_uppercase())?.to_owned(),
        "lower" => assigned(&assigned(receiver)?.to_lowercase())?.to_owned(),
        "casefold" => ascii()?.to_ascii_lowercase(),
        "capitalize" => {
            let mut characters = assigned(receiver)?.chars();
            match characters.next() {
                Some(first) if first.is_ascii() => {
                    // Whole, because a sigma's form depends on what stands before it.
                    let lower = receiver.to_lowercase();
                    format!("{}{}", first.to_ascii_uppercase(), &lower[1..])
                }
                Some(first) => return Err(format!("the title case of {first:?} is not supported")),
                None => String::new(),
            }
        }
        "swapcase" => ascii()?
            .chars()
            .map(
                |character| {
                    if character.is_ascii_uppercase() { character.to_ascii_lowercase() } else { character.to_ascii_uppercase() }
                },
            )
            .collect(),
        _ => {
            let mut inside = false;
            let titled = ascii()?.chars().map(|character| {
                let cased = if inside { character.to_ascii_lowercase() } else { character.to_ascii_uppercase() };
                inside = character.is_ascii_alphabetic();
                cased
            });
            titled.collect()
        }
    })
}

/// Python's `str.isdigit` and its like.
pub(in super::super) fn is(receiver: &str, name: &str) -> Outcome<bool> {
    let all = |test: fn(char) -> bool| !receiver.is_empty() && receiver.chars().all(test);
    match name {
        "isascii" => return Ok(receiver.is_ascii()),
        "isspace" => return Ok(all(is_space)),
        "isprintable" => return Ok(receiver.chars().all(is_printable)),
        "isdecimal" => return Ok(all(|character| decimal_digit(character).is_some())),
        _ => {}
    }
    if !receiver.is_ascii() {
        return Err(format!("`{name}` of more than ASCII is not supported"));
    }
    Ok(match name {
        "isalpha" => all(|character| character.is_ascii_alphabetic()),
        "isalnum" => all(|character| character.is_ascii_alphanumeric()),
        "isdigit" | "isnumeric" => all(|character| character.is_ascii_digit()),
        "islower" => {
            receiver.bytes().any(|byte| byte.is_ascii_lowercase()) && !receiver.bytes().any(|byte| byte.is_ascii_uppercase())
        }
        "isupper" => {
            receiver.bytes().any(|byte| byte.is_ascii_uppercase()) && !receiver.bytes().any(|byte| byte.is_ascii_lowercase())
        }
        "istitle" => receiver.bytes().any(|byte| byte.is_ascii_alphabetic()) && cased(receiver, "title")? == receiver,
        "isidentifier" => {
            !receiver.starts_with(|first: char| first.is_ascii_digit())
                && all(|character| character.is_ascii_alphanumeric() || character == '_')
        }
        _ => return Err(format!("the method `{name}` of a text is not supported")),
    })
}
