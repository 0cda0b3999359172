//! Statements: what runs, where its variables live, and loops.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{For, Macro, Statement, Target};
use super::call::Args;
use super::iterate::Iter;
use super::scope::{Frame, Load, Reference};
use super::value::{Namespace, Outcome, Value};
use super::{MAX_BYTES, Variable, too_long};

mod looping;

pub(super) use super::function::Function;
pub(super) use looping::LoopState;

/// Steps that one rendering may take. A real template takes some thousand for a handful of messages.
const FUEL: u64 = 4_000_000;
/// Bytes of text that count as one step.
const BYTES_PER_STEP: u64 = 16;
/// Deepest nesting of calls.
const MAX_CALLS: u32 = 60;

/// One rendering.
pub(super) struct Renderer<'t> {
    variables: HashMap<&'t str, Value>,
    fuel: u64,
    calls: u32,
    /// Texts of the filter blocks under way.
    pub(super) blocks: Vec<Rc<str>>,
}

/// The variables of one running function: the template, a macro, a caller or a recursive loop.
#[derive(Default)]
pub(super) struct Scope {
    variables: RefCell<HashMap<Reference, Value>>,
    parent: Option<Rc<Scope>>,
}

/// A macro with the scope that it was defined in.
pub(super) struct MacroValue {
    pub definition: Arc<Macro>,
    pub scope: Rc<Scope>,
}

/// How a body ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Done,
    Break,
    Continue,
}

impl MacroValue {
    pub(super) fn repr(&self) -> String {
        match &self.definition.name {
            Some(name) => format!("<Macro '{name}'>"),
            None => "<Macro anonymous>".to_owned(),
        }
    }
}

impl Scope {
    pub(super) fn inner(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: Some(Rc::clone(parent)) })
    }

    pub(super) fn get(&self, reference: &Reference) -> Option<Value> {
        let own = self.variables.borrow().get(reference).cloned();
        own.or_else(|| self.parent.as_ref()?.get(reference))
    }

    fn set(&self, reference: &Reference, value: Option<Value>) {
        match value {
            Some(value) => self.variables.borrow_mut().insert(reference.clone(), value),
            None => self.variables.borrow_mut().remove(reference),
        };
    }
}

/// Renders a whole template.
pub(super) fn render(statements: &[Statement], frame: &Frame, variables: &[(String, Variable)]) -> Result<String, String> {
    let values = variables.iter().map(|(name, variable)| Ok((name.as_str(), variable.value()?)));
    let mut known: HashMap<&str, Value> = Function::GLOBALS.map(|(name, function)| (name, Value::Function(function))).into();
    known.extend(values.collect::<Outcome<Vec<_>>>()?);
    let mut renderer = Renderer { variables: known, fuel: FUEL, calls: 0, blocks: Vec::new() };
    let mut output = String::new();
    let scope = Rc::new(Scope::default());
    renderer.enter(frame, &scope);
    renderer.run(statements, frame, &scope, &mut output)?;
    Ok(output)
}

impl Variable {
    fn value(&self) -> Outcome<Value> {
        Ok(match self {
            Self::None => Value::None,
            Self::Bool(value) => Value::Bool(*value),
            Self::Text(text) => Value::str(text.as_str()),
            Self::List(items) => Value::list(items.iter().map(Self::value).collect::<Outcome<_>>()?)?,
            Self::Dict(pairs) => {
                let pairs = pairs.iter().map(|(key, value)| Ok((Value::str(key.as_str()), value.value()?)));
                Value::dict(pairs.collect::<Outcome<_>>()?)?
            }
        })
    }
}

