//! The real supervisor on the network's chain: a node with the real metadata, verified extrinsics, and forks.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use grail_chain::node::Endpoints;
use grail_chain::patience::Patience;
use grail_node::{BlockClock, Setup, TestNode};
use grail_protocol::keys::Hotkey;
use grail_subnet::buckets::Buckets;
use grail_subnet::chain::{BucketCommitment, Chain, NetworkChain, join};
use grail_tests::testnet::{self, key};
use grail_tests::{Host, one_at_a_time, workspace};
use serde_json::Value;

const END: Duration = Duration::from_secs(180);
/// Nobody listens there: a relay that fails at once.
const NO_RELAY: &str = "beacon.relays=http://127.0.0.1:1";

fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

/// A registered host on a node, with a checkpoint.
fn registered(runtime: &tokio::runtime::Runtime) -> (Host, TestNode) {
    let (host, node) = testnet::registered(runtime, Host::new(0.7, 6.0));
    testnet::publish(&host, "checkpoint-a", &[]);
    (host, node)
}

#[test]
fn a_window_is_mined_on_a_network_through_a_cut_and_accepted() {
    let _turn = one_at_a_time();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (host, node) = registered(&runtime);
    let mut miner = host.start(&["run", "--windows", "1", "--set", NO_RELAY]);
    host.await_status("a finished group", &mut miner, 120, |status| number(status, "/window/spooled") >= 1);
    node.drop_connections();
    let finished = miner.finish(END);
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    assert_eq!(host.uploaded().len(), 1, "{}\n{}", finished.stdout, finished.stderr);
    let committed = node.commitment(&key("//Alice")).expect("the miner's bucket is published");
    assert!(committed.starts_with("grail-miner ") && !finished.stderr.contains("local-read-secret"), "{}", finished.stderr);
    assert_eq!(node.requests("author_submitAndWatchExtrinsic"), 1);
    assert!(finished.stderr.contains("No beacon: the block hash alone"), "{}", finished.stderr);
    let validated = host.run(&["validate", "--test-mode", "--last", "1", "--all", "--json"]);
    assert_eq!(validated.code, 0, "{}\n{}", validated.stdout, validated.stderr);
    let verdict: Value = serde_json::from_str(validated.stdout.lines().next().unwrap()).unwrap();
    assert!(verdict["valid_count"] == verdict["checked_count"] && number(&verdict, "/checked_count") >= 16, "{verdict:#}");
}

#[test]
fn rows_of_a_block_that_was_forked_away_are_not_uploaded() {
    let _turn = one_at_a_time();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (host, node) = registered(&runtime);
    let mut miner = host.start(&["run", "--windows", "1", "--no-drand"]);
    let status = host.await_status("a finished group", &mut miner, 120, |status| number(status, "/window/spooled") >= 1);
    node.fork(node.height() + 1 - number(&status, "/window/window"));
    let finished = miner.finish(END);
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    let status = host.status();
    let held = status["finished"].as_array().unwrap().iter().find(|window| window["outcome"] == "held back");
    let reason = held.and_then(|window| window["reason"].as_str()).unwrap_or_default();
    assert!(reason.contains("the chain was reorganised"), "{status:#}");
    assert_eq!(host.uploaded().len(), 0);
}

#[test]
fn the_trainers_bucket_is_waited_for_and_never_replaced_by_our_own() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut setup = Setup::new(&workspace().join("tests/vectors"));
        setup.clock = Some(BlockClock { genesis: grail_tests::now() - 8.0, seconds: 0.2 });
        setup.members = vec![key("//Trainer"), key("//Alice")];
        let node = TestNode::start(setup).await;
        let endpoints = Endpoints { addresses: vec![node.endpoint().into()], genesis: None };
        let chain: Arc<dyn Chain> = Arc::new(NetworkChain::connect(endpoints, 81, 0.2, Patience::default()));
        let hotkey = Arc::new(Hotkey::from_uri("//Alice").unwrap());
        let bucket = |account: &str| BucketCommitment { account_id: account.into(), ..Buckets::local_trainer() };
        let own = bucket("ours");
        let joining = tokio::spawn(async move { join(&chain, &hotkey, &own, 81).await });
        let end = Instant::now() + END;
        while node.requests("state_queryStorageAt") < 4 {
            assert!(Instant::now() < end, "the trainer is looked for again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!joining.is_finished() && node.commitment(&key("//Alice")).is_some_and(|text| text.starts_with("ours ")));
        node.commit(&key("//Trainer"), &bucket("theirs").encode().unwrap());
        let joined = tokio::time::timeout(END, joining).await.unwrap().unwrap().unwrap();
        assert_eq!(joined.trainer, Hotkey::from_uri("//Trainer").unwrap().address());
        assert_eq!(joined.trainer_bucket, bucket("theirs"));
    });
}

#[test]
fn an_unregistered_hotkey_ends_with_1_and_the_command_that_registers() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = Host::new(1.0, 8.0);
    let node = testnet::node(&runtime, &host, &[]);
    let host = host.variable("BT_CHAIN_ENDPOINT", &node.endpoint());
    let finished = host.run(&["run", "--windows", "1"]);
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("btcli subnet register --netuid 81"), "{}", finished.stderr);
    let doctor = host.run(&["doctor"]);
    assert_eq!(doctor.code, 1, "{}", doctor.stderr);
    for part in ["FAILED    registration", "ok        chain", "ok        clock", "ok        trainer"] {
        assert!(doctor.stdout.contains(part), "{part:?} is missing in\n{}", doctor.stdout);
    }
    let elsewhere = host.run(&["run", "--windows", "1", "--set", "chain.netuid=7"]);
    assert!(elsewhere.code == 1 && elsewhere.stderr.contains("has no subnet 7"), "{}", elsewhere.stderr);
    assert_eq!(node.requests("author_submitAndWatchExtrinsic"), 0);
}
