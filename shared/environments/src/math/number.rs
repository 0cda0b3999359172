//! Numbers as sympy has them: exact rationals, and binary floats of a stated precision.
//!
//! Every operation has a bound on the size of its result and gives `None` beyond it, or where it is not certain what sympy
//! computes. A float is the exact value that its bits stand for, so that rounding happens in one place.

use std::cmp::Ordering;

use num_bigint::{BigInt, BigUint};
use num_integer::Integer;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// Largest numerator or denominator, in bits: some 1,200 digits.
const MAX_BITS: u64 = 4096;
/// Bits of a float of 15 digits, sympy's usual precision.
const FLOAT_DIGITS: usize = 15;

/// A fraction in lowest terms; the denominator is positive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Rational {
    numerator: BigInt,
    denominator: BigInt,
}

impl Rational {
    /// `numerator / denominator`; none by 0, or where a part is too large.
    pub(super) fn new(numerator: BigInt, denominator: BigInt) -> Option<Self> {
        if denominator.is_zero() || numerator.bits() > 2 * MAX_BITS || denominator.bits() > 2 * MAX_BITS {
            return None;
        }
        let common = numerator.gcd(&denominator);
        let common = if denominator.is_negative() { -common } else { common };
        let reduced = Self { numerator: numerator / &common, denominator: denominator / &common };
        (reduced.bits() <= MAX_BITS).then_some(reduced)
    }

    pub(super) fn integer(value: impl Into<BigInt>) -> Self {
        Self { numerator: value.into(), denominator: BigInt::one() }
    }

    pub(super) fn zero() -> Self {
        Self::integer(0)
    }

    pub(super) fn one() -> Self {
        Self::integer(1)
    }

    pub(super) fn numerator(&self) -> &BigInt {
        &self.numerator
    }

    pub(super) fn denominator(&self) -> &BigInt {
        &self.denominator
    }

    /// Of the larger part.
    pub(super) fn bits(&self) -> u64 {
        self.numerator.bits().max(self.denominator.bits())
    }

    pub(super) fn is_zero(&self) -> bool {
        self.numerator.is_zero()
    }

    pub(super) fn is_negative(&self) -> bool {
        self.numerator.is_negative()
    }

    /// The value, where it is whole.
    pub(super) fn to_integer(&self) -> Option<&BigInt> {
        self.denominator.is_one().then_some(&self.numerator)
    }

    pub(super) fn negative(&self) -> Self {
        Self { numerator: -&self.numerator, denominator: self.denominator.clone() }
    }

    pub(super) fn plus(&self, other: &Self) -> Option<Self> {
        Self::new(
            &self.numerator * &other.denominator + &other.numerator * &self.denominator,
            &self.denominator * &other.denominator,
        )
    }

    pub(super) fn minus(&self, other: &Self) -> Option<Self> {
        self.plus(&other.negative())
    }

    pub(super) fn times(&self, other: &Self) -> Option<Self> {
        Self::new(&self.numerator * &other.numerator, &self.denominator * &other.denominator)
    }

    pub(super) fn over(&self, other: &Self) -> Option<Self> {
        Self::new(&self.numerator * &other.denominator, &self.denominator * &other.numerator)
    }

    /// To a whole power; none for 0 to a negative one.
    pub(super) fn power(&self, exponent: i64) -> Option<Self> {
        let times = u32::try_from(exponent.unsigned_abs()).ok()?;
        let is_unit = self.numerator.magnitude().is_one() && self.denominator.is_one();
        if !is_unit && !self.is_zero() && self.bits().saturating_sub(1).saturating_mul(u64::from(times)) > MAX_BITS {
            return None;
        }
        let power = |base: &BigInt| match base.magnitude().is_one() {
            true if times % 2 == 1 => base.clone(),
            true => BigInt::one(),
            false => base.pow(times),
        };
        let (above, below) = (power(&self.numerator), power(&self.denominator));
        if exponent < 0 { Self::new(below, above) } else { Self::new(above, below) }
    }

