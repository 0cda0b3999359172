//! What an expression is to sympy: a form that says for certain whether it is 0, and where it lies at a few points.

use std::sync::Arc;

use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive, Zero};

use super::ball::Ball;
use super::number::{Number, Rational, whole_root};
use super::polynomial::{Budget, Fraction, Generator, Polynomial, square_root};

/// Points at which variables are given values.
pub(super) const POINTS: usize = 4;
#[derive(Debug, Clone)]
pub(super) struct Expression {
    exact: Option<Exact>,
    points: [Option<Ball>; POINTS],
}

/// A form in which equal things are equal.
#[derive(Debug, Clone)]
pub(super) enum Exact {
    /// What sympy too has computed to a number at once.
    Number(Number),
    /// Anything else, which sympy may not have multiplied out.
    Fraction(Fraction),
}

impl Exact {
    fn fraction(&self) -> Option<Fraction> {
        match self {
            Self::Number(number) => Fraction::of_number(number),
            Self::Fraction(fraction) => Some(fraction.clone()),
        }
    }
}

impl Expression {
    /// One of which nothing is known.
    pub(super) fn unknown() -> Self {
        Self { exact: None, points: [None; POINTS] }
    }

    pub(super) fn number(number: Number) -> Self {
        Self { points: [Ball::of(number.value()); POINTS], exact: Some(Exact::Number(number)) }
    }

    pub(super) fn integer(value: impl Into<BigInt>) -> Self {
        Self::number(Number::Exact(Rational::integer(value)))
    }

    pub(super) fn new(exact: Option<Exact>, points: [Option<Ball>; POINTS]) -> Self {
        match exact {
            // A number is known better than what was computed on the way to it.
            Some(Exact::Number(number)) => Self::number(number),
            exact => Self { exact, points },
        }
    }

    /// A thing of which only its name and its value at the points are known.
    pub(super) fn opaque(name: Option<String>, points: [Option<Ball>; POINTS]) -> Self {
        let generator = |name: String| Exact::Fraction(Fraction::of(Polynomial::generator(Generator::Opaque(name.into()))));
        Self { exact: name.map(generator), points }
    }

    pub(super) fn symbol(name: &str) -> Self {
        let points = std::array::from_fn(|point| somewhere(name, point));
        Self { exact: Some(Exact::Fraction(Fraction::of(Polynomial::generator(Generator::Symbol(Arc::from(name)))))), points }
    }

    pub(super) fn as_number(&self) -> Option<&Number> {
        match &self.exact {
            Some(Exact::Number(number)) => Some(number),
            _ => None,
        }
    }

    pub(super) fn as_integer(&self) -> Option<&BigInt> {
        self.as_number()?.integer()
    }

    pub(super) fn fraction(&self) -> Option<Fraction> {
        self.exact.as_ref()?.fraction()
    }

    pub(super) fn points(&self) -> &[Option<Ball>; POINTS] {
        &self.points
    }

    pub(super) fn at_points(&self, map: impl Fn(Ball) -> Option<Ball>) -> [Option<Ball>; POINTS] {
        self.points.map(|ball| map(ball?))
    }

    pub(super) fn with(&self, other: &Self, map: impl Fn(Ball, Ball) -> Option<Ball>) -> [Option<Ball>; POINTS] {
        std::array::from_fn(|point| map(self.points[point]?, other.points[point]?))
    }

    pub(super) fn negative(&self) -> Self {
        let exact = self.exact.as_ref().map(|exact| match exact {
            Exact::Number(number) => Exact::Number(number.negative()),
            Exact::Fraction(fraction) => Exact::Fraction(fraction.negative()),
        });
        Self::new(exact, self.at_points(|ball| Some(ball.negative())))
    }

    /// Whether the difference is 0, if that is certain.
    pub(super) fn equals(&self, other: &Self, budget: &Budget) -> Option<bool> {
        self.exactly_equals(other, budget).or_else(|| {
            let apart = self.points.iter().zip(&other.points).any(|(left, right)| match (left, right) {
                (Some(left), Some(right)) => left.is_apart_from(right),
                _ => false,
            });
            apart.then_some(false)
        })
    }

