//! Arguments of calls, bound to parameters as Python binds them.

use super::value::{Outcome, Value};

/// The arguments of one call.
#[derive(Clone, Default)]
pub(super) struct Args {
    pub positional: Vec<Value>,
    pub named: Vec<(String, Value)>,
}

impl Args {
    /// The arguments of a function with these parameters, the first `required` of which have no default.
    pub(super) fn bind<const N: usize>(self, parameters: [&str; N], required: usize) -> Outcome<[Option<Value>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return Err(format!("{} arguments are given, {N} at most are taken", self.positional.len()));
        }
        for (at, value) in self.positional.into_iter().enumerate() {
            bound[at] = Some(value);
        }
        for (name, value) in self.named {
            match parameters.iter().position(|parameter| *parameter == name) {
                Some(at) if bound[at].is_none() => bound[at] = Some(value),
                Some(_) => return Err(format!("the argument `{name}` is given twice")),
                None => return Err(format!("there is no argument `{name}`")),
            }
        }
        match bound[..required].iter().position(Option::is_none) {
            Some(missing) => Err(format!("the argument `{}` is missing", parameters[missing])),
            None => Ok(bound),
        }
    }

    /// As [`Self::bind`], for a function that takes no argument by name.
    pub(super) fn positional<const N: usize>(self, required: usize) -> Outcome<[Option<Value>; N]> {
        match self.named.first() {
            Some((name, _)) => Err(format!("the argument `{name}` cannot be given by name")),
            None if self.positional.len() < required => Err("an argument is missing".to_owned()),
            None => self.bind([""; N], 0),
        }
    }
}

/// A whole number; a bool is one.
pub(super) fn integer(value: &Value) -> Outcome<i128> {
    value.integer().ok_or_else(|| format!("expected a whole number, got {}", value.kind()))
}

/// A text that is not markup.
pub(super) fn text(value: &Value) -> Outcome<&str> {
    match value {
        Value::Str(text) => Ok(text),
        other => Err(format!("expected a text, got {}", other.kind())),
    }
}

/// A count or width: nothing below zero.
pub(super) fn count(value: &Value) -> Outcome<usize> {
    Ok(usize::try_from(integer(value)?.max(0)).unwrap_or(usize::MAX))
}
