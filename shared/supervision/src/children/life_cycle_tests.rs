//! The machine in virtual time: single stories, then random ones against a naive account of what must hold.

use proptest::prelude::*;

use super::*;

const POLICY: LifePolicy = LifePolicy {
    restart: RestartPolicy {
        first: Duration::from_millis(250),
        longest: Duration::from_secs(30),
        stable: Duration::from_secs(60),
        intensity: 8,
        period: Duration::from_secs(300),
    },
    stagger: Duration::from_millis(500),
    start_up: Duration::from_secs(60),
    cold_load: Duration::from_secs(900),
    warm_load: ProgressPolicy { floor: Duration::from_secs(30), ceiling: Duration::from_secs(900), factor: 10.0 },
    work: ProgressPolicy { floor: Duration::from_secs(10), ceiling: Duration::from_secs(600), factor: 8.0 },
    frozen: Duration::from_secs(5),
};

/// A machine with a clock that ticks as the shell does.
struct Bench {
    life: LifeCycle,
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        Self { life: LifeCycle::new(POLICY), now: Duration::ZERO }
    }

    fn on(&mut self, event: Event) -> Option<Action> {
        self.life.on(self.now, event)
    }

    /// Ticks four times a second for `seconds`, or until something is to be done.
    fn pass(&mut self, seconds: f64) -> Option<Action> {
        let end = self.now + Duration::from_secs_f64(seconds);
        while self.now < end {
            self.now += Duration::from_millis(250);
            if let Some(action) = self.on(Event::Tick) {
                return Some(action);
            }
        }
        None
    }

    fn spawned() -> Self {
        let mut bench = Self::new();
        bench.on(Event::Start);
        assert_eq!(bench.pass(1.0), Some(Action::Spawn));
        bench
    }

    fn ready() -> Self {
        let mut bench = Self::spawned();
        bench.on(Event::Hello);
        bench.on(Event::Loading);
        bench.on(Event::Loaded);
        assert_eq!(bench.life.state(), ChildState::Ready);
        bench
    }

    /// Does jobs that take `seconds` each, all of the same size.
    fn jobs(&mut self, count: u32, seconds: f64) {
        for _ in 0..count {
            self.on(Event::Work(100));
            assert_eq!(self.pass(seconds), None);
            (0..16).for_each(|_| assert_eq!(self.on(Event::Advanced), None));
            self.on(Event::Idle);
        }
    }
}

#[test]
fn a_start_waits_its_turn() {
    let mut bench = Bench::new();
    assert_eq!(bench.pass(5.0), None, "nobody wants it yet");
    bench.on(Event::Start);
    assert_eq!(bench.life.wait(bench.now), Some(POLICY.stagger));
    assert_eq!(bench.pass(0.25), None);
    assert_eq!(bench.pass(0.25), Some(Action::Spawn));
}

#[test]
fn waits_double_up_to_the_longest_and_start_anew_after_a_stable_life() {
    let mut bench = Bench::spawned();
    let mut waits = Vec::new();
    for _ in 0..7 {
        assert_eq!(bench.on(Event::Gone(DeathClass::Killed, 0.0)), None);
        let wait = bench.life.wait(bench.now).unwrap();
        waits.push(wait.as_millis());
        assert_eq!(bench.pass(wait.as_secs_f64()), Some(Action::Spawn));
    }
    assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16_000]);
    bench.on(Event::Hello);
    assert_eq!(bench.pass(60.0), None);
    assert_eq!(bench.on(Event::Gone(DeathClass::Killed, 1.0)), None);
    assert_eq!(bench.life.state(), ChildState::Backoff(1));
    assert_eq!(bench.life.wait(bench.now), Some(Duration::from_micros(312_500)));
}

#[test]
fn a_long_load_is_no_stable_life() {
    let mut bench = Bench::spawned();
    bench.on(Event::Hello);
    bench.on(Event::Gone(DeathClass::Killed, 0.0));
    bench.pass(1.0);
    assert_eq!(bench.pass(59.0), None, "it says nothing");
    bench.on(Event::Gone(DeathClass::Failed(1), 0.0));
    assert_eq!(bench.life.state(), ChildState::Backoff(2));
}

