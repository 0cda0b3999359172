//! Python's values, as far as templates meet them: truth, equality, order, hashes, `str` and `repr`.
//!
//! Lists and dictionaries never change, as the sandbox forbids it. What is not the same as in Python is an error.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::rc::Rc;

use super::iterate::Iter;
use super::number;
use super::printable::is_printable;
use super::render::{Function, LoopState, MacroValue};

pub(super) type Outcome<T> = Result<T, String>;

/// Deepest nesting of lists and dictionaries.
const MAX_DEPTH: u32 = 60;

#[derive(Clone)]
pub(super) enum Value {
    /// With what it is that is undefined.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    /// markupsafe's text, which escapes what is added to it.
    Safe(Rc<str>),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    Range(Range),
    View(Rc<Dict>, View),
    Iterator(Rc<RefCell<Iter>>),
    Namespace(Rc<Namespace>),
    Macro(Rc<MacroValue>),
    Loop(Rc<LoopState>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<(Rc<str>, Cell<bool>)>),
    Function(Function),
    Method(Rc<(Value, String)>),
}

pub(super) struct Items {
    pub values: Vec<Value>,
    depth: u32,
    /// A tuple of `groupby`, whose two parts have names.
    pub group: bool,
}

#[derive(Default)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
    depth: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

#[derive(Clone, Copy)]
pub(super) struct Range {
    pub start: i128,
    pub stop: i128,
    pub step: i128,
}

pub(super) struct Namespace {
    pub attributes: RefCell<Vec<(String, Value)>>,
}

pub(super) struct Cycler {
    pub items: Vec<Value>,
    pub at: Cell<usize>,
}

/// What a dictionary knows a key by: equal keys are equal here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    None,
    Int(i128),
    Float(u64),
    Str(Rc<str>),
    Tuple(Vec<Key>),
    Undefined,
}

impl Range {
    pub(super) fn len(&self) -> i128 {
        let (low, high, step) =
            if self.step > 0 { (self.start, self.stop, self.step) } else { (self.stop, self.start, -self.step) };
        if low >= high { 0 } else { (high - low - 1) / step + 1 }
    }

    pub(super) fn get(&self, index: i128) -> Value {
        Value::Int(self.start + index * self.step)
    }
}

impl Dict {
    pub(super) fn new(pairs: impl IntoIterator<Item = (Value, Value)>) -> Outcome<Self> {
        let mut dict = Self::default();
        for (key, value) in pairs {
            dict.insert(key, value)?;
        }
        Ok(dict)
    }

    fn insert(&mut self, key: Value, value: Value) -> Outcome<()> {
        let known = key.key()?.ok_or_else(|| format!("{} cannot be a key", key.kind()))?;
        self.depth = deeper([&key, &value].into_iter(), self.depth)?;
        match self.index.get(&known) {
            Some(at) => self.entries[*at].1 = value,
            None => {
                self.index.insert(known, self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Value> {
        self.index.get(key).map(|at| &self.entries[*at].1)
    }

    pub(super) fn get_str(&self, key: &str) -> Option<&Value> {
        self.get(&Key::Str(key.into()))
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    /// What a view shows.
    pub(super) fn viewed(&self, view: View) -> Outcome<Vec<Value>> {
        let entries = self.entries.iter();
        match view {
            View::Keys => Ok(entries.map(|(key, _)| key.clone()).collect()),
            View::Values => Ok(entries.map(|(_, value)| value.clone()).collect()),
            View::Items => entries.map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()])).collect(),
        }
    }
}

/// The depth of something that holds these values.
fn deeper<'a>(values: impl Iterator<Item = &'a Value>, least: u32) -> Outcome<u32> {
    let depth = values.map(Value::depth).fold(least, |deepest, depth| deepest.max(depth + 1));
    if depth > MAX_DEPTH { Err(format!("values are nested more than {MAX_DEPTH} deep")) } else { Ok(depth) }
}

impl Value {
    pub(super) fn str(text: impl Into<Rc<str>>) -> Self {
        Self::Str(text.into())
    }

    pub(super) fn undefined(what: impl Into<Rc<str>>) -> Self {
        Self::Undefined(what.into())
    }

    pub(super) fn list(values: Vec<Self>) -> Outcome<Self> {
        Ok(Self::List(Rc::new(Items { depth: deeper(values.iter(), 0)?, values, group: false })))
    }

    pub(super) fn tuple(values: Vec<Self>) -> Outcome<Self> {
        Ok(Self::Tuple(Rc::new(Items { depth: deeper(values.iter(), 0)?, values, group: false })))
    }

