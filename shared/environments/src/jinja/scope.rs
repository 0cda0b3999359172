//! Which variable a name means: Jinja decides it from the text, before anything runs.
//!
//! This follows Jinja's `idtracking` step by step, its odd corners included: a name that the top level assigns anywhere
//! is the top level's everywhere below it, even before the assignment; a name that only some branches assign falls back
//! to the outer one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ast::{Arguments, Expression, For, Macro, Statement, Target};
use super::{filters, tests};

/// A variable: how deep its scope lies, and its name.
pub(super) type Reference = (u32, Arc<str>);

/// What a variable holds when its scope is entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Load {
    /// Whatever enters the scope sets it.
    Parameter,
    /// The template's variable of this name.
    Resolve,
    /// The value of an outer variable.
    Alias(Reference),
    Nothing,
}

/// The names of one scope.
#[derive(Debug, Clone, Default)]
pub(super) struct Frame {
    level: u32,
    parent: Option<Arc<Frame>>,
    references: BTreeMap<String, Reference>,
    /// What to do on entry.
    pub loads: BTreeMap<Reference, Load>,
    stores: BTreeSet<String>,
}

impl Frame {
    fn inner(parent: &Arc<Self>) -> Self {
        Self { level: parent.level + 1, parent: Some(Arc::clone(parent)), ..Self::default() }
    }

    /// The variable that a name means here.
    pub(super) fn find(&self, name: &str) -> Option<&Reference> {
        self.references.get(name).or_else(|| self.parent.as_ref()?.find(name))
    }

    fn define(&mut self, name: &str, load: Load) {
        let reference: Reference = (self.level, name.into());
        self.references.insert(name.to_owned(), reference.clone());
        self.loads.insert(reference, load);
    }

    fn parameter(&mut self, name: &str) {
        self.stores.insert(name.to_owned());
        self.define(name, Load::Parameter);
    }

    fn outer(&self, name: &str) -> Option<Load> {
        self.parent.as_ref()?.find(name).cloned().map(Load::Alias)
    }

    fn store(&mut self, name: &str) {
        self.stores.insert(name.to_owned());
        if !self.references.contains_key(name) {
            let load = self.outer(name).unwrap_or(Load::Nothing);
            self.define(name, load);
        }
    }

    fn load(&mut self, name: &str) {
        if self.find(name).is_none() {
            self.define(name, Load::Resolve);
        }
    }

    fn load_all(&mut self, expression: &Expression) {
        names(expression, &mut |name| self.load(name));
    }

    fn visit_target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => self.store(name),
            Target::Attribute(name, _) => self.load(name),
            Target::Tuple(targets) => targets.iter().for_each(|target| self.visit_target(target)),
        }
    }

    fn parameters(&mut self, target: &Target) {
        match target {
            Target::Name(name) => self.parameter(name),
            Target::Attribute(..) => {}
            Target::Tuple(targets) => targets.iter().for_each(|target| self.parameters(target)),
        }
    }

    fn visit_all(&mut self, statements: &[Statement]) {
        statements.iter().for_each(|statement| self.visit(statement));
    }

    /// What a statement means for the scope it stands in; it stops where an inner scope begins.
    fn visit(&mut self, statement: &Statement) {
        match statement {
            Statement::Print(expression) | Statement::Include(expression) => self.load_all(expression),
            Statement::Set(target, value) => {
                self.load_all(value);
                self.visit_target(target);
            }
            Statement::SetBlock { target, .. } => self.visit_target(target),
            Statement::If(branches) => self.visit_if(branches),
            Statement::For(inner) => self.load_all(&inner.iterable),
            Statement::Macro(inner) => self.store(inner.name.as_deref().unwrap_or_default()),
            Statement::CallBlock(call, _) => self.load_all(call),
            Statement::FilterBlock(filter, _) => self.load_all(filter),
            Statement::With(values, _) => values.iter().for_each(|(_, value)| self.load_all(value)),
            Statement::Text(_) | Statement::Generation(_) | Statement::Break | Statement::Continue => {}
        }
    }

    fn visit_if(&mut self, branches: &[(Option<Expression>, Vec<Statement>)]) {
        let [(Some(test), body), rest @ ..] = branches else { return };
        self.load_all(test);
        let (elifs, otherwise) = match rest {
            [elifs @ .., (None, otherwise)] => (elifs, otherwise.as_slice()),
            elifs => (elifs, [].as_slice()),
        };
        let branch = |visit: &dyn Fn(&mut Self)| {
            let mut symbols = self.clone();
            visit(&mut symbols);
            symbols
        };
        let symbols = [
            branch(&|frame| frame.visit_all(body)),
            branch(&|frame| elifs.iter().for_each(|elif| frame.visit_if(std::slice::from_ref(elif)))),
            branch(&|frame| frame.visit_all(otherwise)),
        ];
        self.merge(symbols);
    }

    fn merge(&mut self, branches: [Self; 3]) {
        let stored: BTreeSet<String> = branches.iter().flat_map(|branch| &branch.stores).cloned().collect();
        let fresh: Vec<String> = stored.difference(&self.stores).cloned().collect();
        for branch in branches {
            self.references.extend(branch.references);
            self.loads.extend(branch.loads);
            self.stores.extend(branch.stores);
        }
        for name in fresh {
            let Some(reference) = self.find(&name).cloned() else { continue };
            let load = self.outer(&name).unwrap_or(Load::Resolve);
            self.loads.insert(reference, load);
        }
    }
}

