//! A node that is read from, and everything that may go wrong with it.

use std::time::Duration;

use crate::common::{connect, credentials, eventually, key, patience, setup, vectors};
use grail_chain::node::{Endpoints, Node, NodeError};
use grail_chain::patience::Patience;
use grail_node::{Runtime, TestNode};

async fn head_is(node: &Node, number: u64) -> bool {
    node.head().await.is_ok_and(|head| head.number == number)
}

#[tokio::test]
async fn a_subnet_is_read_at_one_finalised_block() {
    let chain = TestNode::start(setup()).await;
    let node = connect(&chain, patience());
    let alice = key("//Alice").public_key();
    let subnet = node.subnet(81, &alice).await.unwrap();
    assert!(subnet.exists && subnet.uid == Some(1));
    assert_eq!(subnet.trainer, Some(key("//Trainer").public_key()));
    assert_eq!(subnet.trainer_registration.unwrap().text, Some(credentials('t')));
    assert_eq!(subnet.own_registration, None);
    let stranger = node.subnet(81, &key("//Eve").public_key()).await.unwrap();
    assert_eq!(stranger.uid, None);
    let nowhere = node.subnet(7, &alice).await.unwrap();
    assert!(!nowhere.exists && nowhere.trainer.is_none() && nowhere.uid.is_none());
    assert_eq!(chain.requests("state_queryStorageAt"), 3, "one request for the set");
}

#[tokio::test]
async fn blocks_have_hashes_and_times_and_future_ones_none() {
    let chain = TestNode::start(setup()).await;
    let node = connect(&chain, patience());
    eventually("the head", || head_is(&node, 40)).await;
    let hash = node.block_hash(30).await.unwrap().unwrap();
    assert_eq!(hash, chain.hash(30));
    assert_eq!(node.block_hash(1000).await.unwrap(), None);
    let header = node.header(&hash).await.unwrap().unwrap();
    assert_eq!((header.number, header.parent), (30, chain.hash(29)));
    assert!(node.timestamp(&hash).await.unwrap().unwrap() > 1e9);
    assert_eq!(node.finalized().await.unwrap(), (chain.hash(39), 39));
    chain.fork(12);
    assert_ne!(node.block_hash(30).await.unwrap().unwrap(), hash, "a fork changes the hash of the window's first block");
}

#[tokio::test]
async fn heads_come_by_subscription_by_polling_and_by_polling_beside_a_silent_subscription() {
    for fault in ["none", "no subscription", "silent"] {
        let chain = TestNode::start(setup()).await;
        chain.faults(|faults| match fault {
            "no subscription" => _ = faults.unknown.insert("chain_subscribeNewHeads"),
            "silent" => faults.silent_heads = true,
            _ => {}
        });
        let node = connect(&chain, patience());
        eventually("the first head", || head_is(&node, 40)).await;
        for number in 41..44 {
            chain.make_block();
            eventually(fault, || head_is(&node, number)).await;
        }
    }
}

#[tokio::test]
async fn a_cut_or_garbled_connection_is_made_anew_with_the_same_endpoint() {
    let chain = TestNode::start(setup()).await;
    let node = connect(&chain, patience());
    eventually("the head", || head_is(&node, 40)).await;
    for garbled in [false, true] {
        let before = chain.requests("state_getRuntimeVersion");
        if garbled {
            chain.faults(|faults| faults.garbage = true);
            chain.make_block();
        } else {
            chain.drop_connections();
        }
        eventually("a new connection", || async { chain.requests("state_getRuntimeVersion") > before }).await;
        let height = chain.height();
        eventually("the head again", || head_is(&node, height)).await;
        assert_eq!(node.identity().await.unwrap().0.reveal(), chain.endpoint());
    }
    assert_eq!(chain.requests("state_call"), 1, "metadata of the same runtime is fetched once");
}

#[tokio::test]
async fn a_read_survives_the_end_of_its_connection() {
    let chain = TestNode::start(setup()).await;
    let node = connect(&chain, patience());
    eventually("the head", || head_is(&node, 40)).await;
    chain.faults(|faults| _ = faults.late.insert("chain_getHeader", Duration::from_millis(300)));
    let (read, ()) = tokio::join!(node.finalized(), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        chain.drop_connections();
        chain.faults(|faults| faults.late.clear());
    });
    // Either asked again on the new connection, or told at once that there is none yet.
    assert!(matches!(&read, Ok((_, 39)) | Err(NodeError::Down(_))), "{read:?}");
    eventually("an answer", || async { node.finalized().await.is_ok_and(|(_, number)| number == 39) }).await;
}

