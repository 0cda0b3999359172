//! A commitment is written once, and known to be written, whatever happens on the way.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{connect, credentials, eventually, key, limits, patience, setup, vectors};
use grail_chain::node::{Node, NodeError};
use grail_chain::publish::{PublishError, Published, publish};
use grail_node::{Runtime, TestNode};
use grail_protocol::keys::{Hotkey, KeyScheme};
use tokio_util::task::AbortOnDropHandle;

const SUBMIT: &str = "author_submitAndWatchExtrinsic";

/// A node that makes a block every 40 ms for as long as the handle lives.
async fn blocks(setup: grail_node::Setup) -> (Arc<TestNode>, Node, AbortOnDropHandle<()>) {
    let chain = Arc::new(TestNode::start(setup).await);
    let maker = chain.clone();
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(40)).await;
            maker.make_block();
        }
    });
    let node = connect(&chain, patience());
    (chain, node, AbortOnDropHandle::new(task))
}

async fn alice(node: &Node, text: &str) -> Result<Published, PublishError> {
    publish(node, &key("//Alice"), 81, text, &limits()).await
}

#[tokio::test]
async fn what_the_chain_holds_is_not_written_again() {
    let (chain, node, _blocks) = blocks(setup()).await;
    let text = credentials('a');
    assert_eq!(alice(&node, &text).await, Ok(Published::Written));
    assert_eq!(chain.commitment(&key("//Alice").public_key()), Some(text.clone()));
    assert_eq!(alice(&node, &text).await, Ok(Published::Already));
    assert_eq!(chain.requests(SUBMIT), 1);
}

#[tokio::test]
async fn inclusion_is_not_success_and_the_error_has_its_name() {
    let (chain, node, _blocks) = blocks(setup()).await;
    let eve = publish(&node, &key("//Eve"), 81, &credentials('e'), &limits()).await.unwrap_err();
    assert!(eve.to_string().contains("Commitments.AccountNotAllowedCommit") && !eve.is_passing(), "{eve}");
    alice(&node, &credentials('a')).await.unwrap();
    let soon = alice(&node, &credentials('b')).await.unwrap_err();
    assert!(soon.to_string().contains("CommitmentSetRateLimitExceeded") && soon.is_passing(), "{soon}");
    assert_eq!(chain.requests(SUBMIT), 3);
}

#[tokio::test]
async fn after_a_cut_the_chain_is_asked_and_nothing_is_sent_twice() {
    let (chain, node, _blocks) = blocks(setup()).await;
    eventually("the head", || async { node.head().await.is_ok() }).await;
    chain.faults(|faults| faults.cut_after_submission = true);
    assert_eq!(alice(&node, &credentials('a')).await, Ok(Published::Written));
    assert_eq!(chain.requests(SUBMIT), 1);
}

#[tokio::test]
async fn a_transaction_that_is_told_dropped_may_still_be_in() {
    let (chain, node, _blocks) = blocks(setup()).await;
    chain.faults(|faults| faults.tells_dropped = true);
    assert_eq!(alice(&node, &credentials('a')).await, Ok(Published::Written));
    assert_eq!(chain.requests(SUBMIT), 1);
}

#[tokio::test]
async fn a_transaction_in_a_block_that_is_forked_away_is_followed_into_the_next() {
    let mut setup = setup();
    setup.finality_lag = 3;
    let chain = Arc::new(TestNode::start(setup).await);
    let node = connect(&chain, patience());
    let (written, ()) = tokio::join!(alice_in(&node), async {
        eventually("the submission", || async { chain.requests(SUBMIT) == 1 }).await;
        chain.make_block();
        eventually("the look at the block's events", || async { chain.requests("chain_getBlock") >= 1 }).await;
        chain.fork(2);
        for _ in 0..8 {
            chain.make_block();
        }
    });
    assert_eq!(written, Ok(Published::Written));
    assert_eq!(chain.requests(SUBMIT), 1);
}

async fn alice_in(node: &Node) -> Result<Published, PublishError> {
    alice(node, &credentials('a')).await
}

#[tokio::test]
async fn each_runtime_signs_by_its_own_list_of_extensions() {
    let mut setup = setup();
    setup.rate_limit = 0;
    let (chain, node, _blocks) = blocks(setup).await;
    assert_eq!(alice(&node, &credentials('a')).await, Ok(Published::Written));
    for (file, spec, letter) in [("metadata_218_v14_renamed", 219, 'b'), ("metadata_365_v16", 365, 'c')] {
        chain.upgrade(Runtime::read(&vectors().join(format!("chain/{file}.scale.gz")), spec));
        let upgraded = || async { node.identity().await.is_ok_and(|(_, _, runtime)| runtime.spec_version == spec) };
        eventually("the upgrade", upgraded).await;
        assert_eq!(alice(&node, &credentials(letter)).await, Ok(Published::Written), "{file}");
        assert_eq!(chain.commitment(&key("//Alice").public_key()), Some(credentials(letter)));
    }
}

#[tokio::test]
async fn a_chain_that_cannot_be_read_is_not_written_to() {
    let chain = TestNode::start(setup()).await;
    let node = connect(&chain, patience());
    eventually("the head", || async { node.head().await.is_ok() }).await;
    chain.faults(|faults| _ = faults.unknown.insert("state_getStorage"));
    let refused = alice(&node, &credentials('a')).await.unwrap_err();
    assert!(matches!(refused, PublishError::Node(NodeError::Refused { method: "state_getStorage", .. })), "{refused}");
    assert_eq!(chain.requests(SUBMIT), 0);
}

#[tokio::test]
async fn an_ed25519_key_signs_nothing() {
    let chain = TestNode::start(setup()).await;
    let node = connect(&chain, patience());
    let hotkey = Hotkey::from_seed(KeyScheme::Ed25519, &[7; 32]).unwrap();
    let refused = publish(&node, &hotkey, 81, &credentials('a'), &limits()).await.unwrap_err();
    assert!(refused.to_string().contains("is not sr25519"), "{refused}");
    assert_eq!(chain.requests(SUBMIT), 0);
}