impl Renderer<'_> {
    /// Takes steps off what is left.
    pub(super) fn step(&mut self, steps: u64) -> Outcome<()> {
        match self.fuel.checked_sub(steps) {
            Some(left) => {
                self.fuel = left;
                Ok(())
            }
            None => Err(format!("it takes more than {FUEL} steps")),
        }
    }

    /// Counts the bytes of a text that was made.
    pub(super) fn made(&mut self, bytes: usize) -> Outcome<()> {
        if bytes > MAX_BYTES {
            return Err(too_long());
        }
        self.step(bytes as u64 / BYTES_PER_STEP)
    }

    /// A new text, within the limits.
    pub(super) fn text(&mut self, text: String) -> Outcome<Value> {
        self.made(text.len())?;
        Ok(Value::str(text))
    }

    fn emit(&mut self, text: &str, output: &mut String) -> Outcome<()> {
        if output.len() + text.len() > MAX_BYTES {
            return Err(too_long());
        }
        self.step(text.len() as u64 / BYTES_PER_STEP)?;
        output.push_str(text);
        Ok(())
    }

    /// Sets what a scope's variables hold at its beginning.
    fn enter(&mut self, frame: &Frame, scope: &Scope) {
        for (reference, load) in &frame.loads {
            let value = match load {
                Load::Parameter => continue,
                Load::Resolve => self.variables.get(&*reference.1).cloned(),
                Load::Alias(outer) => scope.get(outer),
                Load::Nothing => None,
            };
            scope.set(reference, value);
        }
    }

    fn leave(frame: &Frame, scope: &Scope) {
        frame.loads.keys().for_each(|reference| scope.set(reference, None));
    }

    pub(super) fn run(
        &mut self,
        statements: &[Statement],
        frame: &Frame,
        scope: &Rc<Scope>,
        output: &mut String,
    ) -> Outcome<Flow> {
        for statement in statements {
            self.step(1)?;
            let flow = self.statement(statement, frame, scope, output)?;
            if flow != Flow::Done {
                return Ok(flow);
            }
        }
        Ok(Flow::Done)
    }

    fn statement(&mut self, statement: &Statement, frame: &Frame, scope: &Rc<Scope>, output: &mut String) -> Outcome<Flow> {
        match statement {
            Statement::Text(text) => self.emit(text, output)?,
            Statement::Print(expression) => {
                let text = self.evaluate(expression, frame, scope)?.to_text()?;
                self.emit(&text, output)?;
            }
            Statement::Set(target, value) => {
                let value = self.evaluate(value, frame, scope)?;
                self.assign(target, value, frame, scope)?;
            }
            Statement::If(branches) => {
                for (test, body) in branches {
                    let holds = match test {
                        Some(test) => self.evaluate(test, frame, scope)?.truth(),
                        None => true,
                    };
                    if holds {
                        return self.run(body, frame, scope, output);
                    }
                }
            }
            Statement::For(inner) => return self.for_loop(inner, frame, scope, output),
            Statement::Macro(definition) => {
                let value = closure(definition, scope);
                let name = definition.name.as_deref().unwrap_or_default();
                self.assign_name(name, value, frame, scope)?;
            }
            Statement::CallBlock(call, definition) => {
                let text = self.call_with(call, closure(definition, scope), frame, scope)?.to_text()?;
                self.emit(&text, output)?;
            }
            Statement::Generation(definition) => {
                let inner = MacroValue { definition: Arc::clone(definition), scope: Rc::clone(scope) };
                let text = self.call_macro(&inner, Args::default())?;
                self.emit(&text, output)?;
            }
            Statement::SetBlock { .. } | Statement::FilterBlock(..) | Statement::With(..) => {
                return self.block(statement, frame, scope, output);
            }
            Statement::Include(template) => {
                self.evaluate(template, frame, scope)?;
                return Err("there is no template to include".to_owned());
            }
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Done)
    }

    /// A statement with a scope of its own in the same function. Where a loop is left from inside, what was written is lost.
    fn block(&mut self, statement: &Statement, frame: &Frame, scope: &Rc<Scope>, output: &mut String) -> Outcome<Flow> {
        let flow = match statement {
            Statement::SetBlock { target, filter, body } => {
                self.enter(&body.frame, scope);
                let mut text = String::new();
                let flow = self.run(&body.statements, &body.frame, scope, &mut text)?;
                if flow != Flow::Done {
                    return Ok(flow);
                }
                let value = match filter {
                    Some(filter) => self.filtered(filter, text, &body.frame, scope)?,
                    None => self.text(text)?,
                };
                self.assign(target, value, frame, scope)?;
                Self::leave(&body.frame, scope);
                flow
            }
            Statement::FilterBlock(filter, body) => {
                self.enter(&body.frame, scope);
                let mut text = String::new();
                let flow = self.run(&body.statements, &body.frame, scope, &mut text)?;
                if flow != Flow::Done {
                    return Ok(flow);
                }
                let text = self.filtered(filter, text, &body.frame, scope)?.to_text()?;
                self.emit(&text, output)?;
                Self::leave(&body.frame, scope);
                flow
            }
            Statement::With(values, body) => {
                self.enter(&body.frame, scope);
                for (target, value) in values {
                    let value = self.evaluate(value, frame, scope)?;
                    self.assign(target, value, &body.frame, scope)?;
                }
                let flow = self.run(&body.statements, &body.frame, scope, output)?;
                if flow == Flow::Done {
                    Self::leave(&body.frame, scope);
                }
                flow
            }
            _ => Flow::Done,
        };
        Ok(flow)
    }

    fn filtered(&mut self, filter: &super::ast::Expression, text: String, frame: &Frame, scope: &Rc<Scope>) -> Outcome<Value> {
        self.made(text.len())?;
        self.blocks.push(text.into());
        let value = self.evaluate(filter, frame, scope);
        self.blocks.pop();
        value
    }

    fn assign_name(&mut self, name: &str, value: Value, frame: &Frame, scope: &Scope) -> Outcome<()> {
        let reference = frame.find(name).ok_or_else(|| format!("`{name}` has no place"))?;
        scope.set(reference, Some(value));
        Ok(())
    }

    fn assign(&mut self, target: &Target, value: Value, frame: &Frame, scope: &Rc<Scope>) -> Outcome<()> {
        match target {
            Target::Name(name) => self.assign_name(name, value, frame, scope),
            Target::Attribute(name, attribute) => {
                let reference = frame.find(name).ok_or_else(|| format!("`{name}` has no place"))?;
                match scope.get(reference) {
                    Some(Value::Namespace(namespace)) => namespace.set(attribute, value),
                    _ => Err(format!("`{name}` is no namespace, its attribute cannot be set")),
                }
            }
            Target::Tuple(targets) => {
                let values = Iter::of(&value)?.all(self)?;
                if values.len() != targets.len() {
                    return Err(format!("{} values cannot be assigned to {} names", values.len(), targets.len()));
                }
                targets.iter().zip(values).try_for_each(|(target, value)| self.assign(target, value, frame, scope))
            }
        }
    }

    fn for_loop(&mut self, inner: &Arc<For>, frame: &Frame, scope: &Rc<Scope>, output: &mut String) -> Outcome<Flow> {
        let iterable = self.evaluate(&inner.iterable, frame, scope)?;
        if !inner.recursive {
            return self.iterate(inner, iterable, scope, 0, output);
        }
        let text = self.recurse(inner, iterable, scope, 0)?;
        self.emit(&text, output)?;
        Ok(Flow::Done)
    }

    /// Runs a recursive loop's function.
    pub(super) fn recurse(&mut self, inner: &Arc<For>, iterable: Value, scope: &Rc<Scope>, depth: i128) -> Outcome<String> {
        self.call(|renderer| {
            let mut text = String::new();
            renderer.iterate(inner, iterable, &Scope::inner(scope), depth, &mut text)?;
            Ok(text)
        })
    }

    /// Counts calls within calls.
    fn call<T>(&mut self, run: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        self.calls += 1;
        if self.calls > MAX_CALLS {
            return Err(format!("calls are nested more than {MAX_CALLS} deep"));
        }
        let result = run(self);
        self.calls -= 1;
        result
    }

    /// Calls a macro.
    pub(super) fn call_macro(&mut self, inner: &MacroValue, args: Args) -> Outcome<String> {
        let definition = &inner.definition;
        let count = definition.parameters.len();
        let Args { positional, mut named } = args;
        let mut take = |name: &str| {
            let at = named.iter().position(|(known, _)| known == name)?;
            Some(named.remove(at).1)
        };
        let given = positional.len().min(count);
        let extra = positional.get(count..).unwrap_or_default().to_vec();
        let mut values: Vec<Option<Value>> = positional.into_iter().take(count).map(Some).collect();
        values.extend(definition.parameters[given..].iter().map(|name| take(name)));
        let explicit = definition.parameters.iter().any(|name| name == "caller");
        let mut special = Vec::new();
        if definition.takes_caller && !explicit {
            let caller = take("caller").filter(|caller| !matches!(caller, Value::None));
            special.push(("caller", caller.unwrap_or_else(|| Value::undefined("the macro's caller"))));
        }
        if definition.takes_named {
            let pairs = std::mem::take(&mut named).into_iter().map(|(name, value)| (Value::str(name), value));
            special.push(("kwargs", Value::dict(pairs.collect())?));
        } else if let Some((name, _)) = named.first() {
            return Err(format!("the macro takes no argument `{name}`"));
        }
        if definition.takes_rest {
            special.push(("varargs", Value::tuple(extra)?));
        } else if !extra.is_empty() {
            return Err(format!("the macro takes not more than {count} arguments"));
        }
        self.call(|renderer| renderer.macro_body(inner, values, special))
    }

    fn macro_body(&mut self, inner: &MacroValue, values: Vec<Option<Value>>, special: Vec<(&str, Value)>) -> Outcome<String> {
        let definition = &inner.definition;
        let frame = &definition.body.frame;
        let scope = Scope::inner(&inner.scope);
        for (name, value) in special {
            self.assign_name(name, value, frame, &scope)?;
        }
        for (name, value) in definition.parameters.iter().zip(&values) {
            if let Some(value) = value {
                self.assign_name(name, value.clone(), frame, &scope)?;
            }
        }
        self.enter(frame, &scope);
        let without_default = definition.parameters.len() - definition.defaults.len();
        for (at, (name, value)) in definition.parameters.iter().zip(&values).enumerate() {
            if value.is_none() {
                let default = match at.checked_sub(without_default) {
                    Some(at) => self.evaluate(&definition.defaults[at], frame, &scope)?,
                    None => Value::undefined(format!("the parameter `{name}`")),
                };
                self.assign_name(name, default, frame, &scope)?;
            }
        }
        let mut text = String::new();
        self.run(&definition.body.statements, frame, &scope, &mut text)?;
        Ok(text)
    }
}

fn closure(definition: &Arc<Macro>, scope: &Rc<Scope>) -> Value {
    Value::Macro(Rc::new(MacroValue { definition: Arc::clone(definition), scope: Rc::clone(scope) }))
}

impl Namespace {
    pub(super) fn set(&self, name: &str, value: Value) -> Outcome<()> {
        if matches!(value, Value::Namespace(_)) {
            return Err("a namespace within a namespace is not supported".to_owned());
        }
        let mut attributes = self.attributes.borrow_mut();
        match attributes.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => attributes.push((name.to_owned(), value)),
        }
        Ok(())
    }
}
