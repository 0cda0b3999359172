//! `for` loops, with or without a `loop` variable.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::super::ast::{Expression, For, Target};
use super::super::call::Args;
use super::super::iterate::Iter;
use super::super::scope::Frame;
use super::super::value::{Outcome, Value};
use super::{Flow, Renderer, Scope};

/// Jinja's `LoopContext`.
pub(in super::super) struct LoopState {
    items: RefCell<Items>,
    /// Of the iterable, where it has one or it was counted.
    length: Cell<Option<i128>>,
    index0: Cell<i128>,
    depth0: i128,
    before: RefCell<Option<Value>>,
    current: RefCell<Option<Value>>,
    /// The next item, where it was looked at in advance: none at the end.
    after: RefCell<Option<Option<Value>>>,
    changed: RefCell<Option<Vec<Value>>>,
    recursion: Option<(Arc<For>, Rc<Scope>)>,
}

/// A loop's items: of the iterable, perhaps those for which the loop's condition holds.
struct Items {
    iter: Iter,
    filter: Option<(Arc<For>, Rc<Scope>, bool)>,
}

impl Items {
    fn next(&mut self, renderer: &mut Renderer<'_>) -> Outcome<Option<Value>> {
        while let Some(item) = self.iter.next(renderer)? {
            let Some((inner, scope, entered)) = &mut self.filter else { return Ok(Some(item)) };
            let Some((test, frame)) = &inner.test else { return Ok(Some(item)) };
            if !*entered {
                renderer.enter(frame, scope);
                *entered = true;
            }
            renderer.assign(&inner.target, item, frame, scope)?;
            if holds(renderer, test, frame, scope)? {
                return rebuilt(&inner.target, frame, scope).map(Some);
            }
        }
        Ok(None)
    }
}

fn holds(renderer: &mut Renderer<'_>, test: &Expression, frame: &Frame, scope: &Rc<Scope>) -> Outcome<bool> {
    Ok(renderer.evaluate(test, frame, scope)?.truth())
}

/// What a loop's condition passes on: its target, read again.
fn rebuilt(target: &Target, frame: &Frame, scope: &Scope) -> Outcome<Value> {
    match target {
        Target::Name(name) | Target::Attribute(name, _) => {
            let value = frame.find(name).and_then(|reference| scope.get(reference));
            value.ok_or_else(|| format!("`{name}` has no value"))
        }
        Target::Tuple(targets) => {
            Value::tuple(targets.iter().map(|target| rebuilt(target, frame, scope)).collect::<Outcome<_>>()?)
        }
    }
}

/// Python's `len`, where it has one.
fn length(value: &Value) -> Option<i128> {
    match value {
        Value::Undefined(_) => Some(0),
        Value::Str(text) | Value::Safe(text) => Some(text.chars().count() as i128),
        Value::List(items) | Value::Tuple(items) => Some(items.values.len() as i128),
        Value::Dict(dict) | Value::View(dict, _) => Some(dict.entries().len() as i128),
        Value::Range(range) => Some(range.len()),
        _ => None,
    }
}