#[tokio::test]
async fn another_network_at_the_same_address_is_refused_and_named() {
    let chain = TestNode::start(setup()).await;
    let node = connect(&chain, patience());
    eventually("the head", || head_is(&node, 40)).await;
    chain.faults(|faults| faults.genesis = Some([9; 32]));
    chain.drop_connections();
    let named = || async {
        let error = node.head().await.map(|_| ()).map_err(|error| error.to_string());
        error.is_err_and(|error| error.contains("belongs to another network") && error.contains("0x0909"))
    };
    eventually("the refusal", named).await;
    chain.faults(|faults| faults.genesis = None);
    eventually("the right network", || head_is(&node, 40)).await;
}

#[tokio::test]
async fn a_head_that_stands_still_ends_the_connection_and_is_told() {
    let chain = TestNode::start(setup()).await;
    let node = connect(&chain, Patience { silence: Duration::from_secs(1), ..patience() });
    eventually("the head", || head_is(&node, 40)).await;
    eventually("the standstill", || async { node.head().await.is_err() }).await;
    let before = chain.requests("chain_subscribeNewHeads");
    eventually("a new connection", || async { chain.requests("chain_subscribeNewHeads") > before }).await;
    chain.make_block();
    eventually("the next head", || head_is(&node, 41)).await;
}

#[tokio::test]
async fn answers_that_do_not_come_open_the_circuit() {
    let chain = TestNode::start(setup()).await;
    let slow = Patience { request: Duration::from_millis(700), tries: 1, ..patience() };
    let node = connect(&chain, slow);
    eventually("the head", || head_is(&node, 40)).await;
    chain.faults(|faults| _ = faults.late.insert("system_accountNextIndex", Duration::from_secs(30)));
    let late = node.next_nonce(key("//Alice").address()).await;
    assert!(matches!(late, Err(NodeError::Late { method: "system_accountNextIndex", .. })), "{late:?}");
    // Now nothing is answered at all; a new connection does not get so far as to be one.
    chain.faults(|faults| faults.unanswered.extend(["system_accountNextIndex", "chain_getBlockHash", "chain_getHeader"]));
    let second = node.next_nonce(key("//Alice").address()).await;
    assert!(second.is_err());
    eventually("the open circuit", || async { matches!(node.head().await, Err(NodeError::Down(_))) }).await;
    let asked = chain.requests("system_accountNextIndex");
    assert!(matches!(node.next_nonce(key("//Alice").address()).await, Err(NodeError::Down(_))));
    assert_eq!(chain.requests("system_accountNextIndex"), asked, "no request goes out while the circuit is open");
    chain.faults(|faults| {
        faults.unanswered.clear();
        faults.late.clear();
    });
    eventually("the closed circuit", || async { node.next_nonce(key("//Alice").address()).await == Ok(0) }).await;
}

#[tokio::test]
async fn a_second_endpoint_takes_over() {
    let chain = TestNode::start(setup()).await;
    let gone = TestNode::start(setup()).await;
    let addresses = vec![gone.endpoint().into(), chain.endpoint().into()];
    let node = Node::connect(Endpoints { addresses, genesis: None }, patience());
    eventually("the first endpoint", || async {
        node.identity().await.is_ok_and(|(endpoint, _, _)| endpoint.reveal() == gone.endpoint())
    })
    .await;
    drop(gone);
    eventually("the second endpoint", || async {
        chain.make_block();
        node.identity().await.is_ok_and(|(endpoint, _, _)| endpoint.reveal() == chain.endpoint())
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_is_noticed_and_its_metadata_fetched() {
    let chain = TestNode::start(setup()).await;
    let node = connect(&chain, patience());
    eventually("the first runtime", || async { node.identity().await.is_ok_and(|(_, _, runtime)| runtime.spec_version == 218) })
        .await;
    chain.upgrade(Runtime::read(&vectors().join("chain/metadata_365_v16.scale.gz"), 365));
    chain.make_block();
    eventually("the second runtime", || async { node.identity().await.is_ok_and(|(_, _, runtime)| runtime.spec_version == 365) })
        .await;
    assert!(
        chain.requests("state_getMetadata") == 1 && chain.requests("state_call") == 2,
        "14 for the old one, 16 for the new one"
    );
    assert_eq!(node.subnet(81, &key("//Alice").public_key()).await.unwrap().uid, Some(1), "reading goes on");
}
