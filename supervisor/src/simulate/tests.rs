//! Short simulations of the built-in host.

use super::*;

#[test]
fn the_same_seed_gives_the_same_windows_and_another_one_others() {
    let host = Host::read(host::DEFAULT).unwrap();
    let mean = |seed| {
        let mut host = host.clone();
        host.schedule.batches.clear();
        simulate(&host, 2, seed).unwrap().scheduled.mean
    };
    assert_eq!(mean(1), mean(1));
    assert_ne!(mean(1), mean(2));
}

#[test]
fn slow_proofs_and_a_slow_server_are_told_apart() {
    let mut host = Host::read(host::DEFAULT).unwrap();
    host.schedule.batches = vec![8];
    host.schedule.groups_in_flight = 24;
    host.failures = host::Failures { server: 0.0, worker: 0.0, upload: 0.0, ..host.failures };
    let text = |host: &Host| simulate(host, 3, 1).unwrap().to_string();
    let generation = text(&host);
    assert!(generation.contains("what limits: generation"), "{generation}");
    assert!(generation.contains("batches of 8 groups"), "{generation}");
    host.proof.tokens_per_second = 500.0;
    let proofs = text(&host);
    assert!(proofs.contains("what limits: the proof workers"), "{proofs}");
    host.proof.tokens_per_second = 50_000.0;
    host.generation.throughput = vec![(1.0, 1000.0), (500.0, 100_000.0)];
    assert!(text(&host).contains("what limits: nothing"), "{}", text(&host));
}

#[test]
fn no_file_is_late_and_the_schedule_beats_every_batch() {
    let mut host = Host::read(host::DEFAULT).unwrap();
    host.schedule.batches = vec![48, 72];
    host.schedule.groups_in_flight = 64;
    let summary = simulate(&host, 12, 3).unwrap();
    assert_eq!(summary.scheduled.late, 0);
    let (best, gain) = summary.gain().unwrap();
    assert!(gain > 1.1, "{} against {} of {}", summary.scheduled.mean, best.mean, best.name);
}
