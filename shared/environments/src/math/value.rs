//! What a Python expression over sympy's names evaluates to, node by node.

use num_bigint::BigInt;
use num_traits::ToPrimitive;

use super::Stop;
use super::ball::Ball;
use super::expression::{Exact, Expression, POINTS, power, undefined};
use super::functions;
use super::names::{self, Function, Name};
use super::number::{Number, Rational};
use super::polynomial::{Budget, Fraction};
use super::syntax::{Node, Place, Tree};

/// Longest whole number that is read.
const MAX_DIGITS: usize = 1000;

/// What a node of the expression evaluates to.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A number or function.
    Expression(Expression),
    /// What no difference with anything is 0 of, whatever is computed with it: a tuple, a set, a text, a statement.
    Object,
    /// A function or class itself: computing with it is an error.
    Callable,
    /// An infinity or nan.
    Infinite,
}

/// The value of the whole expression.
pub(super) fn evaluate(tree: &Tree<'_>, budget: &Budget) -> Result<Value, Stop> {
    let mut values: Vec<Result<Value, Stop>> = Vec::with_capacity(tree.nodes.len());
    for node in &tree.nodes {
        let value = if budget.spend(16).is_some() { evaluate_node(node, &values, budget) } else { Err(Stop::NotCovered) };
        // Python evaluates everything, so that one error is the error of the whole.
        if matches!(value, Err(Stop::Fails)) {
            return value;
        }
        values.push(value);
    }
    values.pop().unwrap_or(Err(Stop::Fails))
}

fn evaluate_node(node: &Node<'_>, values: &[Result<Value, Stop>], budget: &Budget) -> Result<Value, Stop> {
    let of = |place: &Place| values.get(*place).cloned().unwrap_or(Err(Stop::NotCovered));
    let all = |places: &[Place]| places.iter().map(of).collect::<Result<Vec<_>, _>>();
    match node {
        Node::Number(text) => literal(text),
        Node::Name(name) => named(name),
        Node::Object(elements) => {
            all(elements)?;
            Ok(Value::Object)
        }
        Node::Unary(operator, operand) => unary(operator, of(operand)?),
        Node::Binary(operator, left, right) => binary(operator, of(left)?, of(right)?, budget),
        Node::Order(compared) => order(&all(compared)?),
        Node::Call(name, arguments) => call(name, all(arguments)?, budget),
        Node::CallOf(called, arguments) => {
            all(arguments)?;
            if matches!(of(called)?, Value::Callable) { Err(Stop::NotCovered) } else { Err(Stop::Fails) }
        }
        Node::Subscript(base, inside) => {
            all(inside)?;
            if matches!(of(base)?, Value::Expression(_)) { Err(Stop::Fails) } else { Err(Stop::NotCovered) }
        }
        Node::Factorial(operand, double) => {
            let function = if *double { Function::DoubleFactorial } else { Function::Factorial };
            match of(operand)? {
                Value::Expression(operand) => functions::call(function, &[operand], budget).map(Value::Expression),
                _ => Err(Stop::NotCovered),
            }
        }
    }
}

fn literal(text: &str) -> Result<Value, Stop> {
    let digits = text.replace('_', "");
    let (digits, imaginary) = match digits.strip_suffix('j') {
        Some(digits) => (digits, true),
        None => (digits.as_str(), false),
    };
    let radix = match digits.as_bytes() {
        [b'0', b'x', ..] => Some(16),
        [b'0', b'b', ..] => Some(2),
        [b'0', b'o', ..] => Some(8),
        _ => None,
    };
    let number = match radix {
        _ if digits.len() > MAX_DIGITS || imaginary => None,
        Some(radix) => BigInt::parse_bytes(&digits.as_bytes()[2..], radix).map(|value| Number::Exact(Rational::integer(value))),
        None if digits.contains(['.', 'e']) && text.contains('_') => None,
        None if digits.contains(['.', 'e']) => Number::float_literal(digits),
        None => digits.parse::<BigInt>().ok().map(|value| Number::Exact(Rational::integer(value))),
    };
    Ok(Value::Expression(number.map_or_else(Expression::unknown, Expression::number)))
}

fn named(name: &str) -> Result<Value, Stop> {
    match names::look_up(name) {
        Name::Free => Ok(Value::Expression(Expression::symbol(name))),
        Name::Pi => {
            Ok(Value::Expression(Expression::opaque(Some("pi".to_owned()), [Ball::real(std::f64::consts::PI, 1e-15); POINTS])))
        }
        Name::Function(_) | Name::Callable => Ok(Value::Callable),
        Name::Truth => Ok(Value::Object),
        Name::Infinite => Ok(Value::Infinite),
        Name::Uncovered => Err(Stop::NotCovered),
    }
}

fn unary(operator: &str, operand: Value) -> Result<Value, Stop> {
    match (operator, operand) {
        ("+", Value::Expression(operand)) => Ok(Value::Expression(operand)),
        ("-", Value::Expression(operand)) => Ok(Value::Expression(operand.negative())),
        ("~", Value::Expression(operand)) => match operand.as_integer() {
            Some(value) => Ok(Value::Expression(Expression::integer(-value - 1))),
            // Of a variable it is a statement, of anything else an error: what it is not is a number.
            None if operand.fraction().is_some_and(|form| !form.may_be_number()) || operand.as_number().is_some() => {
                Ok(Value::Object)
            }
            None => Err(Stop::NotCovered),
        },
        ("+" | "-", Value::Infinite) => Ok(Value::Infinite),
        (_, Value::Infinite) => Err(Stop::NotCovered),
        (_, Value::Callable) => Err(Stop::Fails),
        _ => Ok(Value::Object),
    }
}

