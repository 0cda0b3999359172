//! Short simulations of the built-in host.

use super::*;

fn built_in() -> Host {
    let mut host = Host::read(host::DEFAULT).unwrap();
    host.failures = host::Failures { server: 0.0, worker: 0.0, upload: 0.0, ..host.failures };
    host.schedule.groups_in_flight = 64;
    host
}

#[test]
fn the_same_seed_gives_the_same_windows_and_another_one_others() {
    let host = built_in();
    let mean = |seed| scheduled(&host, 2, seed, &Meter::default()).unwrap().0.mean;
    assert_eq!(mean(1), mean(1));
    assert_ne!(mean(1), mean(2));
}

#[test]
fn what_limits_is_told_apart() {
    let limiting = |change: fn(&mut Host)| {
        let mut host = built_in();
        host.schedule.groups_in_flight = 24;
        change(&mut host);
        let ((scheduled, choice), remedied) =
            (scheduled(&host, 3, 1, &Meter::default()).unwrap(), remedied(&host, 3, 1, &Meter::default()).unwrap());
        Summary { host: &host, scheduled, batched: Vec::new(), choice, remedied }.to_string()
    };
    for (change, word) in [
        ((|_| ()) as fn(&mut Host), "what limits: generation"),
        (|host| host.proof.tokens_per_second = 500.0, "what limits: proofs"),
        (|host| host.generation.throughput = vec![(1.0, 1000.0), (500.0, 100_000.0)], "what limits: nothing"),
    ] {
        let text = limiting(change);
        assert!(text.contains(word), "{text}");
    }
}

/// The claim of the figures, on few windows: 1,000 take a minute.
#[test]
fn no_file_is_late_and_the_schedule_beats_the_best_batches_by_a_fifth() {
    let host = built_in();
    let (scheduled, _) = scheduled(&host, 8, 3, &Meter::default()).unwrap();
    let batches = best_batches(&host, 8, 4, 3, &Meter::default()).unwrap();
    assert_eq!(scheduled.late, 0);
    assert!(scheduled.mean > 1.2 * batches[0].mean, "{} against {} of {}", scheduled.mean, batches[0].mean, batches[0].name);
}
