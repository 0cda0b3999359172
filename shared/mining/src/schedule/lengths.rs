//! How long completions are, and the longest of a group.

use std::collections::VecDeque;

/// Completions that are remembered.
const COMPLETIONS: usize = 2048;
/// Groups that are remembered.
const GROUPS: usize = 256;
/// Groups from which on something is said about them.
const ENOUGH: usize = 8;
/// Groups with a similar prompt from which on they speak for themselves.
const ENOUGH_ALIKE: usize = 24;
/// Groups between two sortings.
const REFRESH: usize = 8;
/// Points of the curve of what is left.
const GRID: usize = 48;

/// One group as it was generated.
#[derive(Debug, Clone)]
struct Shape {
    prompt: u32,
    /// Of its completions, rising.
    lengths: Vec<u32>,
}

impl Shape {
    fn longest(&self) -> u32 {
        self.lengths.last().copied().unwrap_or(0)
    }

    /// Completions that were not done after `age` tokens.
    fn running_at(&self, age: f64) -> usize {
        self.lengths.len() - self.lengths.partition_point(|length| f64::from(*length) <= age)
    }
}

/// Lengths of the last completions and groups, in tokens.
#[derive(Debug, Clone, Default)]
pub struct Lengths {
    completions: VecDeque<u32>,
    groups: VecDeque<Shape>,
    fresh: usize,
    longest: Vec<u32>,
    remaining: Vec<f64>,
    step: f64,
    mean: f64,
}

impl Lengths {
    /// A group of `prompt` tokens was generated with these completions.
    pub fn observe(&mut self, prompt: u32, completions: &[u32]) {
        if completions.is_empty() {
            return;
        }
        let mut lengths = completions.to_vec();
        lengths.sort_unstable();
        keep(&mut self.groups, Shape { prompt, lengths }, GROUPS);
        completions.iter().for_each(|length| keep(&mut self.completions, *length, COMPLETIONS));
        self.fresh += 1;
        if self.fresh >= REFRESH || self.groups.len() <= ENOUGH {
            self.fresh = 0;
            self.refresh();
        }
    }

    fn refresh(&mut self) {
        self.longest = self.groups.iter().map(Shape::longest).collect();
        self.longest.sort_unstable();
        let mut sorted: Vec<f64> = self.completions.iter().map(|length| f64::from(*length)).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let count = sorted.len() as f64;
        self.mean = (sorted.iter().sum::<f64>() / count).max(1.0);
        self.step = (sorted.last().copied().unwrap_or(1.0) / GRID as f64).max(1.0);
        // Share of requests that are still under way after k more steps, when requests of all ages are: E[(X - x)+] / E[X].
        let beyond =
            |x: f64| sorted[sorted.partition_point(|length| *length <= x)..].iter().map(|length| length - x).sum::<f64>();
        self.remaining = (0..=GRID).map(|k| beyond(k as f64 * self.step) / count / self.mean).collect();
    }

    /// Whether enough was seen to say anything.
    pub fn known(&self) -> bool {
        self.groups.len() >= ENOUGH
    }

    /// Mean length of a completion.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Steps of tokens, and the share of today's requests that is still under way during each, once nothing is begun any more.
    pub fn remaining(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.remaining.iter().map(|share| (self.step, *share))
    }

    /// Share of groups whose longest completion is at most `tokens` long.
    pub fn share_within(&self, tokens: f64) -> f64 {
        let within = self.longest.partition_point(|longest| f64::from(*longest) <= tokens);
        within as f64 / self.longest.len().max(1) as f64
    }

    /// Length within which the longest completion of `share` of the groups ends.
    pub fn longest_at(&self, share: f64) -> f64 {
        let place = (share * self.longest.len() as f64).ceil() as usize;
        self.longest.get(place.clamp(1, self.longest.len().max(1)) - 1).map_or(0.0, |longest| f64::from(*longest))
    }

    /// Of groups that were where this one is, `age` tokens after it began and with `running` completions left, the share that was
    /// done after `reach` more; of those with a prompt like this one, where enough are known. `None` where too few were seen.
    pub fn share_ending(&self, prompt: Option<u32>, age: f64, running: usize, reach: f64) -> Option<f64> {
        let of_size = |shape: &Shape| prompt.is_none_or(|prompt| shape.prompt / 2 <= prompt && prompt / 2 <= shape.prompt);
        let alive: Vec<(&Shape, usize)> =
            self.groups.iter().map(|shape| (shape, shape.running_at(age))).filter(|(_, left)| *left > 0).collect();
        // One more or less of three is alike: groups far ahead or far behind at that age say nothing about this one.
        let as_far = |left: usize| left * 3 >= running * 2 && left * 2 <= running * 3;
        let share = |wanted: &dyn Fn(&Shape, usize) -> bool| {
            let (mut known, mut ending) = (0_usize, 0_usize);
            for (shape, _) in alive.iter().filter(|(shape, left)| wanted(shape, *left)) {
                known += 1;
                ending += usize::from(f64::from(shape.longest()) <= age + reach);
            }
            (known >= ENOUGH_ALIKE).then(|| ending as f64 / known as f64)
        };
        share(&|shape, left| of_size(shape) && as_far(left))
            .or_else(|| share(&|_, left| as_far(left)))
            .or_else(|| share(&|_, _| true))
    }
}

fn keep<T>(ring: &mut VecDeque<T>, newest: T, most: usize) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(newest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_falls_from_everything_to_nothing() {
        let mut lengths = Lengths::default();
        for _ in 0..10 {
            lengths.observe(50, &[100, 200, 300, 400]);
        }
        assert!(lengths.known());
        let shares: Vec<f64> = lengths.remaining().map(|(_, share)| share).collect();
        assert!((shares[0] - 1.0).abs() < 1e-9 && shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
        assert!(shares[GRID].abs() < 1e-9);
        assert_eq!((lengths.mean(), lengths.longest_at(0.5)), (250.0, 400.0));
        assert_eq!((lengths.share_within(399.0), lengths.share_within(400.0)), (0.0, 1.0));
    }

    #[test]
    fn prompts_of_another_size_are_asked_only_where_none_like_it_is_known() {
        let mut lengths = Lengths::default();
        for _ in 0..30 {
            lengths.observe(100, &[200]);
            lengths.observe(1000, &[900]);
        }
        assert_eq!(lengths.share_ending(Some(120), 100.0, 1, 100.0), Some(1.0));
        assert_eq!(lengths.share_ending(Some(900), 100.0, 1, 100.0), Some(0.0));
        assert_eq!(lengths.share_ending(Some(9), 100.0, 1, 100.0), Some(0.5));
        assert_eq!(lengths.share_ending(None, 950.0, 1, 100.0), None, "none lived so long");
    }

    #[test]
    fn a_group_is_compared_with_those_that_were_as_far() {
        let mut lengths = Lengths::default();
        for _ in 0..30 {
            lengths.observe(100, &[50, 60, 70, 300]);
            lengths.observe(100, &[500, 600, 700, 800]);
        }
        assert_eq!(lengths.share_ending(None, 100.0, 1, 250.0), Some(1.0));
        assert_eq!(lengths.share_ending(None, 100.0, 4, 250.0), Some(0.0));
        assert_eq!(lengths.share_ending(None, 100.0, 2, 250.0), Some(0.5), "none was there: all that were under way count");
    }
}