/// Fills in the frames of a whole template and returns the top level's. Refuses filters and tests that do not exist.
pub(super) fn resolve(statements: &mut [Statement]) -> Result<Arc<Frame>, String> {
    if undeclared(statements, &["self"]).contains("self") {
        return Err("`self` is not supported".to_owned());
    }
    let mut top = Frame::default();
    top.visit_all(statements);
    let top = Arc::new(top);
    resolve_all(statements, &top, false)?;
    Ok(top)
}

/// `soft`: inside of a condition, where an unknown filter only fails once it is used.
fn resolve_all(statements: &mut [Statement], frame: &Arc<Frame>, soft: bool) -> Result<(), String> {
    statements.iter_mut().try_for_each(|statement| resolve_one(statement, frame, soft))
}

fn resolve_one(statement: &mut Statement, frame: &Arc<Frame>, soft: bool) -> Result<(), String> {
    match statement {
        Statement::Print(expression) | Statement::Set(_, expression) | Statement::Include(expression) => known(expression, soft),
        Statement::SetBlock { filter, body, .. } => {
            let mut inner = Frame::inner(frame);
            inner.visit_all(&body.statements);
            body.frame = Arc::new(inner);
            filter.iter().try_for_each(|filter| known(filter, false))?;
            resolve_all(&mut body.statements, &body.frame, false)
        }
        Statement::If(branches) => branches.iter_mut().try_for_each(|(test, body)| {
            test.iter().try_for_each(|test| known(test, true))?;
            resolve_all(body, frame, true)
        }),
        Statement::For(inner) => resolve_for(inner, frame, soft),
        Statement::Macro(inner) | Statement::Generation(inner) => resolve_macro(inner, frame),
        Statement::CallBlock(call, inner) => {
            known(call, soft)?;
            resolve_macro(inner, frame)
        }
        Statement::FilterBlock(filter, body) => {
            let mut inner = Frame::inner(frame);
            inner.visit_all(&body.statements);
            inner.load_all(filter);
            body.frame = Arc::new(inner);
            known(filter, false)?;
            resolve_all(&mut body.statements, &body.frame, false)
        }
        Statement::With(values, body) => {
            let mut inner = Frame::inner(frame);
            values.iter().for_each(|(target, _)| inner.parameters(target));
            inner.visit_all(&body.statements);
            body.frame = Arc::new(inner);
            values.iter().try_for_each(|(_, value)| known(value, soft))?;
            resolve_all(&mut body.statements, &body.frame, false)
        }
        Statement::Text(_) | Statement::Break | Statement::Continue => Ok(()),
    }
}