    pub(super) fn group(key: Self, values: Self) -> Outcome<Self> {
        let values = vec![key, values];
        Ok(Self::Tuple(Rc::new(Items { depth: deeper(values.iter(), 0)?, values, group: true })))
    }

    pub(super) fn dict(pairs: Vec<(Self, Self)>) -> Outcome<Self> {
        Ok(Self::Dict(Rc::new(Dict::new(pairs)?)))
    }

    pub(super) fn depth(&self) -> u32 {
        match self {
            Self::List(items) | Self::Tuple(items) => items.depth,
            Self::Dict(dict) | Self::View(dict, _) => dict.depth,
            Self::Iterator(inner) => inner.try_borrow().map_or(0, |inner| inner.depth()),
            Self::Method(method) => method.0.depth() + 1,
            _ => 0,
        }
    }

    /// The name of its type, for errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "an undefined value",
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) => "an int",
            Self::Float(_) => "a float",
            Self::Str(_) => "a str",
            Self::Safe(_) => "safe markup",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dict",
            Self::Range(_) => "a range",
            Self::View(..) => "a view of a dict",
            Self::Iterator(_) => "a generator",
            Self::Namespace(_) => "a namespace",
            Self::Macro(_) => "a macro",
            Self::Loop(_) => "a loop",
            Self::Cycler(_) => "a cycler",
            Self::Joiner(_) => "a joiner",
            Self::Function(_) => "a function",
            Self::Method(_) => "a method",
        }
    }

    /// The error of using an undefined value; other values pass.
    pub(super) fn defined(&self) -> Outcome<&Self> {
        match self {
            Self::Undefined(what) => Err(format!("{what} is undefined")),
            other => Ok(other),
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// Its text if it is one, safe or not.
    pub(super) fn text(&self) -> Option<&Rc<str>> {
        match self {
            Self::Str(text) | Self::Safe(text) => Some(text),
            _ => None,
        }
    }

    /// Its number if it is whole; a bool is one in Python.
    pub(super) fn integer(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    pub(super) fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Str(text) | Self::Safe(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) => !items.values.is_empty(),
            Self::Dict(dict) | Self::View(dict, _) => !dict.entries.is_empty(),
            Self::Range(range) => range.len() > 0,
            _ => true,
        }
    }

    /// What a dictionary knows it by; none where Python cannot hash it.
    pub(super) fn key(&self) -> Outcome<Option<Key>> {
        Ok(Some(match self {
            Self::Undefined(_) => Key::Undefined,
            Self::None => Key::None,
            Self::Bool(_) | Self::Int(_) => Key::Int(self.integer().unwrap_or_default()),
            Self::Float(value) => match number::exact_integer(*value) {
                Some(whole) => Key::Int(whole),
                None => Key::Float(value.to_bits()),
            },
            Self::Str(text) | Self::Safe(text) => Key::Str(Rc::clone(text)),
            Self::Tuple(items) => {
                let keys = items.values.iter().map(Self::key).collect::<Outcome<Option<Vec<Key>>>>()?;
                return Ok(keys.map(Key::Tuple));
            }
            Self::List(_) | Self::Dict(_) | Self::View(..) => return Ok(None),
            other => return Err(format!("{} as a key is not supported", other.kind())),
        }))
    }

    /// Python's `==`.
    pub(super) fn equals(&self, other: &Self) -> Outcome<bool> {
        let all = |left: &[Self], right: &[Self]| -> Outcome<bool> {
            if left.len() != right.len() {
                return Ok(false);
            }
            for (left, right) in left.iter().zip(right) {
                if !left.equals(right)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        Ok(match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Bool(_) | Self::Int(_) | Self::Float(_), Self::Bool(_) | Self::Int(_) | Self::Float(_)) => {
                number::compare(self, other) == Some(Ordering::Equal)
            }
            (Self::Str(left) | Self::Safe(left), Self::Str(right) | Self::Safe(right)) => left == right,
            (Self::List(left), Self::List(right)) | (Self::Tuple(left), Self::Tuple(right)) => all(&left.values, &right.values)?,
            (Self::Dict(left), Self::Dict(right)) => {
                if left.entries.len() != right.entries.len() {
                    return Ok(false);
                }
                for (key, at) in &left.index {
                    match right.get(key) {
                        Some(value) if left.entries[*at].1.equals(value)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Self::Range(_), Self::Range(_)) | (Self::View(..), Self::View(..)) => {
                return Err(format!("comparing {} with another is not supported", self.kind()));
            }
            (Self::Method(_) | Self::Function(_), Self::Method(_) | Self::Function(_)) => {
                return Err("comparing functions is not supported".to_owned());
            }
            (Self::Namespace(left), Self::Namespace(right)) => Rc::ptr_eq(left, right),
            (Self::Iterator(left), Self::Iterator(right)) => Rc::ptr_eq(left, right),
            (Self::Macro(left), Self::Macro(right)) => Rc::ptr_eq(left, right),
            (Self::Loop(left), Self::Loop(right)) => Rc::ptr_eq(left, right),
            (Self::Cycler(left), Self::Cycler(right)) => Rc::ptr_eq(left, right),
            (Self::Joiner(left), Self::Joiner(right)) => Rc::ptr_eq(left, right),
            _ => false,
        })
    }

    /// Python's `<` and its like; an error where Python has no order.
    pub(super) fn compare(&self, other: &Self) -> Outcome<Option<Ordering>> {
        self.defined()?;
        other.defined()?;
        match (self, other) {
            (Self::Bool(_) | Self::Int(_) | Self::Float(_), Self::Bool(_) | Self::Int(_) | Self::Float(_)) => {
                Ok(number::compare(self, other))
            }
            (Self::Str(left) | Self::Safe(left), Self::Str(right) | Self::Safe(right)) => Ok(Some(left.cmp(right))),
            (Self::List(left), Self::List(right)) | (Self::Tuple(left), Self::Tuple(right)) => {
                for (left, right) in left.values.iter().zip(&right.values) {
                    if !left.equals(right)? {
                        return left.compare(right);
                    }
                }
                Ok(Some(left.values.len().cmp(&right.values.len())))
            }
            _ => Err(format!("{} and {} have no order", self.kind(), other.kind())),
        }
    }

    /// Python's `str`.
    pub(super) fn to_text(&self) -> Outcome<Rc<str>> {
        match self {
            Self::Str(text) | Self::Safe(text) => Ok(Rc::clone(text)),
            Self::Undefined(_) => Ok("".into()),
            _ => {
                let mut text = String::new();
                self.repr(&mut text)?;
                Ok(text.into())
            }
        }
    }

    /// Python's `repr`, appended to `out`.
    pub(super) fn repr(&self, out: &mut String) -> Outcome<()> {
        if out.len() > super::MAX_BYTES {
            return Err(super::too_long());
        }
        match self {
            Self::Undefined(_) => out.push_str("Undefined"),
            Self::None => out.push_str("None"),
            Self::Bool(value) => out.push_str(if *value { "True" } else { "False" }),
            Self::Int(value) => out.push_str(&value.to_string()),
            Self::Float(value) => out.push_str(&number::float_repr(*value)),
            Self::Str(text) => quote(text, out),
            Self::Safe(text) => {
                out.push_str("Markup(");
                quote(text, out);
                out.push(')');
            }
            Self::List(items) => sequence(&items.values, "[", "]", out)?,
            Self::Tuple(items) => sequence(&items.values, "(", if items.values.len() == 1 { ",)" } else { ")" }, out)?,
            Self::Dict(dict) => pairs(dict, out)?,
            Self::Range(range) => {
                out.push_str(&format!("range({}, {}", range.start, range.stop));
                out.push_str(&if range.step == 1 { ")".to_owned() } else { format!(", {})", range.step) });
            }
            Self::View(dict, view) => {
                let name = match view {
                    View::Keys => "dict_keys([",
                    View::Values => "dict_values([",
                    View::Items => "dict_items([",
                };
                sequence(&dict.viewed(*view)?, name, "])", out)?;
            }
            Self::Macro(inner) => out.push_str(&inner.repr()),
            other => return Err(format!("printing {} is not supported: it shows an address in memory", other.kind())),
        }
        Ok(())
    }
}

fn sequence(values: &[Value], open: &str, close: &str, out: &mut String) -> Outcome<()> {
    out.push_str(open);
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        value.repr(out)?;
    }
    out.push_str(close);
    Ok(())
}

fn pairs(dict: &Dict, out: &mut String) -> Outcome<()> {
    out.push('{');
    for (at, (key, value)) in dict.entries.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        key.repr(out)?;
        out.push_str(": ");
        value.repr(out)?;
    }
    out.push('}');
    Ok(())
}

/// Python's `repr` of a text.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => {
                out.push('\\');
                out.push(quote);
            }
            _ if is_printable(character) => out.push(character),
            _ => match u32::from(character) {
                code @ 0..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ 0x100..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
}