#[test]
fn the_eighth_death_in_five_minutes_quarantines_and_a_stranger_on_the_gpu_does_not() {
    let mut bench = Bench::spawned();
    for _ in 0..20 {
        assert_eq!(bench.on(Event::Gone(DeathClass::GpuHeld, 0.0)), None);
        assert_eq!(bench.life.wait(bench.now), Some(POLICY.restart.longest));
        assert_eq!(bench.pass(31.0), Some(Action::Spawn));
    }
    for _ in 0..20 {
        assert_eq!(bench.on(Event::Gone(DeathClass::HostDisk, 0.0)), None);
        assert_eq!(bench.pass(31.0), Some(Action::Spawn));
    }
    let mut bench = Bench::spawned();
    for _ in 0..7 {
        assert_eq!(bench.on(Event::Gone(DeathClass::Killed, 0.0)), None);
        assert_eq!(bench.pass(31.0), Some(Action::Spawn));
    }
    assert_eq!(bench.on(Event::Gone(DeathClass::Killed, 0.0)), Some(Action::Quarantine));
    assert_eq!(bench.pass(1000.0), None);
    assert_eq!(bench.on(Event::Start), None);
    assert_eq!(bench.on(Event::Stop), Some(Action::Rest));
    assert_eq!(bench.life.state(), ChildState::Quarantined, "the operator still sees it");
}

#[test]
fn the_three_probes_have_limits_of_their_own() {
    let mut bench = Bench::spawned();
    assert_eq!(bench.pass(61.0), Some(Action::Kill(Overdue::Hello(POLICY.start_up))));

    let mut bench = Bench::spawned();
    bench.on(Event::Hello);
    assert_eq!(bench.pass(3600.0), None, "an idle child without weights is no trouble");
    bench.on(Event::Loading);
    assert_eq!(bench.pass(899.0), None, "a cold load may take long");
    assert_eq!(bench.pass(2.0), Some(Action::Kill(Overdue::Load(POLICY.cold_load))));

    let mut bench = Bench::ready();
    for _ in 0..3 {
        bench.on(Event::Loading);
        assert_eq!(bench.pass(1.0), None);
        bench.on(Event::Loaded);
    }
    bench.on(Event::Loading);
    assert_eq!(bench.pass(40.0), Some(Action::Kill(Overdue::Load(POLICY.warm_load.floor))), "a warm one may not");
}

#[test]
fn work_that_stands_still_is_noticed_by_what_is_usual() {
    let mut bench = Bench::ready();
    bench.on(Event::Work(100));
    assert_eq!(bench.pass(599.0), None, "nothing was measured yet");
    assert!(matches!(bench.pass(2.0), Some(Action::Kill(Overdue::Work(..)))));

    let mut bench = Bench::ready();
    bench.jobs(5, 0.5);
    assert_eq!(bench.life.moves(), 80);
    bench.on(Event::Work(100));
    let before = bench.now;
    assert!(matches!(bench.pass(60.0), Some(Action::Kill(Overdue::Work(_, limit))) if limit == POLICY.work.floor));
    assert!(bench.now - before <= Duration::from_millis(10_500));
    assert_eq!(bench.life.state(), ChildState::Stopping);
    bench.on(Event::Gone(DeathClass::Hang, 0.0));
    assert_eq!(bench.life.limit(), POLICY.work.floor, "what was measured outlives the life");
}

#[test]
fn a_stopped_process_is_noticed_while_idle_and_one_that_goes_on_is_left() {
    let mut bench = Bench::ready();
    bench.on(Event::Seen { frozen: true });
    assert_eq!(bench.pass(4.0), None);
    bench.on(Event::Seen { frozen: false });
    assert_eq!(bench.pass(60.0), None);
    bench.on(Event::Seen { frozen: true });
    assert!(matches!(bench.pass(6.0), Some(Action::Kill(Overdue::Frozen(_)))));
}

#[test]
fn time_that_the_supervisor_lost_is_charged_to_nobody() {
    let mut bench = Bench::ready();
    bench.jobs(5, 0.5);
    bench.on(Event::Work(100));
    bench.now += Duration::from_secs(3600);
    assert_eq!(bench.pass(9.0), None, "it was the supervisor that did not run");
    assert!(bench.pass(2.0).is_some());
}

#[test]
fn a_stop_in_back_off_rests_at_once_and_one_in_mid_life_after_the_end() {
    let mut bench = Bench::ready();
    bench.on(Event::Gone(DeathClass::Killed, 0.0));
    assert_eq!(bench.on(Event::Stop), Some(Action::Rest));
    assert_eq!(bench.pass(100.0), None);
    let mut bench = Bench::ready();
    assert_eq!(bench.on(Event::Stop), Some(Action::End));
    assert_eq!(bench.on(Event::Stop), None);
    assert_eq!(bench.on(Event::Gone(DeathClass::Stopped, 0.0)), Some(Action::Rest));
    assert_eq!(bench.life.state(), ChildState::Absent);
    assert_eq!(bench.on(Event::Start), None, "stopped is for good");
    assert_eq!(bench.pass(100.0), None);
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u32),
    On(Event),
}

