//! The schedule in virtual time.

use proptest::prelude::*;

use super::*;

const CLOCKWORK: Clockwork = Clockwork { window: 30, deadline: 356.0 };

fn rules(gate: Admission) -> Rules {
    Rules {
        gate,
        confidence: 0.5,
        safety_blocks: 3.0,
        groups_in_flight: GroupsInFlight::Fixed(4),
        max_concurrent: 4096,
        proof_workers: 2,
    }
}

/// Runs one group from `now` on: its completions end after `seconds`, its proof two seconds later.
fn group(schedule: &mut Schedule, index: i64, now: f64, seconds: f64) {
    schedule.begin(index, &CLOCKWORK, now, 0);
    schedule.prompted(index, 100);
    for place in 0..16 {
        schedule.completed(index, now + seconds * f64::from(place + 1) / 16.0, 20 * (place + 1));
    }
    schedule.kept(index, now + seconds + 2.0);
}

fn experienced() -> Schedule {
    let mut schedule = Schedule::new(rules(Admission::Deadline), 12.0).unwrap();
    for index in 0..30 {
        schedule.open(&CLOCKWORK, 0.0);
        group(&mut schedule, index, 0.0, 40.0);
    }
    schedule.uploaded(3.0, 3.0);
    schedule.open(&CLOCKWORK, 0.0);
    schedule
}

fn last_admission(schedule: &Schedule) -> f64 {
    let block = |now: f64| 30 + (now / 12.0) as u64;
    (0..3560).map(|tenth| f64::from(tenth) / 10.0).rfind(|now| schedule.admits(&CLOCKWORK, block(*now), *now, 0) > 0).unwrap()
}

#[test]
fn a_fast_uplink_leaves_half_a_block_and_a_file_that_left_before_time_for_all_of_it() {
    let mut schedule = Schedule::new(rules(Admission::Deadline), 12.0).unwrap();
    (0..100).for_each(|_| schedule.uploaded(0.05, 0.05));
    let free = CLOCKWORK.deadline - schedule.closing_seconds(0) - schedule.cut_off(&CLOCKWORK, 0);
    assert!((free - 6.0).abs() < 1e-6, "{free}");
    let mut schedule = Schedule::new(rules(Admission::Deadline), 12.0).unwrap();
    (0..100).for_each(|_| schedule.uploaded(0.5, 20.0));
    let free = CLOCKWORK.deadline - schedule.cut_off(&CLOCKWORK, 0);
    assert!(free > 20.5, "{free}");
}

#[test]
fn a_window_is_worth_opening_until_a_first_group_would_be_too_late() {
    // Fresh: a group takes six blocks, an upload one, and three are spare.
    let fresh = Schedule::new(rules(Admission::Deadline), 12.0).unwrap();
    assert!((fresh.useful_until(&CLOCKWORK, 0) - 240.0).abs() < 1e-6, "{}", fresh.useful_until(&CLOCKWORK, 0));
    let experienced = experienced();
    let until = experienced.useful_until(&CLOCKWORK, 0);
    assert!((until - (experienced.cut_off(&CLOCKWORK, 16) - 42.0)).abs() < 1e-6, "{until}");
    assert!(experienced.useful_until(&CLOCKWORK, 4000) < until, "what is durable takes time to leave");
}

#[test]
fn with_nothing_known_and_by_choice_the_references_gate_decides() {
    for gate in [Admission::Deadline, Admission::Reference] {
        let mut schedule = Schedule::new(rules(gate), 12.0).unwrap();
        schedule.open(&CLOCKWORK, 0.0);
        // 6 blocks of generation, 1 of upload, 3 of safety: a group starts at offset 0..19 (grail-miner 4).
        assert!(schedule.admits(&CLOCKWORK, 49, 235.0, 0) > 0);
        assert_eq!(schedule.admits(&CLOCKWORK, 50, 240.0, 0), 0);
    }
    // 40, 60, 100, 360 s: 8, 8, 9, 14 blocks, with an upload of one block.
    let mut schedule = Schedule::new(rules(Admission::Reference), 12.0).unwrap();
    for (index, (seconds, needed)) in [(40.0, 8), (60.0, 8), (100.0, 9), (360.0, 14)].into_iter().enumerate() {
        schedule.open(&CLOCKWORK, 0.0);
        group(&mut schedule, index as i64, 0.0, seconds - 2.0);
        let offset = 30 - needed;
        assert_eq!(schedule.admits(&CLOCKWORK, 30 + offset, 0.0, 0), 0, "{seconds}");
        assert!(schedule.admits(&CLOCKWORK, 30 + offset - 1, 0.0, 0) > 0, "{seconds}");
    }
}

#[test]
fn admission_ends_when_a_group_would_come_too_late_and_not_before() {
    let mut schedule = experienced();
    // One group a window is always tried; this is about the others.
    schedule.begun = 1;
    // 40 s of generation, 2 of proof, 36 of safety.
    let last = last_admission(&schedule);
    assert!((270.0..290.0).contains(&last), "{last}");
    schedule.rules.safety_blocks = 0.0;
    let later = last_admission(&schedule);
    assert!(later > last + 10.0 && later + 42.0 <= schedule.cut_off(&CLOCKWORK, 16), "{later}");
}

