//! How many lines of one kind a child may put into the log (pure). A server that complains once per request would bury
//! everything else, and fill a disk.

use std::collections::HashMap;
use std::time::Duration;

/// Lines of one shape that pass within a period …
const BURST: u64 = 20;
/// … and its length.
const PERIOD: Duration = Duration::from_secs(10);
/// Letters that make a shape. Digits do not count: they are what differs between lines of one kind.
const SHAPE: usize = 48;
/// Shapes that are told apart; all further ones count as one.
const SHAPES: usize = 256;

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It passes; so many like it were held back since the last one did.
    Passed(u64),
    /// It is held back.
    Held,
}

#[derive(Debug, Default)]
struct Shape {
    began: Duration,
    passed: u64,
    held: u64,
}

/// Counts the lines of one child. Times are durations since any fixed instant.
#[derive(Debug, Default)]
pub struct Throttle(HashMap<String, Shape>);

impl Throttle {
    /// Judges a line.
    pub fn judge(&mut self, now: Duration, line: &str) -> Admission {
        let mut shape: String = line.chars().filter(|letter| !letter.is_ascii_digit()).take(SHAPE).collect();
        if self.0.len() >= SHAPES && !self.0.contains_key(&shape) {
            self.0.retain(|_, shape| now.saturating_sub(shape.began) <= PERIOD || shape.held > 0);
            if self.0.len() >= SHAPES {
                shape.clear();
            }
        }
        let shape = self.0.entry(shape).or_insert_with(|| Shape { began: now, ..Shape::default() });
        if now.saturating_sub(shape.began) > PERIOD {
            (shape.began, shape.passed) = (now, 0);
        }
        if shape.passed == BURST {
            shape.held += 1;
            return Admission::Held;
        }
        shape.passed += 1;
        Admission::Passed(std::mem::take(&mut shape.held))
    }

    /// Lines that were held back and not told of yet.
    pub fn held(&self) -> u64 {
        self.0.values().map(|shape| shape.held).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_shape_is_held_back_and_told_and_nothing_else_is() {
        let mut throttle = Throttle::default();
        let line = |number: u64| format!("127.0.0.1:{number} - \"POST /generate HTTP/1.1\" 503 Service Unavailable");
        let passed = (0..100).filter(|number| throttle.judge(Duration::ZERO, &line(*number)) != Admission::Held).count();
        assert_eq!((passed as u64, throttle.held()), (BURST, 100 - BURST));
        assert_eq!(throttle.judge(Duration::ZERO, "Scheduler hit an exception"), Admission::Passed(0));
        assert_eq!(throttle.judge(PERIOD + Duration::from_secs(1), &line(7)), Admission::Passed(100 - BURST));
        assert_eq!(throttle.held(), 0);
    }

    #[test]
    fn memory_is_bounded_whatever_is_printed() {
        let mut throttle = Throttle::default();
        let word = |number: u32| char::from_u32(0x4e00 + number).unwrap().to_string();
        (0..5000).for_each(|number| _ = throttle.judge(Duration::ZERO, &word(number)));
        assert!(throttle.0.len() <= SHAPES + 1, "{}", throttle.0.len());
        assert!(throttle.held() >= 4000, "what is told apart no more counts together");
        let later = PERIOD + Duration::from_secs(1);
        assert_eq!(throttle.judge(later, &word(9999)), Admission::Passed(0), "old shapes make room");
    }
}