fn resolve_for(inner: &mut Arc<For>, frame: &Arc<Frame>, soft: bool) -> Result<(), String> {
    let inner = Arc::get_mut(inner).ok_or_else(|| "a loop is already in use".to_owned())?;
    if stores(&inner.body.statements, "loop") || inner.otherwise.iter().any(|body| stores(&body.statements, "loop")) {
        return Err("something within a loop assigns to `loop`".to_owned());
    }
    inner.extended |= undeclared(&inner.body.statements, &["loop"]).contains("loop");
    let mut body = Frame::inner(frame);
    if inner.extended {
        body.parameter("loop");
    }
    body.parameters(&inner.target);
    body.visit_all(&inner.body.statements);
    inner.body.frame = Arc::new(body);
    if let Some((test, test_frame)) = &mut inner.test {
        let mut tested = Frame::inner(frame);
        tested.parameters(&inner.target);
        tested.load_all(test);
        *test_frame = Arc::new(tested);
        known(test, false)?;
    }
    known(&inner.iterable, soft)?;
    if let Some(otherwise) = &mut inner.otherwise {
        let mut frame = Frame::inner(frame);
        frame.visit_all(&otherwise.statements);
        otherwise.frame = Arc::new(frame);
        resolve_all(&mut otherwise.statements, &otherwise.frame, false)?;
    }
    resolve_all(&mut inner.body.statements, &inner.body.frame, false)
}

fn resolve_macro(inner: &mut Arc<Macro>, frame: &Arc<Frame>) -> Result<(), String> {
    let inner = Arc::get_mut(inner).ok_or_else(|| "a macro is already in use".to_owned())?;
    let mut body = Frame::inner(frame);
    let analyse = |body: &mut Frame| {
        inner.parameters.iter().for_each(|name| body.parameter(name));
        inner.defaults.iter().for_each(|default| body.load_all(default));
        body.visit_all(&inner.body.statements);
    };
    analyse(&mut body);
    let special = undeclared(&inner.body.statements, &["caller", "kwargs", "varargs"]);
    let explicit = |name: &str| inner.parameters.iter().position(|parameter| parameter == name);
    inner.takes_caller = special.contains("caller");
    match explicit("caller") {
        Some(at) if inner.takes_caller && at + inner.defaults.len() < inner.parameters.len() => {
            return Err("a macro's parameter `caller` has no default".to_owned());
        }
        None if inner.takes_caller => body.parameter("caller"),
        _ => {}
    }
    inner.takes_named = special.contains("kwargs") && explicit("kwargs").is_none();
    inner.takes_rest = special.contains("varargs") && explicit("varargs").is_none();
    if inner.takes_named {
        body.parameter("kwargs");
    }
    if inner.takes_rest {
        body.parameter("varargs");
    }
    analyse(&mut body);
    inner.body.frame = Arc::new(body);
    inner.defaults.iter().try_for_each(|default| known(default, false))?;
    resolve_all(&mut inner.body.statements, &inner.body.frame, false)
}

/// Whether a name is assigned to anywhere in `statements`; a macro of this name and `with` do not count, as in Jinja.
fn stores(statements: &[Statement], name: &str) -> bool {
    statements.iter().any(|statement| match statement {
        Statement::Set(target, _) => target.stores(name),
        Statement::SetBlock { target, body, .. } => target.stores(name) || stores(&body.statements, name),
        Statement::If(branches) => branches.iter().any(|(_, body)| stores(body, name)),
        Statement::For(inner) => {
            let otherwise = inner.otherwise.iter().any(|body| stores(&body.statements, name));
            otherwise || stores(&inner.body.statements, name)
        }
        Statement::Macro(inner) | Statement::CallBlock(_, inner) | Statement::Generation(inner) => {
            stores(&inner.body.statements, name)
        }
        Statement::FilterBlock(_, body) | Statement::With(_, body) => stores(&body.statements, name),
        Statement::Text(_) | Statement::Print(_) | Statement::Include(_) | Statement::Break | Statement::Continue => false,
    })
}

/// Which of `wanted` are read in `statements` before anything assigns to them.
fn undeclared(statements: &[Statement], wanted: &[&str]) -> BTreeSet<String> {
    let mut search = Undeclared { wanted: wanted.iter().map(|name| (*name).to_owned()).collect(), found: BTreeSet::new() };
    search.all(statements);
    search.found
}

struct Undeclared {
    wanted: BTreeSet<String>,
    found: BTreeSet<String>,
}

impl Undeclared {
    fn read(&mut self, expression: &Expression) {
        names(expression, &mut |name| {
            if self.wanted.contains(name) {
                self.found.insert(name.to_owned());
            }
        });
    }

    fn assigned(&mut self, target: &Target) {
        match target {
            Target::Name(name) => {
                self.wanted.remove(name);
            }
            Target::Attribute(..) => {}
            Target::Tuple(targets) => targets.iter().for_each(|target| self.assigned(target)),
        }
    }

    fn all(&mut self, statements: &[Statement]) {
        statements.iter().for_each(|statement| self.one(statement));
    }

