//! Expressions.

use std::cmp::Ordering;
use std::rc::Rc;

use super::ast::{Arguments, Binary, Comparison, Constant, Expression, Unary};
use super::call::Args;
use super::iterate::Iter;
use super::render::{Renderer, Scope};
use super::scope::Frame;
use super::value::{Outcome, Range, Value};
use super::{MAX_BYTES, attribute, format, number, too_long};

/// Longest list that an operator makes.
const MAX_ITEMS: usize = 100_000;

impl Renderer<'_> {
    pub(super) fn evaluate(&mut self, expression: &Expression, frame: &Frame, scope: &Rc<Scope>) -> Outcome<Value> {
        self.step(1)?;
        match expression {
            Expression::Constant(constant) => self.constant(constant),
            Expression::Name(name) => {
                let reference = frame.find(name).ok_or_else(|| format!("`{name}` has no place"))?;
                Ok(scope.get(reference).unwrap_or_else(|| Value::undefined(format!("`{name}`"))))
            }
            Expression::Tuple(items) => Value::tuple(self.evaluate_all(items, frame, scope)?),
            Expression::List(items) => Value::list(self.evaluate_all(items, frame, scope)?),
            Expression::Dict(pairs) => {
                let mut values = Vec::with_capacity(pairs.len());
                for (key, value) in pairs {
                    values.push((self.evaluate(key, frame, scope)?, self.evaluate(value, frame, scope)?));
                }
                Value::dict(values)
            }
            Expression::Attribute(of, name) => {
                let of = self.evaluate(of, frame, scope)?;
                attribute::attribute(&of, name, self)
            }
            Expression::Item(of, index) => {
                let of = self.evaluate(of, frame, scope)?;
                let index = self.evaluate(index, frame, scope)?;
                attribute::item(&of, &index, self)
            }
            Expression::Slice(of, parts) => {
                let of = self.evaluate(of, frame, scope)?;
                let mut bounds = [const { None }; 3];
                for (bound, part) in bounds.iter_mut().zip(parts.iter()) {
                    if let Some(part) = part {
                        *bound = slice_bound(&self.evaluate(part, frame, scope)?)?;
                    }
                }
                self.slice(&of, bounds)
            }
            Expression::Call(callee, arguments) => {
                let callee = self.evaluate(callee, frame, scope)?;
                let args = self.arguments(arguments, frame, scope)?;
                self.call_value(&callee, args)
            }
            Expression::Filter(of, name, arguments) => {
                let of = match of {
                    Some(of) => self.evaluate(of, frame, scope)?,
                    None => Value::Str(Rc::clone(self.blocks.last().ok_or("a filter has nothing to work on")?)),
                };
                let args = self.arguments(arguments, frame, scope)?;
                self.call_filter(name, of, args)
            }
            Expression::Test(of, name, arguments) => {
                let of = self.evaluate(of, frame, scope)?;
                let args = self.arguments(arguments, frame, scope)?;
                Ok(Value::Bool(self.call_test(name, &of, args)?))
            }
            Expression::Unary(operator, of) => {
                let of = self.evaluate(of, frame, scope)?;
                match operator {
                    Unary::Not => Ok(Value::Bool(!of.truth())),
                    Unary::Negative => number::negative(&of),
                    // A plus makes an int of a bool.
                    Unary::Positive => number::negative(&of).and_then(|negative| number::negative(&negative)),
                }
            }
            Expression::Binary(operator, left, right) => {
                let left = self.evaluate(left, frame, scope)?;
                let right = self.evaluate(right, frame, scope)?;
                self.binary(*operator, &left, &right)
            }
            Expression::Compare(first, rest) => self.compare(first, rest, frame, scope),
            Expression::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    text.push_str(&self.evaluate(part, frame, scope)?.to_text()?);
                }
                self.text(text)
            }
            Expression::And(left, right) => {
                let left = self.evaluate(left, frame, scope)?;
                if left.truth() { self.evaluate(right, frame, scope) } else { Ok(left) }
            }
            Expression::Or(left, right) => {
                let left = self.evaluate(left, frame, scope)?;
                if left.truth() { Ok(left) } else { self.evaluate(right, frame, scope) }
            }
            Expression::Condition { test, then, otherwise } => {
                if self.evaluate(test, frame, scope)?.truth() {
                    return self.evaluate(then, frame, scope);
                }
                match otherwise {
                    Some(otherwise) => self.evaluate(otherwise, frame, scope),
                    None => Ok(Value::undefined("what an `if` without `else` gives")),
                }
            }
        }
    }

    fn constant(&mut self, constant: &Constant) -> Outcome<Value> {
        Ok(match constant {
            Constant::None => Value::None,
            Constant::Bool(value) => Value::Bool(*value),
            Constant::Int(value) => Value::Int(*value),
            Constant::Float(value) => Value::Float(*value),
            Constant::Str(text) => {
                self.made(text.len())?;
                Value::str(text.as_str())
            }
        })
    }

    fn evaluate_all(&mut self, items: &[Expression], frame: &Frame, scope: &Rc<Scope>) -> Outcome<Vec<Value>> {
        items.iter().map(|item| self.evaluate(item, frame, scope)).collect()
    }

    fn arguments(&mut self, arguments: &Arguments, frame: &Frame, scope: &Rc<Scope>) -> Outcome<Args> {
        let mut positional = self.evaluate_all(&arguments.positional, frame, scope)?;
        let mut named = Vec::new();
        for (name, value) in &arguments.named {
            named.push((name.clone(), self.evaluate(value, frame, scope)?));
        }
        if let Some(rest) = &arguments.rest {
            let rest = self.evaluate(rest, frame, scope)?;
            positional.extend(Iter::of(&rest)?.all(self)?);
        }
        if let Some(rest) = &arguments.named_rest {
            let Value::Dict(rest) = self.evaluate(rest, frame, scope)? else {
                return Err("what follows `**` is no dict".to_owned());
            };
            for (name, value) in rest.entries() {
                let name = super::call::text(name)?;
                if named.iter().any(|(known, _)| known == name) {
                    return Err(format!("the argument `{name}` is given twice"));
                }
                named.push((name.to_owned(), value.clone()));
            }
        }
        Ok(Args { positional, named })
    }

    /// Evaluates a call that gets one more argument, its caller.
    pub(super) fn call_with(&mut self, call: &Expression, caller: Value, frame: &Frame, scope: &Rc<Scope>) -> Outcome<Value> {
        let Expression::Call(callee, arguments) = call else { return Err("a `call` block without a call".to_owned()) };
        let callee = self.evaluate(callee, frame, scope)?;
        let mut args = self.arguments(arguments, frame, scope)?;
        if args.named.iter().any(|(name, _)| name == "caller") {
            return Err("the argument `caller` is given twice".to_owned());
        }
        args.named.push(("caller".to_owned(), caller));
        self.call_value(&callee, args)
    }

    fn call_value(&mut self, callee: &Value, args: Args) -> Outcome<Value> {
        match callee.defined()? {
            Value::Macro(inner) => {
                let text = self.call_macro(inner, args)?;
                self.text(text)
            }
            Value::Method(method) => self.call_method(&method.0, &method.1, args),
            Value::Function(function) => function.call(args, self),
            Value::Loop(state) => state.call(args, self),
            Value::Joiner(joiner) => {
                let [] = args.positional(0)?;
                Ok(if joiner.1.replace(true) { Value::Str(Rc::clone(&joiner.0)) } else { Value::str("") })
            }
            other => Err(format!("{} cannot be called", other.kind())),
        }
    }

    fn compare(
        &mut self,
        first: &Expression,
        rest: &[(Comparison, Expression)],
        frame: &Frame,
        scope: &Rc<Scope>,
    ) -> Outcome<Value> {
        let mut left = self.evaluate(first, frame, scope)?;
        for (comparison, operand) in rest {
            let right = self.evaluate(operand, frame, scope)?;
            if !self.holds(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// One comparison.
    pub(super) fn holds(&mut self, comparison: Comparison, left: &Value, right: &Value) -> Outcome<bool> {
        Ok(match comparison {
            Comparison::Equal => left.equals(right)?,
            Comparison::NotEqual => !left.equals(right)?,
            Comparison::Less => left.compare(right)? == Some(Ordering::Less),
            Comparison::LessOrEqual => matches!(left.compare(right)?, Some(Ordering::Less | Ordering::Equal)),
            Comparison::Greater => left.compare(right)? == Some(Ordering::Greater),
            Comparison::GreaterOrEqual => matches!(left.compare(right)?, Some(Ordering::Greater | Ordering::Equal)),
            Comparison::In => self.contains(right, left)?,
            Comparison::NotIn => !self.contains(right, left)?,
        })
    }

    /// Python's `value in container`.
    pub(super) fn contains(&mut self, container: &Value, value: &Value) -> Outcome<bool> {
        match container {
            Value::Str(text) | Value::Safe(text) => match value.text() {
                Some(part) => Ok(text.contains(&**part)),
                None => Err(format!("{} cannot be looked for in a text", value.kind())),
            },
            Value::Dict(dict) | Value::View(dict, super::value::View::Keys) => match value.key()? {
                Some(key) => Ok(dict.get(&key).is_some()),
                None => Err(format!("{} cannot be a key", value.kind())),
            },
            _ => {
                let mut items = Iter::of(container)?;
                while let Some(item) = items.next(self)? {
                    if item.equals(value)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    pub(super) fn binary(&mut self, operator: Binary, left: &Value, right: &Value) -> Outcome<Value> {
        left.defined()?;
        if operator == Binary::Modulo && matches!(left, Value::Str(_)) {
            let text = format::percent(super::call::text(left)?, right)?;
            return self.text(text);
        }
        right.defined()?;
        match (operator, left, right) {
            (_, Value::Safe(_), _) | (_, _, Value::Safe(_)) => Err("operators on safe markup are not supported".to_owned()),
            (Binary::Add, Value::Str(left), Value::Str(right)) => {
                let text = format!("{left}{right}");
                self.text(text)
            }
            (Binary::Add, Value::List(left), Value::List(right)) => Value::list(self.joined(&left.values, &right.values)?),
            (Binary::Add, Value::Tuple(left), Value::Tuple(right)) => Value::tuple(self.joined(&left.values, &right.values)?),
            (Binary::Multiply, sequence @ (Value::Str(_) | Value::List(_) | Value::Tuple(_)), count)
            | (Binary::Multiply, count, sequence @ (Value::Str(_) | Value::List(_) | Value::Tuple(_))) => {
                self.repeat(sequence, super::call::count(count)?)
            }
            _ => number::binary(operator, left, right),
        }
    }

    fn joined(&mut self, left: &[Value], right: &[Value]) -> Outcome<Vec<Value>> {
        self.listed(left.len() + right.len())?;
        Ok([left, right].concat())
    }

    /// Counts the items of a list that an operator makes.
    pub(super) fn listed(&mut self, items: usize) -> Outcome<()> {
        if items > MAX_ITEMS {
            return Err(format!("a list has more than {MAX_ITEMS} items"));
        }
        self.step(items as u64 / 4)
    }

    fn repeat(&mut self, sequence: &Value, count: usize) -> Outcome<Value> {
        let many = |length: usize| length.checked_mul(count).ok_or_else(too_long);
        match sequence {
            Value::Str(text) => {
                if many(text.len())? > MAX_BYTES {
                    return Err(too_long());
                }
                self.text(text.repeat(if text.is_empty() { 0 } else { count }))
            }
            Value::List(items) | Value::Tuple(items) => {
                self.listed(many(items.values.len())?)?;
                let times = if items.values.is_empty() { 0 } else { count };
                let values: Vec<Value> =
                    std::iter::repeat_n(&items.values, times).flat_map(|values| values.iter().cloned()).collect();
                if matches!(sequence, Value::List(_)) { Value::list(values) } else { Value::tuple(values) }
            }
            other => Err(format!("{} cannot be repeated", other.kind())),
        }
    }

    fn slice(&mut self, of: &Value, bounds: [Option<i128>; 3]) -> Outcome<Value> {
        match of.defined()? {
            Value::Str(text) | Value::Safe(text) => {
                let characters: Vec<char> = text.chars().collect();
                self.made(text.len())?;
                let text: String = sliced(characters.len(), bounds)?.map(|at| characters[at]).collect();
                match of {
                    Value::Safe(_) => Ok(Value::Safe(text.into())),
                    _ => self.text(text),
                }
            }
            Value::List(items) | Value::Tuple(items) => {
                self.listed(items.values.len())?;
                let values = sliced(items.values.len(), bounds)?.map(|at| items.values[at].clone()).collect();
                if matches!(of, Value::List(_)) { Value::list(values) } else { Value::tuple(values) }
            }
            other => Err(format!("slices of {} are not supported", other.kind())),
        }
    }
}

fn slice_bound(value: &Value) -> Outcome<Option<i128>> {
    match value {
        Value::None => Ok(None),
        other => super::call::integer(other).map(Some),
    }
}

/// The places that a slice names, by Python's rule.
fn sliced(length: usize, [start, stop, step]: [Option<i128>; 3]) -> Outcome<impl Iterator<Item = usize>> {
    let length = i128::try_from(length).unwrap_or(i128::MAX);
    let step = step.unwrap_or(1);
    if step == 0 || step.unsigned_abs() > 1 << 62 {
        return Err("the step of a slice is zero or too large".to_owned());
    }
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |bound: Option<i128>, absent: i128| match bound {
        None => absent,
        Some(bound) if bound < 0 => bound.saturating_add(length).max(low),
        Some(bound) => bound.min(high),
    };
    let range = Range {
        start: bound(start, if step > 0 { low } else { high }),
        stop: bound(stop, if step > 0 { high } else { low }),
        step,
    };
    Ok((0..range.len()).map(move |at| usize::try_from(range.start + at * range.step).unwrap_or_default()))
}
