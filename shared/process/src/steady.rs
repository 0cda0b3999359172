//! Unix time that does not jump. Pure: both clocks of the machine are arguments.
//!
//! ```text
//!  time since the boot, which nobody sets and a suspend does not stop  +  offset  =  Unix time
//!    wall clock within two seconds of it   followed: what keeps clocks right moves them by little
//!    wall clock set by more                not followed, until somebody else's clock tells which of the two is right
//! ```
//!
//! Deadlines, signatures of requests and block times all go by it. A step of an hour in mid-window would otherwise end the window,
//! or let it go on beyond its deadline, and the storage would refuse every signature.

/// The wall clock may move by so many seconds between two looks and is followed.
const FOLLOWED_SECONDS: f64 = 2.0;

/// What the wall clock and another machine's clock say of each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// The wall clock was not set.
    Agreed,
    /// It was set by so many seconds, wrongly: time goes on as if it had not been.
    Kept(f64),
    /// It was set by so many seconds, rightly: time is told by it from now on.
    Followed(f64),
}

/// The offset between the two clocks.
#[derive(Debug, Clone)]
pub struct Steady {
    offset: f64,
}

impl Steady {
    /// Begins with what the wall clock says. All times are in seconds; `boot` counts from the machine's start.
    #[must_use]
    pub fn new(wall: f64, boot: f64) -> Self {
        Self { offset: wall - boot }
    }

    /// Unix time.
    pub fn read(&mut self, wall: f64, boot: f64) -> f64 {
        let step = self.step(wall, boot);
        if step.abs() <= FOLLOWED_SECONDS {
            self.offset += step;
        }
        self.offset + boot
    }

    /// How far the wall clock is ahead of what is told.
    #[must_use]
    pub fn step(&self, wall: f64, boot: f64) -> f64 {
        wall - boot - self.offset
    }

    /// Another machine's clock shows `reference`. Of a wall clock that was set and the time as if it had not been, the one that is
    /// nearer to it is right; a third time is never made up.
    pub fn judge(&mut self, reference: f64, wall: f64, boot: f64) -> Verdict {
        let told = self.read(wall, boot);
        let step = self.step(wall, boot);
        if step.abs() <= FOLLOWED_SECONDS {
            Verdict::Agreed
        } else if (wall - reference).abs() < (told - reference).abs() {
            self.offset += step;
            Verdict::Followed(step)
        } else {
            Verdict::Kept(step)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: f64 = 3600.0;

    #[test]
    fn a_suspend_passes_and_small_corrections_are_followed() {
        let mut steady = Steady::new(1000.0, 10.0);
        assert_eq!(steady.read(1000.5, 10.5), 1000.5);
        // Suspended for an hour: both clocks went on, timers did not.
        assert_eq!(steady.read(1000.5 + HOUR, 10.5 + HOUR), 1000.5 + HOUR);
        assert_eq!(steady.read(1001.0 + HOUR, 10.5 + HOUR), 1001.0 + HOUR, "half a second of correction");
        assert_eq!(steady.judge(1001.0 + HOUR, 1001.0 + HOUR, 10.5 + HOUR), Verdict::Agreed);
    }

    #[test]
    fn a_step_is_held_back_whichever_way_it_goes() {
        for step in [HOUR, -HOUR] {
            let mut steady = Steady::new(1000.0, 0.0);
            assert_eq!(steady.read(1010.0 + step, 10.0), 1010.0);
            assert_eq!(steady.step(1010.0 + step, 10.0), step);
            // The chain's newest block is seven seconds old.
            assert_eq!(steady.judge(1003.0, 1010.0 + step, 10.0), Verdict::Kept(step));
            assert_eq!(steady.read(1020.0 + step, 20.0), 1020.0, "it goes on");
            assert_eq!(steady.read(1030.0, 30.0), 1030.0, "and is right when the wall clock is set back");
            assert_eq!(steady.judge(1025.0, 1030.0, 30.0), Verdict::Agreed);
        }
    }

    #[test]
    fn a_clock_that_was_wrong_and_is_set_right_is_followed_once_the_chain_says_so() {
        // As after a virtual machine was paused: neither of its clocks went on, then the wall clock is set.
        let mut steady = Steady::new(1000.0, 0.0);
        assert_eq!(steady.read(1001.0 + HOUR, 1.0), 1001.0);
        assert_eq!(steady.judge(1001.0 + HOUR - 9.0, 1001.0 + HOUR, 1.0), Verdict::Followed(HOUR));
        assert_eq!(steady.read(1002.0 + HOUR, 2.0), 1002.0 + HOUR);
    }

    #[test]
    fn a_node_that_lags_moves_no_clock() {
        let mut steady = Steady::new(1000.0, 0.0);
        assert_eq!(steady.judge(400.0, 1000.0, 0.0), Verdict::Agreed);
        assert_eq!(steady.read(1000.0, 0.0), 1000.0);
    }
}
