//! What is needed to join a network: chain, beacon, credentials. Mistakes that cost money are refused before anything reaches
//! the chain.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use grail_chain::patience::{Backoff, Patience};
use grail_chain::relays::PUBLIC_RELAYS;

use super::endpoint::{NETWORKS, mistakes, network_of, origin};
use super::{Address, Chain, KeyPair, Reader, Secret, Storage};

/// What R2 shows as a bucket's place, which many take for its region.
const PLACES: [&str; 8] = ["wnam", "enam", "weur", "eeur", "apac", "oc", "eu", "fedramp"];
impl Reader<'_> {
    pub(super) fn chain(&mut self, local: bool, state: &Path) -> Chain {
        let block_seconds = self.number("chain.block_seconds", 0.1, 3600.0);
        let custom = self.addresses("chain.endpoint", &["ws://", "wss://"]);
        if local && custom.is_empty() {
            let genesis = self.number("chain.genesis", 0.0, 1e11);
            let file = self.path("chain.file").unwrap_or_else(|| state.join("chain.json"));
            return Chain::Local { genesis, block_seconds, file };
        }
        let name = self.choice("chain.network", &["finney", "test", "local", "custom"]);
        if !custom.is_empty() {
            return Chain::Network { name: "custom".into(), endpoints: custom, genesis: None, block_seconds };
        }
        if name == "custom" {
            self.refuse("chain.network", "needs the address of a node in chain.endpoint (BT_CHAIN_ENDPOINT)");
        }
        let network = NETWORKS.iter().find(|(known, ..)| *known == name);
        let genesis = network.and_then(|(.., genesis)| hex::decode(genesis).ok()?.try_into().ok());
        let endpoints = network.map(|(_, address, _)| (*address).into()).into_iter().collect();
        Chain::Network { name, endpoints, genesis, block_seconds }
    }

    pub(super) fn patience(&mut self) -> Patience {
        // What is refused may be no duration at all.
        let mut seconds =
            |key: &str, low: f64, high: f64| Duration::try_from_secs_f64(self.number(key, low, high)).unwrap_or_default();
        let request = seconds("chain.call_timeout_seconds", 1.0, 120.0);
        let connect = seconds("chain.connect_timeout_seconds", 1.0, 600.0);
        let first = seconds("chain.reconnect_seconds", 0.1, 30.0);
        let tries = self.whole("chain.call_tries", 1, 20);
        let usual = Patience::default();
        Patience { request, metadata: 4 * request, connect, tries, backoff: Backoff { first, ..usual.backoff }, ..usual }
    }

    /// The local chain has no beacon: it works without any network.
    pub(super) fn beacon(&mut self, local: bool) -> Vec<Address> {
        let relays = self.addresses("beacon.relays", &["http://", "https://"]);
        if !self.flag("beacon.drand") || (local && relays.is_empty()) {
            return Vec::new();
        }
        if relays.is_empty() { PUBLIC_RELAYS.map(Address::from).to_vec() } else { relays }
    }

    /// Where `local` is told, nobody but this host reads the bucket, as far as names tell.
    pub(super) fn storage(&mut self, local: bool, chain: &Chain) -> Storage {
        let storage = match self.path("storage.local_folder") {
            Some(folder) => Storage::Local { folder, address: self.loopback("storage.local_address") },
            None => self.bucket(),
        };
        if !local {
            let genesis = if let Chain::Network { genesis, .. } = chain { genesis.as_ref() } else { None };
            for (key, reason) in mistakes(&storage, genesis.and_then(network_of)) {
                // Whatever was copied to the wrong place, it may be a secret.
                if matches!(key, "storage.local_folder" | "storage.bucket" | "storage.endpoint") {
                    self.refuse(key, &reason);
                } else {
                    self.refuse_unseen(key, &reason);
                }
            }
        }
        storage
    }

    fn bucket(&mut self) -> Storage {
        let account_id = self.required("storage.account_id");
        let pair = |reader: &mut Self, kind: &str| KeyPair {
            access_key_id: Secret::new(reader.required(&format!("storage.{kind}_access_key_id"))),
            secret_access_key: Secret::new(reader.required(&format!("storage.{kind}_secret_access_key"))),
        };
        let (read, write) = (pair(self, "read"), pair(self, "write"));
        self.never_publish_the_write_key(&read, &write);
        let endpoint = self.endpoint();
        let bucket = self.required("storage.bucket");
        let region = self.text("storage.region");
        if PLACES.contains(&region.to_ascii_lowercase().as_str()) {
            let reason = "is the place that R2 shows for a bucket, not an S3 region; leave it out or set auto";
            self.refuse("storage.region", reason);
        }
        Storage::Remote { endpoint, region, bucket, account_id, read, write }
    }

    /// Empty where it is refused.
    fn endpoint(&mut self) -> Option<String> {
        let key = "storage.endpoint";
        let text = self.optional(key)?;
        let origin = origin(&text).unwrap_or_else(|reason| {
            self.refuse(key, &reason);
            // The user that should not be there may have a secret.
            if let Some(error) = self.errors.last_mut().filter(|_| text.contains('@')) {
                error.value = Some("(hidden)".into());
            }
            String::new()
        });
        Some(origin)
    }

    fn loopback(&mut self, key: &str) -> SocketAddr {
        let parsed = self.text(key).parse::<SocketAddr>();
        if !parsed.as_ref().is_ok_and(|address| address.ip().is_loopback()) {
            self.refuse(key, "is not a loopback address with a port, such as 127.0.0.1:9199");
        }
        parsed.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn never_publish_the_write_key(&mut self, read: &KeyPair, write: &KeyPair) {
        let same = |one: &Secret, other: &Secret| one == other && !one.reveal().is_empty();
        let reason = "is the write key: it would be published on chain, and everybody could write; make a read-only key";
        if same(&read.access_key_id, &write.access_key_id) {
            self.refuse("storage.read_access_key_id", reason);
        } else if same(&read.secret_access_key, &write.secret_access_key) {
            self.refuse("storage.read_secret_access_key", reason);
        }
    }

    /// Addresses separated by commas.
    pub(super) fn addresses(&mut self, key: &str, schemes: &[&str]) -> Vec<Address> {
        let text = self.text(key);
        let found: Vec<&str> = text.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
        let plain = |one: &&str| schemes.iter().any(|scheme| one.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
        if !found.iter().all(plain) {
            self.refuse(key, &format!("is no address that begins with {}", schemes.join(" or ")));
        }
        found.into_iter().map(Address::from).collect()
    }
}
