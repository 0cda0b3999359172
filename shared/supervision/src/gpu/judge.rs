//! What of a GPU's readings is worth a line: changes, not states (pure).

use super::GpuReading;

/// Something worth saying about a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// In words.
    pub text: String,
    /// Whether somebody should act.
    pub serious: bool,
}

/// Compares the readings of one GPU.
#[derive(Debug, Default)]
pub struct Judge {
    errors: Option<u64>,
    hot: bool,
    cap: Option<f64>,
}

impl Judge {
    /// Degrees below the driver's slowdown at which a GPU counts as hot …
    const NEAR: u32 = 2;
    /// … and degrees below that at which it counts as cool again.
    const COOLED: u32 = 5;

    /// Looks at a reading.
    pub fn look(&mut self, reading: &GpuReading) -> Vec<Note> {
        let mut notes = Vec::new();
        let mut note = |serious, text| notes.push(Note { text, serious });
        if let Some(errors) = reading.uncorrected_errors {
            let before = self.errors.replace(errors);
            match before {
                Some(before) if errors > before => {
                    note(true, format!("{} memory error(s) that could not be corrected", errors - before))
                }
                None if errors > 0 => {
                    note(false, format!("{errors} memory error(s) since the driver was loaded could not be corrected"))
                }
                _ => {}
            }
        }
        if let (Some(now), Some(limit)) = (reading.temperature, reading.slowdown_temperature) {
            let hot = now + Self::NEAR >= limit;
            if hot && !self.hot {
                note(false, format!("{now} °C, and the driver slows it down at {limit} °C"));
            }
            self.hot = hot || (self.hot && now + Self::NEAR + Self::COOLED >= limit);
        }
        if let (Some(cap), Some(default)) = (reading.power_cap, reading.default_power_cap) {
            let lowered = cap + 1.0 < default;
            if lowered && self.cap != Some(cap) {
                note(false, format!("its power is capped at {cap:.0} W of {default:.0} W"));
            }
            self.cap = Some(cap);
        }
        notes
    }
}
