//! What these tests share: a node, and patience that fits them.

use std::path::PathBuf;
use std::time::Duration;

use grail_chain::node::{Endpoints, Node};
use grail_chain::patience::{Backoff, Patience, PublishLimits};
use grail_node::{Setup, TestNode};
use grail_protocol::keys::Hotkey;

/// The vectors of the repository.
pub fn vectors() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors")
}

pub fn key(uri: &str) -> Hotkey {
    Hotkey::from_uri(uri).unwrap()
}

/// 128 characters.
pub fn credentials(letter: char) -> String {
    format!("{:<32}{:<32}{:<64}", "account", "key", letter.to_string().repeat(64))
}

/// A subnet with //Trainer as UID 0 and //Alice as UID 1, where the trainer has published.
pub fn setup() -> Setup {
    let trainer = key("//Trainer").public_key();
    let mut setup = Setup::new(&vectors());
    setup.members = vec![trainer, key("//Alice").public_key()];
    setup.commitments = vec![(trainer, credentials('t'))];
    setup
}

pub fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(10),
        request: Duration::from_secs(5),
        metadata: Duration::from_secs(20),
        poll: Duration::from_millis(50),
        silence: Duration::from_secs(30),
        backoff: Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(200), jitter: 0.25 },
        ..Patience::default()
    }
}

pub fn limits() -> PublishLimits {
    PublishLimits { period: 16, look: Duration::from_millis(50), total: Duration::from_secs(60), ..PublishLimits::default() }
}

pub fn connect(node: &TestNode, patience: Patience) -> Node {
    Node::connect(Endpoints { addresses: vec![node.endpoint().into()], genesis: None }, patience)
}

/// Waits until something holds; the limit is for a machine that is busy with something else.
pub async fn eventually<Answer: Future<Output = bool>>(what: &str, holds: impl Fn() -> Answer) {
    for _ in 0..1500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} did not come about");
}
