//! Polynomials with rational coefficients over the things that arithmetic cannot take apart, and fractions of them.
//!
//! Square roots of primes and the imaginary unit are reduced as they are multiplied. So two fractions are the same number,
//! or the same function, exactly where their cross products are the same polynomial.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use num_traits::One;

use super::number::{Number, Rational};

/// Most terms of a polynomial.
const MAX_TERMS: usize = 400;
/// Largest power of a sum that is multiplied out.
const MAX_POWER: i64 = 24;
/// Largest numerator and denominator, in bits, of a coefficient beside a float.
const MAX_DYADIC_BITS: u64 = 24;

/// What a term is a product of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Generator {
    /// The imaginary unit.
    Imaginary,
    /// The square root of a prime.
    Root(u32),
    /// A variable.
    Symbol(Arc<str>),
    /// A number or function of which no algebraic relation is known here: `pi`, `log(2)`, `f(x)`.
    Opaque(Arc<str>),
}

type Monomial = Vec<(Generator, u32)>;

/// A sum of terms, without terms that are 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Polynomial(BTreeMap<Monomial, Rational>);

/// How much one comparison may still compute.
#[derive(Debug)]
pub(super) struct Budget(Cell<u64>);

impl Budget {
    pub(super) fn new(work: u64) -> Self {
        Self(Cell::new(work))
    }

    pub(super) fn spend(&self, work: u64) -> Option<()> {
        let left = self.0.get().checked_sub(work);
        self.0.set(left.unwrap_or(0));
        left.map(drop)
    }
}

impl Polynomial {
    pub(super) fn constant(value: Rational) -> Self {
        let mut terms = BTreeMap::new();
        if !value.is_zero() {
            terms.insert(Vec::new(), value);
        }
        Self(terms)
    }

    pub(super) fn generator(generator: Generator) -> Self {
        Self(BTreeMap::from([(vec![(generator, 1)], Rational::one())]))
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, where there is nothing but a number.
    pub(super) fn as_constant(&self) -> Option<Rational> {
        match self.0.iter().next() {
            None => Some(Rational::zero()),
            Some((monomial, value)) => (self.0.len() == 1 && monomial.is_empty()).then(|| value.clone()),
        }
    }

    /// The one variable that it is.
    fn is_symbol(&self) -> bool {
        matches!(self.0.first_key_value(), Some((monomial, value))
            if self.0.len() == 1 && *value == Rational::one() && matches!(monomial[..], [(Generator::Symbol(_), 1)]))
    }

    /// Whether no term is a product.
    fn is_linear(&self) -> bool {
        self.0.keys().all(|monomial| monomial.iter().map(|(_, times)| times).sum::<u32>() <= 1)
    }

    fn has_opaque(&self) -> bool {
        self.0.keys().flatten().any(|(generator, _)| matches!(generator, Generator::Opaque(_)))
    }

    fn is_dyadic(&self) -> bool {
        let power_of_two = |value: &Rational| value.denominator().magnitude().count_ones() == 1;
        self.0.values().all(|value| value.bits() <= MAX_DYADIC_BITS && power_of_two(value))
    }

    fn negative(&self) -> Self {
        Self(self.0.iter().map(|(monomial, value)| (monomial.clone(), value.negative())).collect())
    }

    fn add(&mut self, monomial: Monomial, value: &Rational) -> Option<()> {
        let sum = match self.0.get(&monomial) {
            Some(present) => present.plus(value)?,
            None => value.clone(),
        };
        if sum.is_zero() {
            self.0.remove(&monomial);
        } else {
            self.0.insert(monomial, sum);
        }
        (self.0.len() <= MAX_TERMS).then_some(())
    }

    fn plus(&self, other: &Self, budget: &Budget) -> Option<Self> {
        budget.spend(other.weight())?;
        let mut sum = self.clone();
        other.0.iter().try_for_each(|(monomial, value)| sum.add(monomial.clone(), value))?;
        Some(sum)
    }

    fn times(&self, other: &Self, budget: &Budget) -> Option<Self> {
        if other.0.len() == 1 && other.as_constant().is_some_and(|value| value == Rational::one()) {
            return Some(self.clone());
        }
        let mut product = Self::default();
        for (left, left_value) in &self.0 {
            for (right, right_value) in &other.0 {
                budget.spend(8 + (left_value.bits() / 64 + 1) * (right_value.bits() / 64 + 1) * 16)?;
                let (monomial, factor) = multiplied(left, right)?;
                product.add(monomial, &left_value.times(right_value)?.times(&factor)?)?;
            }
        }
        Some(product)
    }

    /// What looking at it costs.
    fn weight(&self) -> u64 {
        self.0.values().map(|value| 4 + value.bits() / 16).sum()
    }
}

/// The product of two products, reduced, and the number that came out of it.
fn multiplied(left: &Monomial, right: &Monomial) -> Option<(Monomial, Rational)> {
    let mut all: BTreeMap<&Generator, u32> = BTreeMap::new();
    for (generator, times) in left.iter().chain(right) {
        *all.entry(generator).or_default() += times;
    }
    let mut factor = Rational::one();
    let mut monomial = Vec::with_capacity(all.len());
    for (generator, times) in all {
        let left_over = match generator {
            Generator::Imaginary => {
                factor = factor.times(&Rational::integer(if times / 2 % 2 == 1 { -1 } else { 1 }))?;
                times % 2
            }
            Generator::Root(prime) => {
                factor = factor.times(&Rational::integer(*prime).power(i64::from(times / 2))?)?;
                times % 2
            }
            _ => times,
        };
        if left_over > 0 {
            monomial.push((generator.clone(), left_over));
        }
    }
    Some((monomial, factor))
}

/// A fraction of polynomials; the denominator is not 0.
#[derive(Debug, Clone)]
pub(super) struct Fraction {
    above: Polynomial,
    below: Polynomial,
    /// A float took part. Then every coefficient is a small dyadic fraction, with which floats compute exactly.
    float: bool,
}

impl Fraction {
    pub(super) fn of(above: Polynomial) -> Self {
        Self { above, below: Polynomial::constant(Rational::one()), float: false }
    }

