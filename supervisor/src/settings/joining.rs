//! What is needed to join a network: chain, beacon, credentials. Mistakes that cost money are refused before anything reaches
//! the chain.

use std::path::Path;
use std::time::Duration;

use grail_chain::patience::{Backoff, Patience};
use grail_chain::relays::PUBLIC_RELAYS;

use super::{Address, Chain, KeyPair, Reader, Secret, Storage};

/// Networks by name: address of their nodes, and hash of block 0 (chain 1).
const NETWORKS: [(&str, &str, &str); 2] = [
    ("finney", "wss://entrypoint-finney.opentensor.ai:443", "2f0555cc76fc2840a25a6ea3b9637146806f1f44b090c175ffde2a7e5ab36c03"),
    ("test", "wss://test.finney.opentensor.ai:443", "8f9cf856bf558a14440e75569c9e58594757048d7b3a84b5d25f6bd978263105"),
];
/// What R2 shows as a bucket's place, which many take for its region.
const PLACES: [&str; 8] = ["wnam", "enam", "weur", "eeur", "apac", "oc", "eu", "fedramp"];
/// Characters of an account id and of a key id at R2, and of a secret.
const R2_ID: usize = 32;
const R2_SECRET: usize = 64;

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

    pub(super) fn storage(&mut self, local: bool) -> Storage {
        if let Some(folder) = self.path("storage.local_folder") {
            if !local {
                self.refuse(
                    "storage.local_folder",
                    "cannot be read by validators of a network; set storage.account_id and the keys of a bucket",
                );
            }
            return Storage::Local { folder, address: self.loopback("storage.local_address") };
        }
        let account_id = self.required("storage.account_id");
        let pair = |reader: &mut Self, kind: &str| KeyPair {
            access_key_id: Secret::new(reader.required(&format!("storage.{kind}_access_key_id"))),
            secret_access_key: Secret::new(reader.required(&format!("storage.{kind}_secret_access_key"))),
        };
        let (read, write) = (pair(self, "read"), pair(self, "write"));
        self.never_publish_the_write_key(&read, &write);
        let endpoint = self.optional("storage.endpoint");
        let bucket = self.required("storage.bucket");
        if !local {
            self.lengths(endpoint.is_none());
            if !bucket.is_empty() && bucket != account_id {
                let reason = "is not the account id (storage.account_id): the chain holds no bucket names, so validators look for a \
                              bucket named like the account and would find nothing; make one with that name";
                self.refuse("storage.bucket", reason);
            }
        }
        let region = self.text("storage.region");
        if PLACES.contains(&region.to_ascii_lowercase().as_str()) {
            let reason = "is the place that R2 shows for a bucket, not an S3 region; leave it out or set auto";
            self.refuse("storage.region", reason);
        }
        Storage::Remote { endpoint, region, bucket, account_id, read, write }
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

    /// Longer values would be cut on chain, shorter ones are copied wrongly where the provider is R2.
    fn lengths(&mut self, r2: bool) {
        let wanted = [
            ("storage.account_id", R2_ID),
            ("storage.read_access_key_id", R2_ID),
            ("storage.read_secret_access_key", R2_SECRET),
            ("storage.write_access_key_id", R2_ID),
            ("storage.write_secret_access_key", R2_SECRET),
        ];
        for (key, characters) in wanted {
            let text = self.text(key);
            let length = text.chars().count();
            let fits = if r2 { length == characters } else { length <= characters || key.starts_with("storage.write") };
            if length > 0 && !(fits && text.bytes().all(|byte| byte.is_ascii_graphic())) {
                let bound = if r2 { "exactly" } else { "at most" };
                // Whatever was copied to the wrong place, it may be a secret.
                self.refuse_unseen(key, &format!("has {length} characters where {bound} {characters} of plain ASCII are right; copy it again from the storage provider"));
            }
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
