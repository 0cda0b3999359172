//! Filters on lists and other sequences.

use std::cmp::Ordering;

use super::super::ast::Binary;
use super::super::call::{Args, integer, text};
use super::super::iterate::{Iter, Mapping};
use super::super::render::Renderer;
use super::super::value::{Outcome, Value, View};
use super::{Attribute, truth};

impl Renderer<'_> {
    pub(super) fn sequence_filter(&mut self, name: &str, value: Value, args: Args) -> Outcome<Value> {
        match name {
            "count" | "length" => {
                let [] = args.positional(0)?;
                self.length(&value)
            }
            "list" => {
                let [] = args.positional(0)?;
                let values = Iter::of(&value)?.all(self)?;
                Value::list(values)
            }
            "first" => {
                let [] = args.positional(0)?;
                let first = match &value {
                    // A generator goes on after what was taken.
                    Value::Iterator(inner) => {
                        inner.try_borrow_mut().map_err(|_| "a generator asks itself".to_owned())?.next(self)?
                    }
                    other => Iter::of(other)?.next(self)?,
                };
                Ok(first.unwrap_or_else(|| Value::undefined("the first item of nothing")))
            }
            "last" => {
                let [] = args.positional(0)?;
                let last = reversed(&value, self)?.ok_or_else(|| format!("{} has no last item", value.kind()))?;
                Ok(last.into_iter().next().unwrap_or_else(|| Value::undefined("the last item of nothing")))
            }
            "reverse" => {
                let [] = args.positional(0)?;
                match &value {
                    Value::Str(text) => {
                        let text = text.chars().rev().collect();
                        self.text(text)
                    }
                    Value::Safe(_) => Err("filters on safe markup are not supported".to_owned()),
                    other => match reversed(other, self)? {
                        Some(values) => Ok(Iter::values(values).into_value()),
                        None => {
                            let mut values = Iter::of(other)?.all(self)?;
                            values.reverse();
                            Value::list(values)
                        }
                    },
                }
            }
            "items" => {
                let [] = args.positional(0)?;
                match &value {
                    Value::Undefined(_) => Ok(Iter::values(Vec::new()).into_value()),
                    Value::Dict(dict) => Ok(Iter::values(dict.viewed(View::Items)?).into_value()),
                    other => Err(format!("{} has no items", other.kind())),
                }
            }
            "join" => self.join(&value, args),
            "map" => self.map(&value, args),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(name, &value, args),
            "batch" => {
                let [count, fill] = args.bind(["linecount", "fill_with"], 1)?;
                let iter = Iter::of(&value)?.batch(positive(count)?, fill.filter(|fill| !matches!(fill, Value::None)))?;
                Ok(iter.into_value())
            }
            "slice" => {
                let [slices, fill] = args.bind(["slices", "fill_with"], 1)?;
                let slices = Value::Int(positive(slices)? as i128);
                Ok(Iter::pending(value, vec![slices, fill.unwrap_or(Value::None)], slices_of)?.into_value())
            }
            "unique" => {
                let [case_sensitive, attribute] = args.bind(["case_sensitive", "attribute"], 0)?;
                let attribute = Attribute::new(attribute.as_ref(), !truth(case_sensitive.as_ref()))?;
                Ok(Iter::of(&value)?.unique(attribute)?.into_value())
            }
            "min" | "max" => {
                let [case_sensitive, attribute] = args.bind(["case_sensitive", "attribute"], 0)?;
                let attribute = Attribute::new(attribute.as_ref(), !truth(case_sensitive.as_ref()))?;
                let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
                self.extreme(&value, &attribute, wanted)
            }
            "sum" => {
                let [attribute, start] = args.bind(["attribute", "start"], 0)?;
                let attribute = Attribute::new(attribute.as_ref(), false)?;
                let mut sum = start.unwrap_or(Value::Int(0));
                if sum.text().is_some() {
                    return Err("texts have no sum".to_owned());
                }
                for item in Iter::of(&value)?.all(self)? {
                    let value = attribute.of(&item, self)?;
                    sum = self.binary(Binary::Add, &sum, &value)?;
                }
                Ok(sum)
            }
            "sort" => self.sort(&value, args),
            "dictsort" => self.dict_sort(&value, args),
            _ => self.group(&value, args),
        }
    }

    fn length(&mut self, value: &Value) -> Outcome<Value> {
        let length = match value {
            Value::Undefined(_) => 0,
            Value::Str(text) | Value::Safe(text) => text.chars().count() as i128,
            Value::List(items) | Value::Tuple(items) => items.values.len() as i128,
            Value::Dict(dict) | Value::View(dict, _) => dict.entries().len() as i128,
            Value::Range(range) => range.len(),
            Value::Loop(state) => return Ok(state.attribute("length", self)?.unwrap_or(Value::None)),
            other => return Err(format!("{} has no length", other.kind())),
        };
        Ok(Value::Int(length))
    }

    fn join(&mut self, value: &Value, args: Args) -> Outcome<Value> {
        let [separator, attribute] = args.bind(["d", "attribute"], 0)?;
        let separator = separator.map_or(Ok("".into()), |separator| separator.to_text())?;
        let attribute = Attribute::new(attribute.as_ref(), false)?;
        let mut joined = String::new();
        for (at, item) in Iter::of(value)?.all(self)?.iter().enumerate() {
            if at > 0 {
                joined.push_str(&separator);
            }
            joined.push_str(&attribute.of(item, self)?.to_text()?);
            if joined.len() > super::super::MAX_BYTES {
                return Err(super::super::too_long());
            }
        }
        self.text(joined)
    }

    fn map(&mut self, value: &Value, mut args: Args) -> Outcome<Value> {
        if !value.truth() {
            return Ok(Iter::values(Vec::new()).into_value());
        }
        let by_attribute = args.positional.is_empty() && args.named.iter().any(|(name, _)| name == "attribute");
        let mapping = if by_attribute {
            let [attribute, default] = args.bind(["attribute", "default"], 1)?;
            Mapping::Attribute(Attribute::new(attribute.as_ref(), false)?.or(default))
        } else if args.positional.is_empty() {
            return Err("`map` needs the name of a filter".to_owned());
        } else {
            let name = args.positional.remove(0);
            Mapping::Filter(text(&name)?.to_owned(), args)
        };
        Ok(Iter::of(value)?.map(mapping)?.into_value())
    }

    fn select(&mut self, name: &str, value: &Value, mut args: Args) -> Outcome<Value> {
        if !value.truth() {
            return Ok(Iter::values(Vec::new()).into_value());
        }
        let mut next = || if args.positional.is_empty() { None } else { Some(args.positional.remove(0)) };
        let attribute = match name.ends_with("attr") {
            true => Some(Attribute::new(Some(&next().ok_or("the name of an attribute is missing")?), false)?),
            false => None,
        };
        let test = match next() {
            Some(test) => Some((text(&test)?.to_owned(), args)),
            // Without a test Jinja never looks at the arguments by name.
            None => None,
        };
        Ok(Iter::of(value)?.select(attribute, test, name.starts_with("select"))?.into_value())
    }

    fn extreme(&mut self, value: &Value, attribute: &Attribute, wanted: Ordering) -> Outcome<Value> {
        let mut best: Option<(Value, Value)> = None;
        for item in Iter::of(value)?.all(self)? {
            let key = attribute.of(&item, self)?;
            let better = match &best {
                Some((known, _)) => key.compare(known)? == Some(wanted),
                None => true,
            };
            if better {
                best = Some((key, item));
            }
        }
        Ok(best.map_or_else(|| Value::undefined("what is least or most of nothing"), |(_, item)| item))
    }

    fn sort(&mut self, value: &Value, args: Args) -> Outcome<Value> {
        let [reverse, case_sensitive, attribute] = args.bind(["reverse", "case_sensitive", "attribute"], 0)?;
        let ignore_case = !truth(case_sensitive.as_ref());
        let attributes = match attribute {
            Some(Value::Str(names)) => {
                names.split(',').map(|name| Attribute::new(Some(&Value::str(name)), ignore_case)).collect()
            }
            other => Attribute::new(other.as_ref(), ignore_case).map(|attribute| vec![attribute]),
        };
        let attributes: Vec<Attribute> = attributes?;
        let mut keyed = Vec::new();
        for item in Iter::of(value)?.all(self)? {
            let key = attributes.iter().map(|attribute| attribute.of(&item, self)).collect::<Outcome<Vec<_>>>()?;
            keyed.push((Value::list(key)?, item));
        }
        Value::list(sorted(keyed, backwards(reverse.as_ref())?)?)
    }

    fn dict_sort(&mut self, value: &Value, args: Args) -> Outcome<Value> {
        let [case_sensitive, by, reverse] = args.bind(["case_sensitive", "by", "reverse"], 0)?;
        let place = match by.as_ref().map(text).transpose()? {
            None | Some("key") => 0,
            Some("value") => 1,
            Some(other) => return Err(format!("`dictsort` by `{other}` is unknown")),
        };
        let Value::Dict(dict) = value.defined()? else { return Err(format!("{} is no dict", value.kind())) };
        let place = Attribute::new(Some(&Value::Int(place)), !truth(case_sensitive.as_ref()))?;
        let mut keyed = Vec::new();
        for pair in dict.viewed(View::Items)? {
            keyed.push((place.of(&pair, self)?, pair));
        }
        Value::list(sorted(keyed, backwards(reverse.as_ref())?)?)
    }

    fn group(&mut self, value: &Value, args: Args) -> Outcome<Value> {
        let [attribute, default, case_sensitive] = args.bind(["attribute", "default", "case_sensitive"], 1)?;
        let sensitive = truth(case_sensitive.as_ref());
        let key_of = Attribute::new(attribute.as_ref(), !sensitive)?.or(default.clone());
        let shown = Attribute::new(attribute.as_ref(), false)?.or(default);
        let mut keyed = Vec::new();
        for item in Iter::of(value)?.all(self)? {
            keyed.push((key_of.of(&item, self)?, item));
        }
        let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
        for item in sorted(keyed, false)? {
            let key = key_of.of(&item, self)?;
            match groups.last_mut() {
                Some((known, items)) if known.equals(&key)? => items.push(item),
                _ => groups.push((key, vec![item])),
            }
        }
        let mut values = Vec::new();
        for (_, items) in groups {
            values.push(Value::group(shown.of(&items[0], self)?, Value::list(items)?)?);
        }
        Value::list(values)
    }
}