    /// A number among polynomials; none for a float with which sums would be rounded.
    pub(super) fn of_number(number: &Number) -> Option<Self> {
        let float = number.exact().is_none();
        Self { float, ..Self::of(Polynomial::constant(number.value().clone())) }.settled()
    }

    fn new(above: Polynomial, below: Polynomial, float: bool) -> Option<Self> {
        if below.is_zero() {
            return None;
        }
        if let Some(value) = below.as_constant() {
            let scale = Rational::one().over(&value)?;
            let terms = above.0.iter().map(|(monomial, value)| Some((monomial.clone(), value.times(&scale)?)));
            let above = Polynomial(terms.collect::<Option<_>>()?);
            return Self { float, ..Self::of(above) }.settled();
        }
        Self { above, below, float }.settled()
    }

    fn settled(self) -> Option<Self> {
        (!self.float || (self.above.is_dyadic() && self.below.is_dyadic())).then_some(self)
    }

    /// Whether it is written as a number, or may be one.
    pub(super) fn may_be_number(&self) -> bool {
        self.below.as_constant().is_none() || self.above.as_constant().is_some()
    }

    pub(super) fn is_zero(&self) -> bool {
        self.above.is_zero()
    }

    pub(super) fn is_symbol(&self) -> bool {
        self.above.is_symbol() && self.below.as_constant().is_some()
    }

    pub(super) fn has_float(&self) -> bool {
        self.float
    }

    /// Whether it is 0 or not 0 for certain, whatever value opaque things have.
    pub(super) fn is_decisive(&self) -> bool {
        !self.above.has_opaque() && !self.below.has_opaque()
    }

    /// A name for it that is the same for the same sum of variables and numbers; none for other forms.
    pub(super) fn linear_name(&self) -> Option<String> {
        let plain = !self.float && self.below.as_constant().is_some() && self.above.is_linear();
        plain.then(|| format!("{:?}", self.above))
    }

    pub(super) fn negative(&self) -> Self {
        Self { above: self.above.negative(), ..self.clone() }
    }

    pub(super) fn plus(&self, other: &Self, budget: &Budget) -> Option<Self> {
        let float = self.float || other.float;
        if self.below == other.below {
            return Self::new(self.above.plus(&other.above, budget)?, self.below.clone(), float);
        }
        let (left, right) = (self.above.times(&other.below, budget)?, other.above.times(&self.below, budget)?);
        Self::new(left.plus(&right, budget)?, self.below.times(&other.below, budget)?, float)
    }

    pub(super) fn times(&self, other: &Self, budget: &Budget) -> Option<Self> {
        let (above, below) = (self.above.times(&other.above, budget)?, self.below.times(&other.below, budget)?);
        Self::new(above, below, self.float || other.float)
    }

    pub(super) fn over(&self, other: &Self, budget: &Budget) -> Option<Self> {
        let (above, below) = (self.above.times(&other.below, budget)?, self.below.times(&other.above, budget)?);
        Self::new(above, below, self.float || other.float)
    }

    pub(super) fn power(&self, exponent: i64, budget: &Budget) -> Option<Self> {
        if exponent.abs() > MAX_POWER {
            return None;
        }
        let one = Self::of(Polynomial::constant(Rational::one()));
        let power = (0..exponent.abs()).try_fold(one.clone(), |power, _| power.times(self, budget))?;
        if exponent < 0 { one.over(&power, budget) } else { Some(power) }
    }
}

/// The square root of a rational, as a fraction over roots of primes; none where its parts are too large to take apart.
pub(super) fn square_root(value: &Rational, budget: &Budget) -> Option<Fraction> {
    let natural = |value: &num_bigint::BigInt| {
        if let Some(root) = super::number::whole_root(value.magnitude(), 2) {
            return Some(Fraction::of(Polynomial::constant(Rational::integer(root))));
        }
        budget.spend(1 << 12)?;
        let mut outside = Rational::one();
        let mut product = Fraction::of(Polynomial::constant(Rational::one()));
        for (prime, times) in super::number::factors(value.magnitude())? {
            outside = outside.times(&Rational::integer(prime).power(i64::from(times / 2))?)?;
            if times % 2 == 1 {
                product = product.times(&Fraction::of(Polynomial::generator(Generator::Root(prime))), budget)?;
            }
        }
        product.times(&Fraction::of(Polynomial::constant(outside)), budget)
    };
    // Below the line there are no roots: the root of p/q is that of p times q, over q.
    let (above, below) = (value.numerator(), value.denominator());
    let root = if below.is_one() {
        natural(above)?
    } else {
        natural(above)?
            .times(&natural(below)?, budget)?
            .over(&Fraction::of(Polynomial::constant(Rational::integer(below.clone()))), budget)?
    };
    if !value.is_negative() {
        return Some(root);
    }
    root.times(&Fraction::of(Polynomial::generator(Generator::Imaginary)), budget)
}
