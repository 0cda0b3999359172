//! A host on the network's chain instead of the local one: a node of the tests' own, whose blocks go by the host's clock.

use grail_node::{BlockClock, Setup, TestNode};
use grail_protocol::keys::Hotkey;
use grail_subnet::buckets::Buckets;

use crate::{Finished, Host, workspace};

/// The public key of a development URI.
pub fn key(uri: &str) -> [u8; 32] {
    Hotkey::from_uri(uri).expect("a development URI").public_key()
}

/// A node with the trainer as UID 0 and `miners` after it.
pub fn node(runtime: &tokio::runtime::Runtime, host: &Host, miners: &[&str]) -> TestNode {
    let text = std::fs::read_to_string(host.path().join("host.toml")).expect("a host has settings");
    let settings: toml::Table = text.parse().expect("its settings are TOML");
    let number = |name: &str| settings["chain"][name].as_float().expect("a host has a block clock");
    let mut setup = Setup::new(&workspace().join("tests/vectors"));
    setup.clock = Some(BlockClock { genesis: number("genesis"), seconds: number("block_seconds") });
    setup.members = std::iter::once(&"//Trainer").chain(miners).map(|uri| key(uri)).collect();
    setup.commitments = vec![(key("//Trainer"), Buckets::local_trainer().encode().expect("it fits on the chain"))];
    runtime.block_on(TestNode::start(setup))
}

/// Publishes a checkpoint as the trainer does, on the block clock that the host's node goes by.
pub fn publish(host: &Host, checkpoint: &str, more: &[&str]) -> Finished {
    let published = host.publish(checkpoint, &[&["--set", "chain.endpoint="], more].concat());
    assert_eq!(published.code, 0, "{}", published.stderr);
    published
}

/// `host`, registered on such a node.
pub fn registered(runtime: &tokio::runtime::Runtime, host: Host) -> (Host, TestNode) {
    let node = node(runtime, &host, &["//Alice"]);
    let host = host.variable("BT_CHAIN_ENDPOINT", &node.endpoint());
    (host, node)
}