/// Whether all could be compared; what comes of it is a statement, or an error.
fn order(compared: &[Value]) -> Result<Value, Stop> {
    // Tuples, sets and texts compare to a truth of Python's, with which can be computed.
    if compared.iter().any(|value| !matches!(value, Value::Expression(_))) { Err(Stop::NotCovered) } else { Ok(Value::Object) }
}

fn binary(operator: &str, left: Value, right: Value, budget: &Budget) -> Result<Value, Stop> {
    let (left, right) = match (left, right) {
        (Value::Expression(left), Value::Expression(right)) => (left, right),
        // Repeated, joined, united: it stays what it is, or is an error.
        (Value::Object, _) | (_, Value::Object) => return Ok(Value::Object),
        (Value::Infinite, _) | (_, Value::Infinite) => return Err(Stop::NotCovered),
        (Value::Callable, _) | (_, Value::Callable) => {
            return if operator == "|" { Err(Stop::NotCovered) } else { Err(Stop::Fails) };
        }
    };
    let exact = |number: &dyn Fn(&Number, &Number) -> Option<Number>,
                 fraction: &dyn Fn(&Fraction, &Fraction) -> Option<Fraction>| {
        if let (Some(left), Some(right)) = (left.as_number(), right.as_number()) {
            return number(left, right).map(Exact::Number);
        }
        fraction(&left.fraction()?, &right.fraction()?).map(Exact::Fraction)
    };
    let expression = match operator {
        "+" => Expression::new(exact(&Number::plus, &|a, b| a.plus(b, budget)), left.with(&right, Ball::plus)),
        "-" => Expression::new(
            exact(&Number::minus, &|a, b| a.plus(&b.negative(), budget)),
            left.with(&right, |a, b| a.plus(b.negative())),
        ),
        "*" => Expression::new(exact(&Number::times, &|a, b| a.times(b, budget)), left.with(&right, Ball::times)),
        "/" => Expression::new(exact(&Number::over, &|a, b| a.over(b, budget)), left.with(&right, Ball::over)),
        "**" => power(&left, &right, budget),
        "//" | "%" => rest(operator, &left, &right),
        "@" => return Err(Stop::Fails),
        _ => return bits(operator, &left, &right),
    };
    Ok(Value::Expression(expression))
}

/// What is left of a whole division of numbers, and the division.
fn rest(operator: &str, left: &Expression, right: &Expression) -> Expression {
    let number = |expression: &Expression| expression.as_number()?.exact().cloned();
    let divided = || {
        let (left, right) = (number(left)?, number(right)?);
        let whole = Rational::integer(left.over(&right)?.floor());
        let value = if operator == "//" { whole } else { left.minus(&whole.times(&right)?)? };
        Some(Expression::number(Number::Exact(value)))
    };
    divided().unwrap_or_else(Expression::unknown)
}

/// Operators of bits: whole numbers only. Of two variables they make a statement, of anything else an error.
fn bits(operator: &str, left: &Expression, right: &Expression) -> Result<Value, Stop> {
    let certain = |operand: &Expression| {
        operand.as_number().is_some() || operand.fraction().is_some_and(|form| !form.may_be_number() && form.is_decisive())
    };
    let (Some(left_value), Some(right_value)) = (left.as_integer(), right.as_integer()) else {
        let symbol = |operand: &Expression| operand.fraction().is_some_and(|form| form.is_symbol());
        return match (certain(left) && certain(right), symbol(left) && symbol(right)) {
            (false, _) => Err(Stop::NotCovered),
            (_, true) => Ok(Value::Object),
            (_, false) => Err(Stop::Fails),
        };
    };
    let value = match operator {
        "^" => left_value ^ right_value,
        "&" => left_value & right_value,
        "|" => left_value | right_value,
        _ => match right_value.to_u32() {
            Some(places @ 0..=1000) if operator == "<<" && left_value.bits() < 3000 => left_value << places,
            Some(places @ 0..=1000) if operator == ">>" => left_value >> places,
            _ => return Err(Stop::NotCovered),
        },
    };
    Ok(Value::Expression(Expression::integer(value)))
}

fn call(name: &str, arguments: Vec<Value>, budget: &Budget) -> Result<Value, Stop> {
    let expressions = || {
        let each = arguments.iter().map(|argument| match argument {
            Value::Expression(expression) => Ok(expression.clone()),
            _ => Err(Stop::NotCovered),
        });
        each.collect::<Result<Vec<_>, _>>()
    };
    match names::look_up(name) {
        Name::Free => Ok(Value::Expression(undefined(name, &expressions()?))),
        Name::Function(function) => functions::call(function, &expressions()?, budget).map(Value::Expression),
        Name::Callable | Name::Uncovered => Err(Stop::NotCovered),
        // Numbers and truths cannot be called.
        Name::Pi | Name::Infinite | Name::Truth => Err(Stop::Fails),
    }
}
