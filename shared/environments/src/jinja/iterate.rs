//! Iterating as Python does: a generator gives each value once, and only when it is asked.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use super::call::Args;
use super::filters::{self, Attribute};
use super::render::Renderer;
use super::value::{Key, Outcome, Range, Value, View};

/// Most generators around each other.
const MAX_DEPTH: u32 = 30;

/// Something that gives values one after the other.
pub(super) struct Iter {
    source: Source,
    depth: u32,
}

enum Source {
    Values(std::vec::IntoIter<Value>),
    Range(Range, i128),
    Shared(Rc<RefCell<Iter>>),
    Pending(Option<Box<Pending>>),
    Map(Box<Iter>, Mapping),
    Select { from: Box<Iter>, attribute: Option<Attribute>, test: Option<(String, Args)>, wanted: bool },
    Unique { from: Box<Iter>, attribute: Attribute, seen: HashSet<Key> },
    Batch { from: Box<Iter>, count: usize, fill: Option<Value> },
}

/// What is looked at only when the first value is asked for.
struct Pending {
    value: Value,
    build: fn(Vec<Value>, Vec<Value>) -> Outcome<Vec<Value>>,
    arguments: Vec<Value>,
}

/// What `map` does with each value.
pub(super) enum Mapping {
    Attribute(Attribute),
    Filter(String, Args),
}

impl Iter {
    fn new(source: Source, depth: u32) -> Outcome<Self> {
        if depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} generators around each other"));
        }
        Ok(Self { source, depth })
    }

    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    pub(super) fn values(values: Vec<Value>) -> Self {
        Self { source: Source::Values(values.into_iter()), depth: 0 }
    }

    /// Python's `iter(value)`; none where it is not iterable.
    pub(super) fn maybe(value: &Value) -> Outcome<Option<Self>> {
        Ok(Some(match value {
            Value::Undefined(_) => Self::values(Vec::new()),
            Value::Str(text) | Value::Safe(text) => {
                Self::values(text.chars().map(|character| Value::str(character.to_string())).collect())
            }
            Value::List(items) | Value::Tuple(items) => Self::values(items.values.clone()),
            Value::Dict(dict) => Self::values(dict.viewed(View::Keys)?),
            Value::View(dict, view) => Self::values(dict.viewed(*view)?),
            Value::Range(range) => Self { source: Source::Range(*range, 0), depth: 0 },
            Value::Iterator(inner) => {
                let depth = inner.try_borrow().map_or(0, |inner| inner.depth);
                Self::new(Source::Shared(Rc::clone(inner)), depth + 1)?
            }
            Value::Loop(_) => return Err("iterating over a loop is not supported".to_owned()),
            _ => return Ok(None),
        }))
    }

    /// Python's `iter(value)`.
    pub(super) fn of(value: &Value) -> Outcome<Self> {
        Self::maybe(value)?.ok_or_else(|| format!("{} is not iterable", value.kind()))
    }

    pub(super) fn into_value(self) -> Value {
        Value::Iterator(Rc::new(RefCell::new(self)))
    }

    pub(super) fn map(self, mapping: Mapping) -> Outcome<Self> {
        let depth = self.depth + 1;
        Self::new(Source::Map(Box::new(self), mapping), depth)
    }

    pub(super) fn select(self, attribute: Option<Attribute>, test: Option<(String, Args)>, wanted: bool) -> Outcome<Self> {
        let depth = self.depth + 1;
        Self::new(Source::Select { from: Box::new(self), attribute, test, wanted }, depth)
    }

    pub(super) fn unique(self, attribute: Attribute) -> Outcome<Self> {
        let depth = self.depth + 1;
        Self::new(Source::Unique { from: Box::new(self), attribute, seen: HashSet::new() }, depth)
    }

    pub(super) fn batch(self, count: usize, fill: Option<Value>) -> Outcome<Self> {
        let depth = self.depth + 1;
        Self::new(Source::Batch { from: Box::new(self), count, fill }, depth)
    }

    /// A generator that reads all of `value` when its first value is asked for.
    pub(super) fn pending(
        value: Value,
        arguments: Vec<Value>,
        build: fn(Vec<Value>, Vec<Value>) -> Outcome<Vec<Value>>,
    ) -> Outcome<Self> {
        let depth = value.depth() + 1;
        Self::new(Source::Pending(Some(Box::new(Pending { value, build, arguments }))), depth)
    }

    /// The next value, or none at the end.
    pub(super) fn next(&mut self, renderer: &mut Renderer<'_>) -> Outcome<Option<Value>> {
        renderer.step(1)?;
        match &mut self.source {
            Source::Values(values) => Ok(values.next()),
            Source::Range(range, at) => {
                let next = (*at < range.len()).then(|| range.get(*at));
                *at += 1;
                Ok(next)
            }
            Source::Shared(inner) => {
                let mut inner = inner.try_borrow_mut().map_err(|_| "a generator asks itself".to_owned())?;
                inner.next(renderer)
            }
            Source::Pending(pending) => {
                let Some(pending) = pending.take() else { return Ok(None) };
                let Pending { value, build, arguments } = *pending;
                let all = Self::of(&value)?.all(renderer)?;
                let mut built = build(all, arguments)?.into_iter();
                let first = built.next();
                self.source = Source::Values(built);
                Ok(first)
            }
            Source::Map(from, mapping) => match from.next(renderer)? {
                Some(value) => mapping.apply(value, renderer).map(Some),
                None => Ok(None),
            },
            Source::Select { from, attribute, test, wanted } => {
                while let Some(value) = from.next(renderer)? {
                    let tested = match attribute {
                        Some(attribute) => attribute.of(&value, renderer)?,
                        None => value.clone(),
                    };
                    let holds = match test {
                        Some((name, args)) => renderer.call_test(name, &tested, args.clone())?,
                        None => tested.truth(),
                    };
                    if holds == *wanted {
                        return Ok(Some(value));
                    }
                }
                Ok(None)
            }
            Source::Unique { from, attribute, seen } => {
                while let Some(value) = from.next(renderer)? {
                    let found = attribute.of(&value, renderer)?;
                    let key = found.key()?.ok_or_else(|| format!("{} cannot be hashed", found.kind()))?;
                    if seen.insert(key) {
                        return Ok(Some(value));
                    }
                }
                Ok(None)
            }
            Source::Batch { from, count, fill } => filters::next_batch(from, *count, fill.as_ref(), renderer),
        }
    }

    /// All that is left.
    pub(super) fn all(mut self, renderer: &mut Renderer<'_>) -> Outcome<Vec<Value>> {
        let mut values = Vec::new();
        while let Some(value) = self.next(renderer)? {
            values.push(value);
        }
        Ok(values)
    }
}

impl Mapping {
    fn apply(&self, value: Value, renderer: &mut Renderer<'_>) -> Outcome<Value> {
        match self {
            Self::Attribute(attribute) => attribute.of(&value, renderer),
            Self::Filter(name, args) => renderer.call_filter(name, value, args.clone()),
        }
    }
}