/// Python's `sorted` wants a number where others take any value.
fn backwards(reverse: Option<&Value>) -> Outcome<bool> {
    reverse.map_or(Ok(false), |reverse| Ok(integer(reverse)? != 0))
}

/// Sorted by their keys, as Python does it: equal ones stay in order, backwards too.
fn sorted(mut keyed: Vec<(Value, Value)>, reverse: bool) -> Outcome<Vec<Value>> {
    let mut failure = None;
    keyed.sort_by(|(left, _), (right, _)| {
        let order = if reverse { right.compare(left) } else { left.compare(right) };
        match order {
            Ok(order) => order.unwrap_or(Ordering::Equal),
            Err(error) => {
                failure = Some(error);
                Ordering::Equal
            }
        }
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

/// Python's `reversed`; none for what it does not take.
fn reversed(value: &Value, renderer: &mut Renderer<'_>) -> Outcome<Option<Vec<Value>>> {
    match value {
        Value::Undefined(_)
        | Value::Str(_)
        | Value::Safe(_)
        | Value::List(_)
        | Value::Tuple(_)
        | Value::Dict(_)
        | Value::View(..)
        | Value::Range(_) => {
            let mut values = Iter::of(value)?.all(renderer)?;
            values.reverse();
            Ok(Some(values))
        }
        _ => Ok(None),
    }
}

fn positive(count: Option<Value>) -> Outcome<usize> {
    let count = integer(&count.unwrap_or(Value::None))?;
    usize::try_from(count).ok().filter(|count| *count > 0).ok_or_else(|| "a count below one is not supported".to_owned())
}

/// The next list of `batch`.
pub(in super::super) fn next_batch(
    from: &mut Iter,
    count: usize,
    fill: Option<&Value>,
    renderer: &mut Renderer<'_>,
) -> Outcome<Option<Value>> {
    let mut batch = Vec::new();
    while batch.len() < count {
        match from.next(renderer)? {
            Some(value) => batch.push(value),
            None => break,
        }
    }
    if batch.is_empty() {
        return Ok(None);
    }
    if let Some(fill) = fill {
        renderer.listed(count)?;
        batch.resize(count.max(batch.len()), fill.clone());
    }
    Value::list(batch).map(Some)
}

/// The lists of `slice`.
fn slices_of(values: Vec<Value>, arguments: Vec<Value>) -> Outcome<Vec<Value>> {
    let slices = usize::try_from(arguments.first().map_or(Ok(1), integer)?).unwrap_or(1);
    let fill = arguments.get(1).filter(|fill| !matches!(fill, Value::None));
    if slices > 100_000 {
        return Err("so many slices are not supported".to_owned());
    }
    let (each, extra) = (values.len() / slices, values.len() % slices);
    let mut at = 0;
    let mut lists = Vec::new();
    for slice in 0..slices {
        let end = at + each + usize::from(slice < extra);
        let mut list = values[at..end].to_vec();
        if slice >= extra {
            list.extend(fill.cloned());
        }
        at = end;
        lists.push(Value::list(list)?);
    }
    Ok(lists)
}
