//! A parsed template.

use std::sync::Arc;

use super::scope::Frame;

/// A constant of the template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Constant {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
}

#[derive(Debug)]
pub(super) enum Expression {
    Constant(Constant),
    Name(String),
    Tuple(Vec<Expression>),
    List(Vec<Expression>),
    Dict(Vec<(Expression, Expression)>),
    Attribute(Box<Expression>, String),
    Item(Box<Expression>, Box<Expression>),
    Slice(Box<Expression>, Box<[Option<Expression>; 3]>),
    Call(Box<Expression>, Arguments),
    /// A filter without an operand takes the text of its block.
    Filter(Option<Box<Expression>>, String, Arguments),
    Test(Box<Expression>, String, Arguments),
    Unary(Unary, Box<Expression>),
    Binary(Binary, Box<Expression>, Box<Expression>),
    Compare(Box<Expression>, Vec<(Comparison, Expression)>),
    Concat(Vec<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Condition {
        test: Box<Expression>,
        then: Box<Expression>,
        otherwise: Option<Box<Expression>>,
    },
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub positional: Vec<Expression>,
    pub named: Vec<(String, Expression)>,
    pub rest: Option<Box<Expression>>,
    pub named_rest: Option<Box<Expression>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unary {
    Not,
    Negative,
    Positive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

/// Where a value is assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(String),
    Attribute(String, String),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) enum Statement {
    Text(String),
    Print(Expression),
    Set(Target, Expression),
    SetBlock {
        target: Target,
        filter: Option<Expression>,
        body: Body,
    },
    If(Vec<(Option<Expression>, Vec<Statement>)>),
    For(Arc<For>),
    Macro(Arc<Macro>),
    /// The call, and the block that it gets as `caller`.
    CallBlock(Expression, Arc<Macro>),
    /// transformers' `generation`: its block, rendered like a caller's.
    Generation(Arc<Macro>),
    FilterBlock(Expression, Body),
    With(Vec<(Target, Expression)>, Body),
    /// Another template, of which there is none.
    Include(Expression),
    Break,
    Continue,
}

/// Statements with a scope of their own.
#[derive(Debug)]
pub(super) struct Body {
    pub statements: Vec<Statement>,
    pub frame: Arc<Frame>,
}

#[derive(Debug)]
pub(super) struct For {
    pub target: Target,
    pub iterable: Expression,
    pub test: Option<(Expression, Arc<Frame>)>,
    pub recursive: bool,
    /// Whether the body has a `loop` variable.
    pub extended: bool,
    pub body: Body,
    pub otherwise: Option<Body>,
}

#[derive(Debug)]
pub(super) struct Macro {
    pub name: Option<String>,
    pub parameters: Vec<String>,
    /// Of the last parameters.
    pub defaults: Vec<Expression>,
    pub body: Body,
    pub takes_caller: bool,
    pub takes_named: bool,
    pub takes_rest: bool,
}
