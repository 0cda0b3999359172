//! Complex numbers known up to an error: what an expression is near to at a chosen point.
//!
//! Two expressions whose balls do not meet at one point are different functions, whatever a computer algebra system does
//! with them. Balls that meet prove nothing.

use super::number::Rational;

/// Error of one operation relative to its result: some units of a double, and of a 15-digit float of sympy's.
const EPSILON: f64 = 4e-15;
/// Beyond this nothing is said.
const LARGEST: f64 = 1e100;

/// A disc in the complex plane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ball {
    re: f64,
    im: f64,
    radius: f64,
    /// The value itself is real: it lies on a branch cut rather than beside it.
    real: bool,
}

impl Ball {
    pub(super) fn of(value: &Rational) -> Option<Self> {
        Self::real(value.to_f64()?, 0.0)
    }

    pub(super) fn real(value: f64, radius: f64) -> Option<Self> {
        Self { re: value, im: 0.0, radius, real: true }.settled(0.0)
    }

    pub(super) fn complex(re: f64, im: f64) -> Option<Self> {
        Self { re, im, radius: 0.0, real: false }.settled(0.0)
    }

    /// With the error of the operation that made it; none where it means nothing any more.
    fn settled(self, radius: f64) -> Option<Self> {
        let radius = self.radius + radius + EPSILON * self.size() + f64::MIN_POSITIVE;
        (radius.is_finite() && self.size() < LARGEST).then_some(Self { radius, ..self })
    }

    fn size(&self) -> f64 {
        self.re.hypot(self.im)
    }

    /// Whether they have no point in common, with a margin.
    pub(super) fn is_apart_from(&self, other: &Self) -> bool {
        let distance = (self.re - other.re).hypot(self.im - other.im);
        distance > 1e-9_f64.max(16.0 * (self.radius + other.radius)) && distance > 1e-9 * self.size()
    }

    pub(super) fn negative(self) -> Self {
        Self { re: -self.re, im: -self.im, ..self }
    }

    pub(super) fn plus(self, other: Self) -> Option<Self> {
        let error = EPSILON * (self.size() + other.size());
        let real = self.real && other.real;
        Self { re: self.re + other.re, im: self.im + other.im, radius: self.radius + other.radius, real }.settled(error)
    }

    pub(super) fn times(self, other: Self) -> Option<Self> {
        let radius = self.size() * other.radius + other.size() * self.radius + self.radius * other.radius;
        let (re, im) = (self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re);
        let error = EPSILON * self.size() * other.size();
        Self { re, im, radius, real: self.real && other.real }.settled(error)
    }

    pub(super) fn reciprocal(self) -> Option<Self> {
        let size = self.size();
        let nearest = size - self.radius;
        if nearest < 1e-6 * size || nearest < 1e-100 {
            return None;
        }
        let square = size * size;
        Self { re: self.re / square, im: -self.im / square, radius: self.radius / (nearest * size), real: self.real }.settled(0.0)
    }

    pub(super) fn over(self, other: Self) -> Option<Self> {
        self.times(other.reciprocal()?)
    }

    pub(super) fn whole_power(self, exponent: i64) -> Option<Self> {
        if exponent.abs() > 64 {
            return None;
        }
        let power = (0..exponent.abs()).try_fold(Self::real(1.0, 0.0)?, |power, _| power.times(self))?;
        if exponent < 0 { power.reciprocal() } else { Some(power) }
    }

    /// The principal value, as sympy takes it; none at 0 and where the branch is not certain.
    pub(super) fn power(self, exponent: Self) -> Option<Self> {
        self.log()?.times(exponent)?.exp()
    }

    pub(super) fn abs(self) -> Option<Self> {
        Self { re: self.size(), im: 0.0, real: true, ..self }.settled(0.0)
    }

    pub(super) fn log(self) -> Option<Self> {
        let size = self.size();
        let beside_the_cut = self.re > self.radius || self.im.abs() > self.radius || self.real;
        if size - self.radius < 1e-6 * size || size < 1e-100 || !beside_the_cut {
            return None;
        }
        let positive = self.real && self.re > 0.0;
        let im = if self.real { if positive { 0.0 } else { std::f64::consts::PI } } else { self.im.atan2(self.re) };
        let radius = self.radius / (size - self.radius);
        Self { re: size.ln(), im, radius, real: positive }.settled(EPSILON * 4.0)
    }

    pub(super) fn exp(self) -> Option<Self> {
        if self.size() > 200.0 || self.radius > 0.1 {
            return None;
        }
        let size = self.re.exp();
        let radius = size * (self.radius.exp_m1() + EPSILON * self.size());
        Self { re: size * self.im.cos(), im: size * self.im.sin(), radius, real: self.real }.settled(0.0)
    }

    pub(super) fn sine(self) -> Option<Self> {
        let (re, im) = (self.re.sin() * self.im.cosh(), self.re.cos() * self.im.sinh());
        self.circular(re, im)
    }

    pub(super) fn cosine(self) -> Option<Self> {
        let (re, im) = (self.re.cos() * self.im.cosh(), -self.re.sin() * self.im.sinh());
        self.circular(re, im)
    }

    fn circular(self, re: f64, im: f64) -> Option<Self> {
        if self.size() > 1e6 || self.im.abs() > 20.0 || self.radius > 0.1 {
            return None;
        }
        // The derivative is no larger than the hyperbolic cosine of the imaginary part.
        let slope = (self.im.abs() + self.radius).cosh();
        Self { re, im, radius: slope * (self.radius + EPSILON * self.size()), real: self.real }.settled(EPSILON * slope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(ball: Option<Ball>, re: f64, im: f64) {
        let ball = ball.unwrap();
        assert!((ball.re - re).abs() < 1e-12 && (ball.im - im).abs() < 1e-12 && ball.radius < 1e-12, "{ball:?} {re} {im}");
    }

    #[test]
    fn functions_have_their_principal_values() {
        let real = |value| Ball::real(value, 0.0).unwrap();
        near(real(-4.0).power(real(0.5)), 0.0, 2.0);
        near(real(-8.0).power(real(1.0).over(real(3.0)).unwrap()), 1.0, 3_f64.sqrt());
        near(Ball::complex(0.0, 1.0).unwrap().log(), 0.0, std::f64::consts::FRAC_PI_2);
        near(Ball::complex(1.0, 1.0).unwrap().sine(), 1.298_457_581_415_977_3, 0.634_963_914_784_736_1);
        near(Ball::complex(3.0, 4.0).unwrap().abs(), 5.0, 0.0);
        near(real(2.0).whole_power(-3), 0.125, 0.0);
    }

    #[test]
    fn nothing_is_said_where_nothing_is_certain() {
        let real = |value| Ball::real(value, 0.0).unwrap();
        let zero = real(0.5).plus(real(-0.5)).unwrap();
        assert!(zero.reciprocal().is_none() && zero.log().is_none());
        assert!(real(1e3).exp().is_none() && real(1e7).sine().is_none() && real(1e60).times(real(1e60)).is_none());
        assert!(!real(1.0).is_apart_from(&real(1.0 + 1e-12)) && real(1.0).is_apart_from(&real(1.001)));
        // Beside the negative axis, but not known on which side.
        assert!(Ball { re: -1.0, im: 1e-16, radius: 1e-15, real: false }.log().is_none());
    }
}