#[test]
fn a_place_is_free_when_sixteen_requests_fit_and_proofs_are_not_behind() {
    let mut schedule = experienced();
    assert_eq!(schedule.admits(&CLOCKWORK, 30, 1.0, 0), 4);
    (0..4).for_each(|index| schedule.begin(index, &CLOCKWORK, 1.0, 0));
    assert_eq!(schedule.admits(&CLOCKWORK, 30, 1.0, 0), 0);
    // Stragglers hold up nobody: four of each group's completions make room for another group.
    for index in 0..4 {
        (0..4).for_each(|_| _ = schedule.completed(index, 5.0, 50));
    }
    assert_eq!(schedule.admits(&CLOCKWORK, 30, 5.0, 0), 1);
    for index in 0..4 {
        (0..12).for_each(|_| _ = schedule.completed(index, 6.0, 60));
    }
    assert!((0..4).all(|index| schedule.is_generated(index)));
    (4..8).for_each(|index| schedule.begin(index, &CLOCKWORK, 6.0, 0));
    for index in 4..8 {
        (0..16).for_each(|_| _ = schedule.completed(index, 9.0, 60));
    }
    assert_eq!(schedule.admits(&CLOCKWORK, 30, 9.0, 0), 0, "eight groups wait for their proofs: four and twice the workers");
    schedule.kept(0, 9.5);
    assert!(schedule.admits(&CLOCKWORK, 30, 9.5, 0) > 0);
}

#[test]
fn a_group_that_cannot_end_in_time_is_given_up_and_others_are_not() {
    let mut schedule = experienced();
    schedule.open(&CLOCKWORK, 0.0);
    schedule.begin(1, &CLOCKWORK, 270.0, 0);
    assert_eq!(schedule.hopeless(&CLOCKWORK, 272.0, 0), Vec::<i64>::new());
    schedule.begin(2, &CLOCKWORK, 330.0, 0);
    assert_eq!(schedule.hopeless(&CLOCKWORK, 331.0, 0), [2]);
    schedule.dropped(2, 331.0, false);
    assert_eq!(schedule.clock.load, 16);
}

#[test]
fn a_host_that_was_slow_once_may_try_again() {
    let mut schedule = Schedule::new(rules(Admission::Deadline), 12.0).unwrap();
    schedule.open(&CLOCKWORK, 0.0);
    (0..12).for_each(|index| group(&mut schedule, index, 0.0, 3000.0));
    schedule.open(&CLOCKWORK, 0.0);
    assert!(schedule.admits(&CLOCKWORK, 30, 1.0, 0) > 0);
    schedule.begin(99, &CLOCKWORK, 1.0, 0);
    assert_eq!(schedule.admits(&CLOCKWORK, 30, 1.0, 0), 0, "one group shows it");
}

#[derive(Debug, Clone)]
enum Step {
    Pass(f64),
    Begin,
    Complete(usize, u32),
    Keep(usize),
    Drop(usize),
    Upload(f64),
    Load(f64, f64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0.0_f64..20.0).prop_map(Step::Pass),
        Just(Step::Begin),
        (0_usize..40, 1_u32..4000).prop_map(|(at, tokens)| Step::Complete(at, tokens)),
        (0_usize..40).prop_map(Step::Keep),
        (0_usize..40).prop_map(Step::Drop),
        (0.0_f64..60.0).prop_map(Step::Upload),
        (0.0_f64..2000.0, 0.0_f64..2000.0).prop_map(|(running, queued)| Step::Load(running, queued)),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_bounds_hold(steps in proptest::collection::vec(step(), 0..600), auto: bool) {
        let groups_in_flight = if auto { GroupsInFlight::Auto } else { GroupsInFlight::Fixed(3) };
        let mut schedule = Schedule::new(Rules { groups_in_flight, max_concurrent: 96, ..rules(Admission::Deadline) }, 12.0).unwrap();
        schedule.open(&CLOCKWORK, 0.0);
        let (mut now, mut next) = (0.0, 0);
        for step in steps {
            let at = |schedule: &Schedule, place: usize| schedule.flights.keys().nth(place % schedule.flights.len().max(1)).copied();
            match step {
                Step::Pass(seconds) => now += seconds,
                Step::Begin => {
                    let block = 30 + (now / 12.0) as u64;
                    let places = schedule.admits(&CLOCKWORK, block, now, 0);
                    prop_assert!(now < CLOCKWORK.deadline || places == 0, "nothing begins after the deadline");
                    for _ in 0..places {
                        schedule.begin(next, &CLOCKWORK, now, 0);
                        next += 1;
                    }
                }
                Step::Complete(place, tokens) => _ = at(&schedule, place).map(|index| schedule.completed(index, now, tokens)),
                Step::Keep(place) => _ = at(&schedule, place).map(|index| schedule.kept(index, now)),
                Step::Drop(place) => _ = at(&schedule, place).map(|index| schedule.dropped(index, now, true)),
                Step::Upload(seconds) => schedule.uploaded(seconds, seconds),
                Step::Load(running, queued) => _ = schedule.server_said(now, ServerLoad { running, queued, cache_use: 0.5 }),
            }
            let requests: usize = schedule.flights.values().map(Flight::requests).sum();
            prop_assert_eq!(schedule.clock.load, requests, "the load is that of the groups under way");
            prop_assert!(requests <= 96.max(schedule.choice().groups * 16));
            prop_assert!(schedule.cut_off(&CLOCKWORK, 16) < CLOCKWORK.deadline);
            prop_assert!((1..=6).contains(&schedule.choice().groups));
        }
    }
}