    fn exactly_equals(&self, other: &Self, budget: &Budget) -> Option<bool> {
        let (left, right) = (self.exact.as_ref()?, other.exact.as_ref()?);
        match (left, right) {
            (Exact::Number(left), Exact::Number(right)) => return Some(left.minus(right)?.value().is_zero()),
            (Exact::Number(float @ Number::Float { .. }), Exact::Fraction(form))
            | (Exact::Fraction(form), Exact::Number(float @ Number::Float { .. }))
                if !form.has_float() && !form.may_be_number() && form.is_decisive() =>
            {
                // Beside a float sympy leaves roots and variables as they are, however near their value is.
                let _ = float;
                return Some(false);
            }
            _ => {}
        }
        let difference = left.fraction()?.plus(&right.fraction()?.negative(), budget)?;
        if difference.is_zero() {
            return Some(true);
        }
        difference.is_decisive().then_some(false)
    }
}

/// A complex number that goes with a variable at one of the points: any, but the same for the same name.
fn somewhere(name: &str, point: usize) -> Option<Ball> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes().chain([0xff, point as u8]) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        hash ^= hash >> 29;
    }
    let part = |bits: u64| 0.4 + (bits & 0xffff) as f64 / 65536.0;
    let sign = |bit: u64| if bit & 1 == 0 { 1.0 } else { -1.0 };
    // The first two points lie on either side for every variable, so that the branches of roots are told apart.
    let side = if point < 2 { point as u64 } else { hash >> 40 };
    Ball::complex(sign(side) * part(hash), sign(hash >> 41) * part(hash >> 16))
}

pub(super) fn power(base: &Expression, exponent: &Expression, budget: &Budget) -> Expression {
    let whole = exponent.as_integer().and_then(BigInt::to_i64);
    let points = match whole {
        Some(whole) => base.at_points(|ball| ball.whole_power(whole)),
        None => base.with(exponent, Ball::power),
    };
    let exact = || {
        let times = exponent.as_number()?;
        if let Some(number) = base.as_number() {
            if let Some(power) = number.power(times) {
                return Some(Exact::Number(power));
            }
            return root_of_number(number.exact()?, times.exact()?, budget);
        }
        if let Some(whole) = whole {
            return base.fraction()?.power(whole, budget).map(Exact::Fraction);
        }
        let half = Rational::one().over(&Rational::integer(2))?;
        let name = base.fraction()?.linear_name().filter(|_| times.exact() == Some(&half))?;
        Expression::opaque(Some(format!("sqrt {name}")), [None; POINTS]).exact
    };
    Expression::new(exact(), points)
}

/// A number to a broken power, where that is a number or a square root.
fn root_of_number(base: &Rational, exponent: &Rational, budget: &Budget) -> Option<Exact> {
    let degree = exponent.denominator().to_u32().filter(|degree| (2..=60).contains(degree))?;
    let power = exponent.numerator().to_i64()?;
    if base.is_zero() {
        return (power > 0).then(|| Exact::Number(Number::Exact(Rational::zero())));
    }
    if !base.is_negative() {
        let part = |value: &BigInt| whole_root(value.magnitude(), degree).map(BigInt::from);
        if let (Some(above), Some(below)) = (part(base.numerator()), part(base.denominator())) {
            return Rational::new(above, below)?.power(power).map(|value| Exact::Number(Number::Exact(value)));
        }
    }
    (degree == 2).then(|| square_root(base, budget)?.power(power, budget).map(Exact::Fraction))?
}

/// A function of which nothing is known but its name: any will do at the points, here a square with mixed factors.
pub(super) fn undefined(name: &str, arguments: &[Expression]) -> Expression {
    let names: Option<Vec<String>> = arguments.iter().map(|argument| argument.fraction()?.linear_name()).collect();
    let points = std::array::from_fn(|point| {
        let mut value = somewhere(&format!("{name} of {}", arguments.len()), 0)?;
        for (index, argument) in arguments.iter().enumerate() {
            let (once, twice) = (somewhere(&format!("{name} {index}"), 0)?, somewhere(&format!("{name} {index} {index}"), 0)?);
            let argument = argument.points[point]?;
            value = value.plus(once.plus(twice.times(argument)?)?.times(argument)?)?;
        }
        Some(value)
    });
    Expression::opaque(names.map(|names| format!("{name}({})", names.join(", "))), points)
}

/// Whether a whole number lies in a range that is computed with.
pub(super) fn small(value: &BigInt, largest: u32) -> Option<u32> {
    if value.is_negative() { None } else { value.to_u32().filter(|value| *value <= largest) }
}

pub(super) fn is_zero(expression: &Expression) -> bool {
    expression.as_integer().is_some_and(Zero::is_zero)
}
