//! The functions of sympy's that are covered: at numbers their value, elsewhere a name and what they are at the points.

use num_bigint::BigInt;
use num_integer::Integer;
use num_traits::{One, ToPrimitive, Zero};

use super::Stop;
use super::ball::Ball;
use super::expression::{Exact, Expression, POINTS, is_zero, power, small};
use super::names::Function;
use super::number::{Number, Rational, factors};
use super::polynomial::{Budget, Fraction, Polynomial};

/// Largest number whose factorial is computed.
const MAX_FACTORIAL: u32 = 500;
/// Largest power of e that is one.
const MAX_POWER_OF_E: i64 = 20;

pub(super) fn call(function: Function, arguments: &[Expression], budget: &Budget) -> Result<Expression, Stop> {
    let found = match (function, arguments) {
        (Function::Maximum | Function::Minimum, arguments) if !arguments.is_empty() => extreme(function, arguments),
        (Function::Gcd | Function::Lcm, [left, right]) => common(function, left, right),
        (Function::Binomial, [above, below]) => binomial(above, below),
        (Function::Log, [argument, base]) => {
            logarithm(argument, budget).zip(logarithm(base, budget)).and_then(|(above, below)| {
                let exact = above.fraction()?.over(&below.fraction()?, budget).map(Exact::Fraction);
                Some(Expression::new(exact, quotient(&above, &below)))
            })
        }
        (_, [argument]) => of_one(function, argument, budget),
        // Another number of arguments may mean something too.
        _ => None,
    };
    found.ok_or(Stop::NotCovered)
}

fn quotient(above: &Expression, below: &Expression) -> [Option<Ball>; POINTS] {
    std::array::from_fn(|point| above.points()[point]?.over(below.points()[point]?))
}

fn of_one(function: Function, argument: &Expression, budget: &Budget) -> Option<Expression> {
    let number = argument.as_number();
    match function {
        Function::SquareRoot => Some(power(argument, &fraction_of_one(2)?, budget)),
        Function::CubeRoot => Some(power(argument, &fraction_of_one(3)?, budget)),
        Function::Abs => match number {
            Some(number) => Some(Expression::number(number.abs())),
            None => Some(opaque("abs", argument, Ball::abs)),
        },
        Function::Floor => Some(Expression::integer(number?.value().floor())),
        Function::Ceiling => Some(Expression::integer(number?.value().ceiling())),
        Function::Factorial => product(argument, 1),
        Function::DoubleFactorial => product(argument, 2),
        Function::Exp => exponential(argument, budget),
        Function::Log => logarithm(argument, budget),
        Function::Sine => Some(if is_zero(argument) { Expression::integer(0) } else { opaque("sin", argument, Ball::sine) }),
        Function::Cosine => Some(if is_zero(argument) { Expression::integer(1) } else { opaque("cos", argument, Ball::cosine) }),
        Function::Tangent if is_zero(argument) => Some(Expression::integer(0)),
        Function::Tangent => Some(opaque("tan", argument, |ball| ball.sine()?.over(ball.cosine()?))),
        _ => None,
    }
}

fn fraction_of_one(denominator: u32) -> Option<Expression> {
    Some(Expression::number(Number::Exact(Rational::new(BigInt::one(), denominator.into())?)))
}

fn opaque(name: &str, argument: &Expression, map: impl Fn(Ball) -> Option<Ball>) -> Expression {
    let form = argument.fraction().and_then(|form| form.linear_name());
    Expression::opaque(form.map(|form| format!("{name} {form}")), argument.at_points(map))
}

fn extreme(function: Function, arguments: &[Expression]) -> Option<Expression> {
    let numbers = arguments.iter().map(|argument| argument.as_number()?.exact().cloned()).collect::<Option<Vec<_>>>()?;
    let found = match function {
        Function::Maximum => numbers.into_iter().max_by(Rational::order),
        _ => numbers.into_iter().min_by(Rational::order),
    };
    Some(Expression::number(Number::Exact(found?)))
}

fn common(function: Function, left: &Expression, right: &Expression) -> Option<Expression> {
    let (left, right) = (left.as_integer()?, right.as_integer()?);
    let value = if function == Function::Gcd { left.gcd(right) } else { left.lcm(right) };
    Some(Expression::number(Number::Exact(Rational::new(value, BigInt::one())?)))
}

fn binomial(above: &Expression, below: &Expression) -> Option<Expression> {
    let above = small(above.as_integer()?, MAX_FACTORIAL)?;
    let below = below.as_integer()?.to_i64()?;
    let Ok(below) = u32::try_from(below) else { return Some(Expression::integer(0)) };
    if below > above {
        return Some(Expression::integer(0));
    }
    let value = (0..below).fold(BigInt::one(), |value, step| value * (above - step) / (step + 1));
    Some(Expression::integer(value))
}

/// The product of a number and those below it in steps.
fn product(argument: &Expression, step: usize) -> Option<Expression> {
    let largest = small(argument.as_integer()?, MAX_FACTORIAL)?;
    let value = (1..=largest).rev().step_by(step).fold(BigInt::one(), |value, factor| value * factor);
    Some(Expression::number(Number::Exact(Rational::new(value, BigInt::one())?)))
}

fn exponential(argument: &Expression, budget: &Budget) -> Option<Expression> {
    let points = argument.at_points(Ball::exp);
    let Some(whole) = argument.as_integer() else { return Some(opaque("exp", argument, Ball::exp)) };
    if whole.is_zero() {
        return Some(Expression::integer(1));
    }
    let whole = whole.to_i64().filter(|whole| whole.abs() <= MAX_POWER_OF_E);
    let e = Expression::opaque(Some("e".to_owned()), [None; POINTS]).fraction();
    Some(Expression::new(whole.and_then(|whole| e?.power(whole, budget)).map(Exact::Fraction), points))
}

/// Of a positive fraction: the logarithms of its primes. Their sums are what sympy makes of it too.
fn logarithm(argument: &Expression, budget: &Budget) -> Option<Expression> {
    let points = argument.at_points(Ball::log);
    let exact = || {
        let value = argument.as_number()?.exact().filter(|value| !value.is_negative() && !value.is_zero())?;
        let mut sum = Fraction::of(Polynomial::constant(Rational::zero()));
        for (part, sign) in [(value.numerator(), 1), (value.denominator(), -1)] {
            budget.spend(1 << 12)?;
            for (prime, times) in factors(part.magnitude())? {
                let log = Expression::opaque(Some(format!("log {prime}")), [None; POINTS]).fraction()?;
                let times = Fraction::of(Polynomial::constant(Rational::integer(i64::from(times) * sign)));
                sum = sum.plus(&log.times(&times, budget)?, budget)?;
            }
        }
        Some(sum)
    };
    match (argument.as_number(), exact()) {
        (Some(Number::Exact(value)), _) if *value == Rational::one() => Some(Expression::integer(0)),
        (Some(_), sum) => Some(Expression::new(sum.map(Exact::Fraction), points)),
        (None, _) => Some(opaque("log", argument, Ball::log)),
    }
}