    /// The greatest whole number that is not above it.
    pub(super) fn floor(&self) -> BigInt {
        self.numerator.div_floor(&self.denominator)
    }

    /// The least whole number that is not below it.
    pub(super) fn ceiling(&self) -> BigInt {
        -(-&self.numerator).div_floor(&self.denominator)
    }

    pub(super) fn order(&self, other: &Self) -> Ordering {
        (&self.numerator * &other.denominator).cmp(&(&other.numerator * &self.denominator))
    }

    /// The nearest double; none beyond their range.
    pub(super) fn to_f64(&self) -> Option<f64> {
        let rounded = self.rounded(53)?;
        let shift = rounded.denominator.bits().saturating_sub(1);
        let value = rounded.numerator.to_f64()? / 2_f64.powi(i32::try_from(shift).ok()?);
        let usual = value.abs() > 1e-250 && value.abs() < 1e250;
        (self.is_zero() || usual).then_some(value)
    }

    /// Rounded to `bits` binary digits, half to even, as mpmath rounds.
    fn rounded(&self, bits: u32) -> Option<Self> {
        if self.is_zero() {
            return Some(self.clone());
        }
        let length = |value: &BigInt| i64::try_from(value.bits()).ok();
        // The quotient of numbers that were shifted so that it has `bits` or one more digits.
        let shift = i64::from(bits) - (length(&self.numerator)? - length(&self.denominator)?);
        let (above, below) = shifted(&self.numerator.abs(), &self.denominator, shift);
        let surplus = (&above / &below).bits().saturating_sub(u64::from(bits));
        let below = below << surplus;
        let (mut quotient, remainder) = above.div_rem(&below);
        match (remainder * 2_u32).cmp(&below) {
            Ordering::Greater => quotient += 1_u32,
            Ordering::Equal if quotient.is_odd() => quotient += 1_u32,
            _ => {}
        }
        let quotient = if self.is_negative() { -quotient } else { quotient };
        let (above, below) = shifted(&quotient, &BigInt::one(), i64::try_from(surplus).ok()? - shift);
        Self::new(above, below)
    }
}

/// A fraction times two to `shift`.
fn shifted(above: &BigInt, below: &BigInt, shift: i64) -> (BigInt, BigInt) {
    let places = shift.unsigned_abs();
    if shift >= 0 { (above << places, below.clone()) } else { (above.clone(), below << places) }
}

/// A number of sympy's that stands for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Number {
    /// `Integer` and `Rational`.
    Exact(Rational),
    /// `Float`.
    Float {
        /// What its bits stand for.
        value: Rational,
        /// Its precision.
        bits: u32,
    },
}

impl Number {
    pub(super) fn value(&self) -> &Rational {
        match self {
            Self::Exact(value) | Self::Float { value, .. } => value,
        }
    }

    pub(super) fn exact(&self) -> Option<&Rational> {
        match self {
            Self::Exact(value) => Some(value),
            Self::Float { .. } => None,
        }
    }

    pub(super) fn integer(&self) -> Option<&BigInt> {
        self.exact()?.to_integer()
    }

    /// The `Float` that a literal with a point or an exponent makes: at least 15 digits precise, more if it has more.
    pub(super) fn float_literal(text: &str) -> Option<Self> {
        let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let exponent = exponent.parse::<i64>().ok()? - i64::try_from(fraction.len()).ok()?;
        if digits.len() > 200 || exponent.abs() > 600 {
            return None;
        }
        let mut significant = digits.trim_start_matches('0').len().max(FLOAT_DIGITS);
        let digits: BigInt = digits.parse().ok()?;
        let value = Rational::integer(digits).times(&Rational::integer(10).power(exponent)?)?;
        // A literal like 12e3, without a point, is as precise as the whole number that it stands for is long.
        if let Some(whole) = value.to_integer().filter(|_| !text.contains('.')) {
            significant = significant.max(whole.to_string().len());
        }
        let bits = ((significant as f64 + 1.0) * std::f64::consts::LOG2_10).round() as u32;
        Self::float(&value, bits)
    }

