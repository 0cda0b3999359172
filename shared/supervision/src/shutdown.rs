//! How the time of an orderly stop is spent (pure).
//!
//! ```text
//!  signal                                                                         budget over
//!    │ no new groups; those under way are │ the file is closed,  │ children end │ killed │
//!    │ finished and spooled, or abandoned │ judged and uploaded  │ in order     │        │
//!    0                                   1/3                    3/4            19/20     1
//! ```
//!
//! A phase that is done early leaves its time to the next ones. A second signal ends the first two phases at once and leaves the
//! children a second; no signal makes the supervisor leave a child behind.

use std::time::Duration;

/// Share of the budget in which groups under way may still be finished.
pub const FINISH_SHARE: f64 = 1.0 / 3.0;
const UPLOAD_SHARE: f64 = 3.0 / 4.0;
const CHILDREN_SHARE: f64 = 19.0 / 20.0;
/// What is left of the stop after a second signal, and what the children get of it.
pub const HURRIED: Duration = Duration::from_secs(2);
const HURRY: Duration = Duration::from_secs(1);
/// What the supervisor itself needs after the budget: last orphans, journal, status file.
pub const OWN_END: f64 = 2.0;
/// Each of them gets at least so much, whatever hangs.
const LEAST: Duration = Duration::from_millis(250);
/// What Docker and systemd allow where nobody told them.
const DOCKER_DEFAULT: f64 = 10.0;
const SYSTEMD_DEFAULT: f64 = 90.0;

/// The deadlines of one stop. Times are durations since any fixed instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    upload: Duration,
    children: Duration,
    over: Duration,
}

impl Shutdown {
    /// A signal came.
    pub fn new(now: Duration, budget: Duration) -> Self {
        let at = |share: f64| now + budget.mul_f64(share);
        Self { upload: at(UPLOAD_SHARE), children: at(CHILDREN_SHARE), over: at(1.0) }
    }

    /// Another signal came: everything but ending the children is over. It never makes a stop longer.
    pub fn hurry(&mut self, now: Duration) {
        self.upload = self.upload.min(now);
        self.children = self.children.min(now + HURRY);
        self.over = self.over.min(now + HURRIED);
    }

    /// Time left for finishing groups and uploading.
    pub fn uploading(&self, now: Duration) -> Duration {
        self.upload.saturating_sub(now)
    }

    /// Time left until children that have not ended are killed.
    pub fn ending_children(&self, now: Duration) -> Duration {
        self.children.saturating_sub(now)
    }

    /// Time left for the kernel to let killed children go.
    pub fn killing(&self, now: Duration) -> Duration {
        self.over.saturating_sub(now)
    }

    /// Time for one of the supervisor's own last steps, which may want `most`: what is left of the budget, but a moment in any case.
    pub fn last_step(&self, now: Duration, most: Duration) -> Duration {
        self.over.saturating_sub(now).clamp(LEAST.min(most), most)
    }

    /// Time a child gets to end by itself.
    pub fn grace(budget: Duration) -> Duration {
        budget.mul_f64(CHILDREN_SHARE - UPLOAD_SHARE).clamp(Duration::from_millis(200), Duration::from_secs(10))
    }
}

/// Who starts and stops the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// A container's first process.
    Container,
    /// A systemd unit.
    Systemd,
    /// A shell, or anything else.
    Other,
}

/// What is wrong with the time that the service manager allows, before it kills. `grace` is what the operator says it allows, in
/// seconds.
pub fn grace_warning(budget: f64, grace: Option<f64>, manager: Manager) -> Option<String> {
    let (allowed, who) = match (grace, manager) {
        (Some(grace), _) => (grace, "shutdown.grace_seconds says that the service manager kills"),
        (None, Manager::Container) => (DOCKER_DEFAULT, "a container is killed, unless stop_grace_period says otherwise,"),
        (None, Manager::Systemd) => (SYSTEMD_DEFAULT, "a systemd unit is killed, unless TimeoutStopSec says otherwise,"),
        (None, Manager::Other) => return None,
    };
    let needed = budget + OWN_END;
    (allowed < needed).then(|| {
        format!(
            "{who} after {allowed:.0} s, and an orderly stop may take {needed:.0} s: finished groups may not be uploaded; allow more \
             (TimeoutStopSec={needed:.0} with KillMode=mixed, or stop_grace_period: {needed:.0}s, and shutdown.grace_seconds = {needed:.0}), or lower \
             shutdown.budget_seconds"
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn every_phase_has_its_deadline() {
        let stop = Shutdown::new(seconds(100.0), seconds(20.0));
        assert_eq!(stop.uploading(seconds(100.0)), seconds(15.0));
        assert_eq!(stop.ending_children(seconds(110.0)), seconds(9.0), "an early upload leaves its time to the children");
        assert_eq!(stop.killing(seconds(119.0)), seconds(1.0));
        assert_eq!(stop.killing(seconds(130.0)), Duration::ZERO);
        let most = seconds(2.0);
        let step = |now: f64| stop.last_step(seconds(now), most);
        assert_eq!((step(110.0), step(119.0), step(140.0)), (most, seconds(1.0), LEAST));
    }

    #[test]
    fn a_short_grace_is_told_with_its_remedy() {
        assert_eq!(grace_warning(30.0, Some(60.0), Manager::Container), None);
        assert_eq!(grace_warning(30.0, None, Manager::Other), None);
        assert_eq!(grace_warning(30.0, None, Manager::Systemd), None);
        assert!(grace_warning(120.0, None, Manager::Systemd).unwrap().contains("TimeoutStopSec=122"));
        assert!(grace_warning(30.0, None, Manager::Container).unwrap().contains("stop_grace_period: 32s"));
        assert!(grace_warning(30.0, Some(31.0), Manager::Other).unwrap().contains("after 31 s"));
    }

    proptest! {
        #[test]
        fn phases_follow_each_other_and_a_second_signal_never_makes_it_longer(
            began in 0.0..1e6f64, budget in 1.0..600.0f64, later in 0.0..700.0f64,
        ) {
            let now = seconds(began);
            let first = Shutdown::new(now, seconds(budget));
            let order = |stop: &Shutdown| stop.upload <= stop.children && stop.children <= stop.over;
            prop_assert!(order(&first));
            prop_assert!(first.killing(now) <= seconds(budget) + Duration::from_micros(1));
            let mut second = first;
            let then = now + seconds(later);
            second.hurry(then);
            prop_assert!(order(&second));
            prop_assert!(second.over <= first.over && second.children <= first.children);
            prop_assert_eq!(second.uploading(then), Duration::ZERO);
            prop_assert!(second.killing(then) <= HURRIED);
            let mut third = second;
            third.hurry(then + HURRY);
            prop_assert_eq!(third, second);
        }
    }
}