fn class() -> impl Strategy<Value = DeathClass> {
    prop_oneof![
        6 => Just(DeathClass::Killed),
        2 => Just(DeathClass::Hang),
        2 => Just(DeathClass::HostMemory),
        2 => Just(DeathClass::GpuHeld),
        2 => Just(DeathClass::HostDisk),
        1 => Just(DeathClass::GpuLost),
        1 => Just(DeathClass::Stopped),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let event = prop_oneof![
        2 => Just(Event::Start),
        2 => Just(Event::Hello),
        2 => Just(Event::Loading),
        2 => Just(Event::Loaded),
        3 => (1u64..100_000).prop_map(Event::Work),
        3 => Just(Event::Advanced),
        2 => Just(Event::Idle),
        1 => any::<bool>().prop_map(|frozen| Event::Seen { frozen }),
        1 => Just(Event::Failing),
        5 => (class(), 0.0..1.0f64).prop_map(|(class, jitter)| Event::Gone(class, jitter)),
    ];
    prop_oneof![2 => (1u32..1200).prop_map(Step::Pass), 3 => event.prop_map(Step::On)]
}

/// What an observer outside would write down.
#[derive(Default)]
struct Account {
    lives: bool,
    ended: bool,
    ready: Option<Duration>,
    deaths: Vec<Duration>,
    actions_after_end: u32,
}

impl Account {
    /// Whether the naive rule asks for quarantine at this death.
    fn dies(&mut self, now: Duration, class: DeathClass) -> bool {
        if self.ready.take().is_some_and(|ready| now - ready >= POLICY.restart.stable) {
            self.deaths.clear();
        }
        self.deaths.extend(class.counts().then_some(now));
        let recent = self.deaths.iter().filter(|death| now - **death <= POLICY.restart.period).count();
        class.reaction() == Reaction::Quarantine || recent >= POLICY.restart.intensity
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any order of events, sensible or not.
    #[test]
    fn never_two_lives_waits_bounded_quarantine_exactly_by_the_rule_and_silence_after_the_end(
        steps in proptest::collection::vec(step(), 1..150),
        stop_at in proptest::option::of(0usize..150),
    ) {
        let mut bench = Bench::new();
        bench.on(Event::Start);
        let mut account = Account::default();
        for (place, step) in steps.into_iter().enumerate() {
            let stopping = stop_at == Some(place);
            let step = if stopping { Step::On(Event::Stop) } else { step };
            let before = bench.life.state();
            let action = match step {
                Step::Pass(quarters) => bench.pass(f64::from(quarters) / 4.0),
                Step::On(event) => {
                    let action = bench.on(event);
                    if event == Event::Hello && before == ChildState::Starting && bench.life.state() == ChildState::Ready {
                        account.ready.get_or_insert(bench.now);
                    }
                    if let Event::Gone(class, _) = event && before.lives() {
                        account.lives = false;
                        let condemned = account.dies(bench.now, class);
                        let wanted = if account.ended || bench.life.stopped { Some(Action::Rest) }
                            else { condemned.then_some(Action::Quarantine) };
                        prop_assert_eq!(action, wanted);
                    }
                    action
                }
            };
            if account.ended {
                account.actions_after_end += u32::from(action.is_some() && !stopping);
            }
            match action {
                Some(Action::Spawn) => {
                    prop_assert!(!account.lives, "two lives at once");
                    account.lives = true;
                    account.ready = None;
                }
                Some(Action::Rest | Action::Quarantine) => {
                    prop_assert!(!account.lives, "at rest with a living child");
                    account.ended = true;
                }
                Some(Action::End | Action::Kill(_)) => {
                    prop_assert!(account.lives);
                    prop_assert_eq!(bench.life.state(), ChildState::Stopping);
                }
                None => {}
            }
            prop_assert_eq!(account.lives, bench.life.state().lives());
            let wait = bench.life.wait(bench.now);
            prop_assert!(wait.is_none_or(|wait| wait <= POLICY.restart.longest.mul_f64(1.25)), "{:?}", wait);
            // Somebody who waits has something to wait for.
            let waits = matches!(bench.life.state(), ChildState::Backoff(_));
            prop_assert!(!waits || wait.is_some());
        }
        prop_assert_eq!(account.actions_after_end, 0);
    }

    /// Whatever is pending is noticed within its limit and one tick, and not before.
    #[test]
    fn standing_still_is_noticed_in_time(seconds in 1u32..40, jobs in 1u32..30, units in 1u64..1000) {
        let mut bench = Bench::ready();
        bench.jobs(jobs, f64::from(seconds) / 4.0);
        bench.on(Event::Work(units));
        let (limit, before) = (bench.life.limit(), bench.now);
        prop_assert!(limit >= POLICY.work.floor && limit <= POLICY.work.ceiling);
        let noticed = matches!(bench.pass(700.0), Some(Action::Kill(Overdue::Work(..))));
        prop_assert!(noticed);
        let took = bench.now - before;
        prop_assert!(took > limit && took <= limit + Duration::from_millis(500), "{:?} for {:?}", took, limit);
    }
}