    fn float(value: &Rational, bits: u32) -> Option<Self> {
        Some(Self::Float { value: value.rounded(bits)?, bits })
    }

    /// The result of an operation on floats; sympy makes an exact 0 of a float 0.
    fn settled(value: &Rational, bits: u32) -> Option<Self> {
        if value.is_zero() { Some(Self::Exact(Rational::zero())) } else { Self::float(value, bits) }
    }

    /// Both at the higher precision, if one is a float.
    fn common<'a>(&'a self, other: &'a Self) -> Option<(Rational, Rational, Option<u32>)> {
        let bits =
            [self, other].into_iter().filter_map(|number| if let Self::Float { bits, .. } = number { Some(*bits) } else { None });
        let bits = bits.max();
        let at = |number: &Self| match (number, bits) {
            (Self::Exact(value), Some(bits)) => value.rounded(bits),
            (number, _) => Some(number.value().clone()),
        };
        Some((at(self)?, at(other)?, bits))
    }

    fn combined(&self, other: &Self, combine: impl Fn(&Rational, &Rational) -> Option<Rational>) -> Option<Self> {
        let (left, right, bits) = self.common(other)?;
        let value = combine(&left, &right)?;
        bits.map_or_else(|| Some(Self::Exact(value.clone())), |bits| Self::settled(&value, bits))
    }

    pub(super) fn plus(&self, other: &Self) -> Option<Self> {
        self.combined(other, Rational::plus)
    }

    pub(super) fn minus(&self, other: &Self) -> Option<Self> {
        self.combined(other, Rational::minus)
    }

    pub(super) fn times(&self, other: &Self) -> Option<Self> {
        self.combined(other, Rational::times)
    }

    pub(super) fn over(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            // An exact number over a float is the float's reciprocal, rounded, times the number.
            (Self::Exact(_), Self::Float { value, bits }) => {
                let reciprocal = Self::float(&Rational::one().over(value)?, *bits)?;
                self.times(&reciprocal)
            }
            _ => self.combined(other, Rational::over),
        }
    }

    pub(super) fn negative(&self) -> Self {
        match self {
            Self::Exact(value) => Self::Exact(value.negative()),
            Self::Float { value, bits } => Self::Float { value: value.negative(), bits: *bits },
        }
    }

    pub(super) fn abs(&self) -> Self {
        if self.value().is_negative() { self.negative() } else { self.clone() }
    }

    /// To a number's power, where the outcome is a number and certain.
    pub(super) fn power(&self, exponent: &Self) -> Option<Self> {
        match (self, exponent) {
            (Self::Exact(base), Self::Exact(exponent)) => {
                let whole = exponent.to_integer()?.to_i64()?;
                Some(Self::Exact(base.power(whole)?))
            }
            (Self::Float { value, bits }, Self::Exact(exponent)) => {
                if is_half(exponent) && !value.is_negative() && !value.is_zero() {
                    return Self::float_root(value, *bits);
                }
                let times = exponent.to_integer()?.to_i64()?;
                // Above, mpmath multiplies with intermediate rounding.
                let exact = (0..=2).contains(&times) || (times > 2 && value.numerator.bits() * times.unsigned_abs() < 1000);
                match times {
                    0 => Some(Self::Exact(Rational::one())),
                    -1 => Self::float(&Rational::one().over(value)?, *bits),
                    _ if exact && !value.is_zero() => Self::float(&value.power(times)?, *bits),
                    _ => None,
                }
            }
            // A square root is correctly rounded, other powers are not.
            (Self::Exact(base), Self::Float { value, bits }) if is_half(value) && !base.is_negative() && !base.is_zero() => {
                Self::float_root(&base.rounded(*bits)?, *bits)
            }
            _ => None,
        }
    }

    fn float_root(value: &Rational, bits: u32) -> Option<Self> {
        // With twice the digits and an even power of two, and one digit more that says whether a remainder is left.
        let places = u64::from(bits) + 4 + value.denominator.bits();
        let scaled: BigInt = (&value.numerator << (2 * places)) / &value.denominator;
        let root = scaled.sqrt();
        let exact = &root * &root * &value.denominator == &value.numerator << (2 * places);
        let sticky: BigInt = root * 2_u32 + if exact { 0_u32 } else { 1 };
        Self::float(&Rational::new(sticky, BigInt::one() << (places + 1))?, bits)
    }
}

