//! For how long an extrinsic may be included (chain 5).

/// Life of an extrinsic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// For ever: a transaction that is held back can surface days later. For tests of the format only.
    Immortal,
    /// From its birth block on, for `period` blocks.
    Mortal {
        /// Blocks; a power of two from 4 to 65536.
        period: u64,
        /// Birth block modulo period, rounded down to what the encoding holds.
        phase: u64,
    },
}

const MIN_PERIOD: u64 = 4;
const MAX_PERIOD: u64 = 1 << 16;

impl Era {
    /// An era of about `period` blocks (made a power of two within 4 to 65536), anchored at block `current`.
    #[must_use]
    pub fn mortal(period: u64, current: u64) -> Self {
        let period = period.min(MAX_PERIOD).next_power_of_two().max(MIN_PERIOD);
        let quantum = quantum(period);
        Self::Mortal { period, phase: current % period / quantum * quantum }
    }

    /// One byte for an immortal era, two for a mortal one.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let Self::Mortal { period, phase } = self else { return vec![0] };
        let low = (period.trailing_zeros().saturating_sub(1)).clamp(1, 15) as u16;
        // Phase over quantum is below 4096: twelve bits.
        let high = ((phase / quantum(period)) as u16) << 4;
        (low | high).to_le_bytes().to_vec()
    }

    /// Reads what [`Era::encode`] writes; the bytes that follow are left.
    #[must_use]
    pub fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let (&first, rest) = bytes.split_first()?;
        if first == 0 {
            *bytes = rest;
            return Some(Self::Immortal);
        }
        let (&second, rest) = rest.split_first()?;
        let encoded = u64::from(u16::from_le_bytes([first, second]));
        let period = 2 << (encoded % 16);
        let phase = (encoded >> 4) * quantum(period);
        *bytes = rest;
        (period >= MIN_PERIOD && phase < period).then_some(Self::Mortal { period, phase })
    }

    /// The block whose hash is signed, seen from block `current`; 0 for an immortal era.
    #[must_use]
    pub fn birth(self, current: u64) -> u64 {
        match self {
            Self::Immortal => 0,
            Self::Mortal { period, phase } => (current.max(phase) - phase) / period * period + phase,
        }
    }

    /// First block in which it is no longer valid, seen from block `current`.
    #[must_use]
    pub fn death(self, current: u64) -> u64 {
        match self {
            Self::Immortal => u64::MAX,
            Self::Mortal { period, .. } => self.birth(current) + period,
        }
    }
}

fn quantum(period: u64) -> u64 {
    (period >> 12).max(1)
}