impl Renderer<'_> {
    /// Runs a loop over `iterable` in a function's `scope`.
    pub(super) fn iterate(
        &mut self,
        inner: &Arc<For>,
        iterable: Value,
        scope: &Rc<Scope>,
        depth: i128,
        output: &mut String,
    ) -> Outcome<Flow> {
        let filter = inner.test.as_ref().map(|_| (Arc::clone(inner), Scope::inner(scope), false));
        let known = if filter.is_some() { None } else { length(&iterable) };
        let mut items = Items { iter: Iter::of(&iterable)?, filter };
        let frame = &inner.body.frame;
        let mut nothing = true;
        let mut state = None;
        if inner.extended {
            let recursion = inner.recursive.then(|| (Arc::clone(inner), scope.parent.clone().unwrap_or_default()));
            let empty = Items { iter: Iter::values(Vec::new()), filter: None };
            let items = std::mem::replace(&mut items, empty);
            state = Some(Rc::new(LoopState::new(items, known, depth, recursion)));
        }
        loop {
            let item = match &state {
                Some(state) => state.next(self)?,
                None => items.next(self)?,
            };
            let Some(item) = item else { break };
            self.assign(&inner.target, item, frame, scope)?;
            if let Some(state) = &state {
                self.assign_name("loop", Value::Loop(Rc::clone(state)), frame, scope)?;
            }
            self.enter(frame, scope);
            match self.run(&inner.body.statements, frame, scope, output)? {
                Flow::Done => nothing = false,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        Self::leave(frame, scope);
        // An iteration that was cut short does not count for `else`, as in Jinja's code.
        match &inner.otherwise {
            Some(otherwise) if nothing => {
                self.enter(&otherwise.frame, scope);
                let flow = self.run(&otherwise.statements, &otherwise.frame, scope, output)?;
                if flow == Flow::Done {
                    Self::leave(&otherwise.frame, scope);
                }
                Ok(flow)
            }
            _ => Ok(Flow::Done),
        }
    }
}

impl LoopState {
    fn new(items: Items, length: Option<i128>, depth0: i128, recursion: Option<(Arc<For>, Rc<Scope>)>) -> Self {
        Self {
            items: RefCell::new(items),
            length: Cell::new(length),
            index0: Cell::new(-1),
            depth0,
            before: RefCell::default(),
            current: RefCell::default(),
            after: RefCell::default(),
            changed: RefCell::default(),
            recursion,
        }
    }

    fn draw(&self, renderer: &mut Renderer<'_>) -> Outcome<Option<Value>> {
        self.items.try_borrow_mut().map_err(|_| "a loop asks itself".to_owned())?.next(renderer)
    }

    fn next(&self, renderer: &mut Renderer<'_>) -> Outcome<Option<Value>> {
        let ahead = self.after.take();
        let next = match ahead {
            Some(Some(item)) => Some(item),
            // Python asks an exhausted iterator again: it stays exhausted.
            Some(None) => None,
            None => self.draw(renderer)?,
        };
        if let Some(item) = &next {
            self.index0.set(self.index0.get() + 1);
            *self.before.borrow_mut() = self.current.replace(Some(item.clone()));
        }
        Ok(next)
    }

    fn peek(&self, renderer: &mut Renderer<'_>) -> Outcome<Option<Value>> {
        let ahead = self.after.borrow().clone();
        match ahead {
            Some(item) => Ok(item),
            None => {
                let next = self.draw(renderer)?;
                // The end is not kept: it is found again.
                if next.is_some() {
                    *self.after.borrow_mut() = Some(next.clone());
                }
                Ok(next)
            }
        }
    }

    fn length(&self, renderer: &mut Renderer<'_>) -> Outcome<i128> {
        if let Some(length) = self.length.get() {
            return Ok(length);
        }
        let mut rest = Vec::new();
        while let Some(item) = self.draw(renderer)? {
            rest.push(item);
        }
        let seen = self.index0.get() + 1 + i128::from(self.after.borrow().is_some());
        let length = rest.len() as i128 + seen;
        *self.items.borrow_mut() = Items { iter: Iter::values(rest), filter: None };
        self.length.set(Some(length));
        Ok(length)
    }

    /// An attribute of `loop`; none where it has no such attribute.
    pub(in super::super) fn attribute(self: &Rc<Self>, name: &str, renderer: &mut Renderer<'_>) -> Outcome<Option<Value>> {
        let index0 = self.index0.get();
        Ok(Some(match name {
            "index" => Value::Int(index0 + 1),
            "index0" => Value::Int(index0),
            "revindex" => Value::Int(self.length(renderer)? - index0),
            "revindex0" => Value::Int(self.length(renderer)? - index0 - 1),
            "first" => Value::Bool(index0 == 0),
            "last" => Value::Bool(self.peek(renderer)?.is_none()),
            "length" => Value::Int(self.length(renderer)?),
            "depth" => Value::Int(self.depth0 + 1),
            "depth0" => Value::Int(self.depth0),
            "previtem" if index0 == 0 => Value::undefined("the item before the first"),
            "previtem" => self.before.borrow().clone().unwrap_or_else(|| Value::undefined("the item before")),
            "nextitem" => self.peek(renderer)?.unwrap_or_else(|| Value::undefined("the item after the last")),
            "cycle" | "changed" => Value::Method(Rc::new((Value::Loop(Rc::clone(self)), name.to_owned()))),
            _ => return Ok(None),
        }))
    }

    /// `loop.cycle` and `loop.changed`.
    pub(in super::super) fn method(&self, name: &str, args: Args) -> Outcome<Value> {
        if let Some((name, _)) = args.named.first() {
            return Err(format!("there is no argument `{name}`"));
        }
        let values = args.positional;
        if name == "cycle" {
            let count = i128::try_from(values.len()).unwrap_or_default();
            let at = self.index0.get().checked_rem(count).ok_or_else(|| "`loop.cycle` has nothing to give".to_owned())?;
            return Ok(values[usize::try_from(at).unwrap_or_default()].clone());
        }
        let mut last = self.changed.borrow_mut();
        let same = match &*last {
            Some(last) => Value::tuple(last.clone())?.equals(&Value::tuple(values.clone())?)?,
            None => false,
        };
        if !same {
            *last = Some(values);
        }
        Ok(Value::Bool(!same))
    }

    /// `loop(iterable)` of a recursive loop.
    pub(in super::super) fn call(&self, args: Args, renderer: &mut Renderer<'_>) -> Outcome<Value> {
        let [iterable] = args.bind(["iterable"], 1)?;
        let (inner, scope) = self.recursion.as_ref().ok_or_else(|| "the loop is not `recursive`".to_owned())?;
        let text = renderer.recurse(inner, iterable.unwrap_or(Value::None), scope, self.depth0 + 1)?;
        renderer.text(text)
    }
}