fn is_half(value: &Rational) -> bool {
    value.numerator.is_one() && value.denominator == BigInt::from(2)
}

/// The whole root of a natural number, if it has one.
pub(super) fn whole_root(value: &BigUint, degree: u32) -> Option<BigUint> {
    let root = value.nth_root(degree);
    (root.pow(degree) == *value).then_some(root)
}

/// The primes of a natural number below 2^30 with their exponents, ascending; none for 0.
pub(super) fn factors(value: &BigUint) -> Option<Vec<(u32, u32)>> {
    let mut rest = value.to_u32().filter(|value| (1..1 << 30).contains(value))?;
    let mut found = Vec::new();
    let mut prime = 2;
    while prime * prime <= rest {
        let mut times = 0;
        while rest % prime == 0 {
            rest /= prime;
            times += 1;
        }
        if times > 0 {
            found.push((prime, times));
        }
        prime += 1;
    }
    if rest > 1 {
        found.push((rest, 1));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(text: &str) -> Number {
        Number::float_literal(text).unwrap()
    }

    #[test]
    fn floats_round_as_doubles_do() {
        let doubles = [0.1, 0.2, 0.3, 1.0 / 3.0, 2.5e-7, 123456.789, 9.5e15, 7.0];
        for left in doubles {
            for right in doubles {
                let number = |value: f64| {
                    let bits = value.to_bits();
                    let exponent = i64::try_from(bits >> 52 & 0x7ff).unwrap() - 1075;
                    let value = Rational::integer(bits & ((1 << 52) - 1) | 1 << 52);
                    Number::Float { value: value.times(&Rational::integer(2).power(exponent).unwrap()).unwrap(), bits: 53 }
                };
                let (a, b) = (number(left), number(right));
                for (got, want) in [
                    (a.plus(&b), left + right),
                    (a.minus(&b), left - right),
                    (a.times(&b), left * right),
                    (a.over(&b), left / right),
                    (a.power(&Number::Exact(Rational::integer(2))), left * left),
                ] {
                    assert_eq!(got.unwrap().value().to_f64().unwrap(), want, "{left} {right}");
                }
            }
        }
        assert_eq!(float("0.1").value().to_f64(), Some(0.1));
        let root = Number::Exact(Rational::integer(2)).power(&float("0.5")).unwrap();
        assert_eq!(root.value().to_f64(), Some(2_f64.sqrt()));
    }

    #[test]
    fn results_have_a_bound() {
        let nine = Rational::integer(9);
        assert_eq!(nine.power(387_420_489), None);
        assert_eq!(Rational::integer(-1).power(387_420_489), Some(Rational::integer(-1)));
        assert_eq!(Rational::zero().power(1 << 30), Some(Rational::zero()));
        assert_eq!(Rational::zero().power(-1), None);
        let large = nine.power(1000).unwrap();
        assert_eq!(large.times(&large), None);
    }

    #[test]
    fn factors_are_prime() {
        assert_eq!(factors(&BigUint::from(360_u32)), Some(vec![(2, 3), (3, 2), (5, 1)]));
        assert_eq!(factors(&BigUint::from(1_000_003_u32)), Some(vec![(1_000_003, 1)]));
        assert_eq!((factors(&BigUint::from(1_u32)), factors(&BigUint::zero())), (Some(vec![]), None));
    }
}
