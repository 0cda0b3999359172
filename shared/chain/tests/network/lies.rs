//! Nodes that lie: what they send is never believed, nobody dies of it, and the next endpoint is asked.

use grail_chain::node::{Endpoints, Node, NodeError};
use grail_node::TestNode;

use crate::common::{eventually, key, patience, setup};

/// Metadata of version 14 whose only type is a pair of itself, which is what its one extension carries.
const HOLDS_ITSELF: &[u8] = b"meta\x0e\x04\x00\x00\x00\x04\x08\x00\x00\x00\x00\x00\x04\x04\x04x\x00\x00\x00";

/// Two endpoints, of which the first lies.
async fn between(lie: impl FnOnce(&TestNode)) -> (TestNode, TestNode, Node) {
    let (liar, honest) = (TestNode::start(setup()).await, TestNode::start(setup()).await);
    lie(&liar);
    let addresses = vec![liar.endpoint().into(), honest.endpoint().into()];
    let node = Node::connect(Endpoints { addresses, genesis: None }, patience());
    (liar, honest, node)
}

async fn asks(node: &Node, endpoint: &str) {
    eventually("another endpoint", || async { node.identity().await.is_ok_and(|(at, _, _)| at.reveal() == endpoint) }).await;
    let subnet = || async { node.subnet(81, &key("//Alice").public_key()).await.is_ok_and(|subnet| subnet.uid == Some(1)) };
    eventually("the subnet", subnet).await;
}

#[tokio::test]
async fn metadata_that_nobody_could_read_by_is_left_for_the_next_endpoint() {
    let huge = vec![0; 5 << 20];
    for metadata in [HOLDS_ITSELF, b"meta\x0e\xff\xff", &huge] {
        let (_liar, honest, node) = between(|liar| liar.faults(|faults| faults.metadata = Some(metadata.into()))).await;
        asks(&node, &honest.endpoint()).await;
    }
    // Told as such where there is no other one: whoever starts goes on asking.
    let liar = TestNode::start(setup()).await;
    liar.faults(|faults| faults.metadata = Some(HOLDS_ITSELF.into()));
    let node = Node::connect(Endpoints { addresses: vec![liar.endpoint().into()], genesis: None }, patience());
    let told =
        || async { node.head().await.is_err_and(|error| error.is_passing() && error.to_string().contains("not to be believed")) };
    eventually("the reason", told).await;
    liar.faults(|faults| faults.metadata = None);
    asks(&node, &liar.endpoint()).await;
}

#[tokio::test]
async fn a_node_that_lies_after_a_while_is_left_too() {
    let (liar, honest, node) = between(|_| ()).await;
    asks(&node, &liar.endpoint()).await;
    let hash = liar.hash(40);
    liar.faults(|faults| faults.value = Some(vec![1, 2, 3]));
    let lied = node.timestamp(&hash).await;
    assert!(matches!(&lied, Err(error @ NodeError::Storage(_)) if error.is_a_lie()), "{lied:?}");
    asks(&node, &honest.endpoint()).await;

    // An upgrade whose metadata is a trap ends the process no more than the first.
    let (liar, honest, node) = between(|_| ()).await;
    asks(&node, &liar.endpoint()).await;
    liar.faults(|faults| faults.metadata = Some(HOLDS_ITSELF.into()));
    liar.upgrade(grail_node::Runtime::read(&crate::common::vectors().join("chain/metadata_365_v16.scale.gz"), 365));
    liar.make_block();
    asks(&node, &honest.endpoint()).await;
}