    fn one(&mut self, statement: &Statement) {
        match statement {
            Statement::Print(expression) | Statement::Include(expression) => self.read(expression),
            Statement::Set(target, value) => {
                self.assigned(target);
                self.read(value);
            }
            Statement::SetBlock { target, filter, body } => {
                self.assigned(target);
                filter.iter().for_each(|filter| self.read(filter));
                self.all(&body.statements);
            }
            Statement::If(branches) => branches.iter().for_each(|(test, body)| {
                test.iter().for_each(|test| self.read(test));
                self.all(body);
            }),
            Statement::For(inner) => {
                self.assigned(&inner.target);
                self.read(&inner.iterable);
                self.all(&inner.body.statements);
                inner.otherwise.iter().for_each(|body| self.all(&body.statements));
                inner.test.iter().for_each(|(test, _)| self.read(test));
            }
            Statement::Macro(inner) | Statement::Generation(inner) => self.function(inner),
            Statement::CallBlock(call, inner) => {
                self.read(call);
                self.function(inner);
            }
            Statement::FilterBlock(filter, body) => {
                self.all(&body.statements);
                self.read(filter);
            }
            Statement::With(values, body) => {
                values.iter().for_each(|(target, _)| self.assigned(target));
                values.iter().for_each(|(_, value)| self.read(value));
                self.all(&body.statements);
            }
            Statement::Text(_) | Statement::Break | Statement::Continue => {}
        }
    }

    fn function(&mut self, inner: &Macro) {
        for name in &inner.parameters {
            self.wanted.remove(name);
        }
        inner.defaults.iter().for_each(|default| self.read(default));
        self.all(&inner.body.statements);
    }
}

/// Every name that an expression reads.
fn names(expression: &Expression, found: &mut dyn FnMut(&str)) {
    walk(expression, &mut |inner| {
        if let Expression::Name(name) = inner {
            found(name);
        }
    });
}

/// Every expression within an expression, itself first.
fn walk(expression: &Expression, visit: &mut dyn FnMut(&Expression)) {
    visit(expression);
    match expression {
        Expression::Constant(_) | Expression::Name(_) => {}
        Expression::Tuple(items) | Expression::List(items) | Expression::Concat(items) => {
            items.iter().for_each(|item| walk(item, visit));
        }
        Expression::Dict(pairs) => pairs.iter().for_each(|(key, value)| {
            walk(key, visit);
            walk(value, visit);
        }),
        Expression::Attribute(of, _) | Expression::Unary(_, of) => walk(of, visit),
        Expression::Item(left, right)
        | Expression::Binary(_, left, right)
        | Expression::And(left, right)
        | Expression::Or(left, right) => {
            walk(left, visit);
            walk(right, visit);
        }
        Expression::Slice(of, parts) => {
            walk(of, visit);
            parts.iter().flatten().for_each(|part| walk(part, visit));
        }
        Expression::Call(of, arguments) | Expression::Test(of, _, arguments) => {
            walk(of, visit);
            walk_arguments(arguments, visit);
        }
        Expression::Filter(of, _, arguments) => {
            of.iter().for_each(|of| walk(of, visit));
            walk_arguments(arguments, visit);
        }
        Expression::Compare(first, rest) => {
            walk(first, visit);
            rest.iter().for_each(|(_, operand)| walk(operand, visit));
        }
        Expression::Condition { test, then, otherwise } => {
            walk(test, visit);
            walk(then, visit);
            otherwise.iter().for_each(|otherwise| walk(otherwise, visit));
        }
    }
}

fn walk_arguments(arguments: &Arguments, visit: &mut dyn FnMut(&Expression)) {
    arguments.positional.iter().for_each(|argument| walk(argument, visit));
    arguments.named.iter().for_each(|(_, argument)| walk(argument, visit));
    arguments.rest.iter().chain(&arguments.named_rest).for_each(|argument| walk(argument, visit));
}

/// Refuses an expression with a filter or test that does not exist.
fn known(expression: &Expression, soft: bool) -> Result<(), String> {
    let mut result = Ok(());
    walk(expression, &mut |inner| match inner {
        Expression::Filter(_, name, _) if !soft && !filters::exists(name) => {
            result = Err(format!("there is no filter `{name}`"));
        }
        Expression::Test(_, name, _) if !soft && !tests::exists(name) => result = Err(format!("there is no test `{name}`")),
        _ => {}
    });
    result
}
