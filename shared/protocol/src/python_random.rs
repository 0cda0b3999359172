//! CPython's `random.Random`: the Mersenne Twister 19937 with its ways of seeding and choosing, bit for bit
//! (grail-protocol 2.4, grail-environments 2.3).

use std::collections::HashSet;

use sha2::{Digest, Sha512};

const STATE_WORDS: usize = 624;
const MIDDLE_WORD: usize = 397;
const UPPER_BIT: u32 = 0x8000_0000;
const LOWER_BITS: u32 = 0x7fff_ffff;
const TWIST: u32 = 0x9908_b0df;
const ARRAY_SEED: u32 = 19_650_218;

/// A generator that gives what `random.Random(seed)` gives.
#[derive(Clone)]
pub struct PythonRandom {
    state: [u32; STATE_WORDS],
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)` for a `bytes` seed (version 2): the big-endian integer of `seed || SHA512(seed)`.
    #[must_use]
    pub fn from_bytes(seed: &[u8]) -> Self {
        let mut integer = seed.to_vec();
        integer.extend_from_slice(&Sha512::digest(seed));
        Self::from_magnitude(&integer)
    }

    /// `random.Random(seed)` for an integer seed; Python takes the absolute value of negative ones.
    #[must_use]
    pub fn from_integer(seed: u64) -> Self {
        Self::from_magnitude(&seed.to_be_bytes())
    }

    /// `random.Random(seed)` for an integer of any size, given as the big-endian bytes of its absolute value.
    #[must_use]
    pub fn from_magnitude(big_endian: &[u8]) -> Self {
        let mut key: Vec<u32> =
            big_endian.rchunks(4).map(|chunk| chunk.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))).collect();
        while key.len() > 1 && key.last() == Some(&0) {
            key.pop();
        }
        if key.is_empty() {
            key.push(0);
        }
        Self::from_key(&key)
    }

    /// The reference `init_by_array`; `key` is not empty.
    fn from_key(key: &[u32]) -> Self {
        let mut state = initial_state();
        let mut word = 1;
        for step in 0..STATE_WORDS.max(key.len()) {
            let position = step % key.len();
            let position_word = u32::try_from(position).unwrap_or(u32::MAX);
            state[word] = (state[word] ^ mix(state[word - 1], 1_664_525)).wrapping_add(key[position]).wrapping_add(position_word);
            word = advance(&mut state, word);
        }
        for _ in 1..STATE_WORDS {
            let index = u32::try_from(word).unwrap_or(u32::MAX);
            state[word] = (state[word] ^ mix(state[word - 1], 1_566_083_941)).wrapping_sub(index);
            word = advance(&mut state, word);
        }
        state[0] = UPPER_BIT;
        Self { state, next: STATE_WORDS }
    }

    /// The next 32 bits of the generator.
    pub fn next_u32(&mut self) -> u32 {
        if self.next >= STATE_WORDS {
            self.twist();
        }
        let mut bits = self.state[self.next];
        self.next += 1;
        bits ^= bits >> 11;
        bits ^= bits << 7 & 0x9d2c_5680;
        bits ^= bits << 15 & 0xefc6_0000;
        bits ^ bits >> 18
    }

    fn twist(&mut self) {
        for index in 0..STATE_WORDS {
            let bits = self.state[index] & UPPER_BIT | self.state[(index + 1) % STATE_WORDS] & LOWER_BITS;
            let low = if bits & 1 == 1 { TWIST } else { 0 };
            self.state[index] = self.state[(index + MIDDLE_WORD) % STATE_WORDS] ^ bits >> 1 ^ low;
        }
        self.next = 0;
    }

    /// `getrandbits(bits)`: the top bits of one output, or of two (low word first) beyond 32. More than 64 are cut to 64.
    pub fn getrandbits(&mut self, bits: u32) -> u64 {
        match bits {
            0 => 0,
            1..=32 => u64::from(self.next_u32() >> (32 - bits)),
            _ => {
                let low = u64::from(self.next_u32());
                u64::from(self.next_u32() >> (64 - bits.min(64))) << 32 | low
            }
        }
    }

    /// `_randbelow(bound)`: a number below `bound`, drawn from as many bits as `bound` itself has; 0 when `bound` is 0.
    pub fn randbelow(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        let bits = u64::BITS - bound.leading_zeros();
        loop {
            let draw = self.getrandbits(bits);
            if draw < bound {
                return draw;
            }
        }
    }

    /// `random()`: a float in `[0, 1)` with 53 random bits.
    pub fn random(&mut self) -> f64 {
        let high = f64::from(self.next_u32() >> 5);
        let low = f64::from(self.next_u32() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }

    /// `shuffle(items)`, in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let chosen = self.index_below(last + 1);
            items.swap(last, chosen);
        }
    }

    /// `sample(range(population), count)`, in the order drawn; `count` beyond the population is cut to it (Python raises).
    pub fn sample(&mut self, population: usize, count: usize) -> Vec<usize> {
        let count = count.min(population);
        if population <= set_size(count) { self.sample_pool(population, count) } else { self.sample_set(population, count) }
    }

    fn sample_pool(&mut self, population: usize, count: usize) -> Vec<usize> {
        let mut pool: Vec<usize> = (0..population).collect();
        (0..count)
            .map(|drawn| {
                let chosen = self.index_below(population - drawn);
                let value = pool[chosen];
                pool[chosen] = pool[population - drawn - 1];
                value
            })
            .collect()
    }

    fn sample_set(&mut self, population: usize, count: usize) -> Vec<usize> {
        let mut seen = HashSet::with_capacity(count);
        let mut drawn = Vec::with_capacity(count);
        while drawn.len() < count {
            let value = self.index_below(population);
            if seen.insert(value) {
                drawn.push(value);
            }
        }
        drawn
    }

    fn index_below(&mut self, bound: usize) -> usize {
        // The draw is below a usize, so it fits one.
        usize::try_from(self.randbelow(bound as u64)).unwrap_or(0)
    }
}

fn initial_state() -> [u32; STATE_WORDS] {
    let mut state = [ARRAY_SEED; STATE_WORDS];
    for index in 1..STATE_WORDS {
        let position = u32::try_from(index).unwrap_or(u32::MAX);
        state[index] = mix(state[index - 1], 1_812_433_253).wrapping_add(position);
    }
    state
}

fn mix(previous: u32, factor: u32) -> u32 {
    (previous ^ previous >> 30).wrapping_mul(factor)
}

fn advance(state: &mut [u32; STATE_WORDS], word: usize) -> usize {
    if word + 1 < STATE_WORDS {
        return word + 1;
    }
    state[0] = state[STATE_WORDS - 1];
    1
}

/// The population up to which CPython's `sample` keeps a pool: 21, plus the smallest power of 4 from 3k on when k > 5.
fn set_size(count: usize) -> usize {
    if count <= 5 {
        return 21;
    }
    let mut power: usize = 1;
    while power < count.saturating_mul(3) {
        power = power.saturating_mul(4);
    }
    power.saturating_add(21)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_cpython_gives_for_a_bytes_seed() {
        let seed = hex::decode("2912261a0912b538abb326b378e0210a5581d791e5b5c2f8cfd1b4f8c7435050").unwrap();
        let mut random = PythonRandom::from_bytes(&seed);
        assert_eq!((random.next_u32(), random.next_u32()), (3_277_211_506, 385_799_849));
        assert_eq!(PythonRandom::from_bytes(&seed).sample(10, 5)[..2], [1, 4]);
    }

    #[test]
    fn the_smallest_seeds_are_legal() {
        // Random(0).getrandbits(32) and Random(1).random() of CPython.
        assert_eq!(PythonRandom::from_integer(0).next_u32(), 3_626_764_237);
        assert!((PythonRandom::from_integer(1).random() - 0.134_364_244_112_401_22).abs() < 1e-17);
        assert_eq!(PythonRandom::from_magnitude(&[]).next_u32(), 3_626_764_237);
    }

    #[test]
    fn asking_for_more_than_there_is_gives_everything() {
        let mut drawn = PythonRandom::from_integer(7).sample(3, 9);
        drawn.sort_unstable();
        assert_eq!(drawn, [0, 1, 2]);
    }
}
