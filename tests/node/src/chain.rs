//! Blocks, storage, pool.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use blake2::{Blake2b256, Digest};
use grail_chain::commitment::{Registration, info};
use grail_chain::storage;
use grail_process::clock;
use parity_scale_codec::Encode;
use scale_value::Value;
use serde_json::{Value as Json, json};
use tokio::sync::mpsc::UnboundedSender;

use crate::Setup;
use crate::extrinsic::{Known, Parsed, Refusal, parse};
use crate::runtime::Runtime;

pub(crate) const GENESIS: [u8; 32] = [0x45; 32];

type Storage = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone)]
pub(crate) struct Block {
    pub hash: [u8; 32],
    pub parent: [u8; 32],
    pub number: u64,
    pub extrinsics: Vec<Vec<u8>>,
    pub storage: Arc<Storage>,
    /// Of the block's own state: what executes the next one.
    pub runtime: Arc<Runtime>,
    included: Vec<Waiting>,
}

/// Who watches a transaction: a connection, and the subscription's name there.
pub(crate) type Watcher = (UnboundedSender<Json>, String);

#[derive(Clone)]
struct Waiting {
    bytes: Vec<u8>,
    parsed: Parsed,
    watcher: Option<Watcher>,
}

pub(crate) struct Chain {
    pub setup: Setup,
    pub best: Vec<Block>,
    /// All blocks there ever were, by hash.
    pub known: HashMap<[u8; 32], Block>,
    pool: Vec<Waiting>,
    next: Option<Arc<Runtime>>,
    forks: u64,
    pub heads: Vec<Watcher>,
    pub finalized_heads: Vec<Watcher>,
    pub runtimes: Vec<Watcher>,
    pub silent_heads: bool,
}

impl Chain {
    pub fn new(setup: Setup) -> Self {
        let metadata = &setup.runtime.metadata;
        let netuid = Value::u128(setup.netuid.into());
        let mut storage = Storage::new();
        let mut put = |pallet: &str, item: &str, arguments: &[Value], value: Vec<u8>| {
            storage.insert(storage::key(metadata, pallet, item, arguments).unwrap(), value);
        };
        put("SubtensorModule", "NetworksAdded", std::slice::from_ref(&netuid), vec![1]);
        for (uid, member) in setup.members.iter().enumerate() {
            let uid = u16::try_from(uid).unwrap();
            put("SubtensorModule", "Uids", &[netuid.clone(), Value::from_bytes(member)], uid.encode());
            put("SubtensorModule", "Keys", &[netuid.clone(), Value::u128(uid.into())], member.to_vec());
        }
        let block = Block {
            hash: GENESIS,
            parent: [0; 32],
            number: 0,
            extrinsics: Vec::new(),
            storage: Arc::new(storage),
            runtime: setup.runtime.clone(),
            included: Vec::new(),
        };
        let mut chain = Self {
            best: vec![block.clone()],
            known: HashMap::from([(GENESIS, block)]),
            pool: Vec::new(),
            next: None,
            forks: 0,
            heads: Vec::new(),
            finalized_heads: Vec::new(),
            runtimes: Vec::new(),
            silent_heads: false,
            setup,
        };
        let height = match chain.setup.clock {
            Some(clock) => ((clock::unix_seconds() - clock.genesis) / clock.seconds).floor().max(0.0) as u64,
            None => chain.setup.height,
        };
        for (account, text) in chain.setup.commitments.clone() {
            chain.commit(&account, &text);
        }
        (0..height).for_each(|_| chain.make_block());
        chain
    }

    pub fn height(&self) -> u64 {
        self.tip().number
    }

    pub fn tip(&self) -> &Block {
        self.best.last().unwrap()
    }

    pub fn finalized(&self) -> &Block {
        &self.best[self.best.len().saturating_sub(1 + self.setup.finality_lag as usize)]
    }

    /// Unix seconds of a block.
    fn time(&self, number: u64) -> f64 {
        match self.setup.clock {
            Some(clock) => clock.genesis + number as f64 * clock.seconds,
            None => clock::unix_seconds(),
        }
    }

    fn key(&self, pallet: &str, item: &str, account: &[u8; 32]) -> Vec<u8> {
        let arguments = [Value::u128(self.setup.netuid.into()), Value::from_bytes(account)];
        storage::key(&self.setup.runtime.metadata, pallet, item, &arguments).unwrap()
    }

    pub fn commitment(&self, account: &[u8; 32]) -> Option<String> {
        let bytes = self.tip().storage.get(&self.key("Commitments", "CommitmentOf", account))?;
        Registration::decode(&self.tip().runtime.metadata, bytes).unwrap().text
    }

    /// Into the newest block's state, as genesis does.
    pub fn commit(&mut self, account: &[u8; 32], text: &str) {
        let metadata = &self.setup.runtime.metadata;
        let ty = metadata.call("Commitments", "set_commitment").unwrap().1.fields[1].ty.id;
        let mut encoded = Vec::new();
        scale_value::scale::encode_as_type(&info(text.as_bytes()), ty, metadata.types(), &mut encoded).unwrap();
        let key = self.key("Commitments", "CommitmentOf", account);
        let block = self.best.last_mut().unwrap();
        let value = registration(block.number, &encoded);
        Arc::make_mut(&mut block.storage).insert(key, value);
        self.known.insert(block.hash, block.clone());
    }

    pub fn upgrade(&mut self, runtime: Arc<Runtime>) {
        self.next = Some(runtime);
    }

    /// What the next transaction of an account is numbered, with what waits in the pool.
    pub fn next_nonce(&self, account: &[u8; 32]) -> u32 {
        let mut nonce = self.nonce(account);
        while self.pool.iter().any(|one| one.parsed.account == *account && one.parsed.nonce == nonce) {
            nonce += 1;
        }
        nonce
    }

    fn nonce(&self, account: &[u8; 32]) -> u32 {
        let included = self.best.iter().flat_map(|block| &block.included);
        included.filter(|one| one.parsed.account == *account).count() as u32
    }

    /// Takes a transaction into the pool. An error is a code, and what real nodes say with it.
    pub fn submit(&mut self, bytes: Vec<u8>, watcher: Option<Watcher>) -> Result<(), (i64, &'static str, &'static str)> {
        let invalid = |why| (1010, "Invalid Transaction", why);
        let hash = |number: u64| self.best.get(number as usize).map_or([0; 32], |block| block.hash);
        let known = Known { runtime: &self.tip().runtime, genesis: GENESIS, height: self.height(), hash: &hash };
        let parsed = parse(&known, &bytes).map_err(|refusal| match refusal {
            Refusal::Trap => (1002, "Verification Error", "the runtime trapped"),
            Refusal::BadProof => invalid("Transaction has a bad signature"),
        })?;
        if parsed.nonce < self.nonce(&parsed.account) {
            return Err(invalid("Transaction is outdated"));
        }
        if parsed.tip > 0 {
            return Err(invalid("Inability to pay some fees (e.g. account balance too low)"));
        }
        if self.pool.iter().any(|one| one.bytes == bytes) {
            return Err((1013, "Transaction is already imported", ""));
        }
        if self.pool.iter().any(|one| (one.parsed.account, one.parsed.nonce) == (parsed.account, parsed.nonce)) {
            return Err((1014, "Priority is too low", ""));
        }
        self.pool.push(Waiting { bytes, parsed, watcher });
        Ok(())
    }

    pub fn make_block(&mut self) {
        let number = self.height() + 1;
        let runtime = self.tip().runtime.clone();
        let mut storage = self.tip().storage.as_ref().clone();
        let mut included = Vec::new();
        while let Some(position) = self.pool.iter().position(|one| {
            let before = included.iter().filter(|other: &&Waiting| other.parsed.account == one.parsed.account).count() as u32;
            one.parsed.nonce == self.nonce(&one.parsed.account) + before
        }) {
            included.push(self.pool.remove(position));
        }
        let mut records = vec![(0, "System", runtime.success())];
        for (one, position) in included.iter().zip(1..) {
            records.extend(
                self.execute(&runtime, &mut storage, number, &one.parsed)
                    .into_iter()
                    .map(|(pallet, event)| (position, pallet, event)),
            );
        }
        storage.insert(storage::key(&runtime.metadata, "System", "Events", &[]).unwrap(), runtime.events(&records));
        let milliseconds = (self.time(number) * 1000.0).round() as u64;
        storage.insert(storage::key(&runtime.metadata, "Timestamp", "Now", &[]).unwrap(), milliseconds.encode());
        let inherent = [vec![0x28, 4, 2, 0, 11], milliseconds.to_le_bytes()[..6].to_vec()].concat();
        let name = format!("block {number} of fork {}", self.forks);
        let upgraded = self.next.take();
        let block = Block {
            hash: Blake2b256::digest(name).into(),
            parent: self.tip().hash,
            number,
            extrinsics: std::iter::once(inherent).chain(included.iter().map(|one| one.bytes.clone())).collect(),
            storage: Arc::new(storage),
            runtime: upgraded.clone().unwrap_or(runtime),
            included,
        };
        self.known.insert(block.hash, block.clone());
        self.best.push(block);
        self.tell(upgraded.is_some());
    }

    fn execute(&self, runtime: &Runtime, storage: &mut Storage, number: u64, parsed: &Parsed) -> Vec<(&'static str, Value)> {
        let failed = |error: &dyn Fn(&str) -> bool| vec![("System", runtime.failed("Commitments", "set_commitment", error))];
        let registered = storage.contains_key(&self.key("SubtensorModule", "Uids", &parsed.account));
        if parsed.netuid != self.setup.netuid || !registered {
            return failed(&|name| name == "AccountNotAllowedCommit");
        }
        let (last_key, key) = (
            self.key("Commitments", "LastCommitment", &parsed.account),
            self.key("Commitments", "CommitmentOf", &parsed.account),
        );
        let last = storage.get(&last_key).map(|bytes| u64::from(u32::from_le_bytes(bytes.as_slice().try_into().unwrap())));
        if last.is_some_and(|last| last + self.setup.rate_limit > number) {
            return failed(&|name| name.contains("Limit"));
        }
        storage.insert(last_key, (number as u32).encode());
        storage.insert(key, registration(number, &parsed.info));
        let fields = [("netuid", Value::u128(parsed.netuid.into())), ("who", Value::from_bytes(parsed.account))];
        vec![("Commitments", Value::named_variant("Commitment", fields)), ("System", runtime.success())]
    }

    /// Tells subscribers of the newest block.
    fn tell(&self, upgraded: bool) {
        let (tip, finalized) = (self.tip(), self.finalized());
        if !self.silent_heads {
            notify(&self.heads, "chain_newHead", &header(tip));
        }
        notify(&self.finalized_heads, "chain_finalizedHead", &header(finalized));
        if upgraded {
            notify(&self.runtimes, "state_runtimeVersion", &version(&tip.runtime));
        }
        for one in &tip.included {
            tell_watcher(one, json!({ "inBlock": text(&tip.hash) }));
        }
        for one in &finalized.included {
            tell_watcher(one, json!({ "finalized": text(&finalized.hash) }));
        }
    }

    pub fn tell_head(&self, number: u64) {
        let head = Block { number, ..self.tip().clone() };
        notify(&self.heads, "chain_newHead", &header(&head));
    }

    pub fn fork(&mut self, depth: u64) {
        let keep = self.best.len() - depth as usize;
        let gone = self.best.split_off(keep);
        for one in gone.into_iter().flat_map(|block| block.included.into_iter().map(move |one| (one, block.hash))) {
            tell_watcher(&one.0, json!({ "retracted": text(&one.1) }));
            self.pool.push(one.0);
        }
        self.forks += 1;
        (0..depth).for_each(|_| self.make_block());
    }

    /// Says something of the transaction that was taken last.
    pub fn tell_last(&self, status: Json) {
        if let Some(one) = self.pool.last() {
            tell_watcher(one, status);
        }
    }
}

fn registration(number: u64, info: &[u8]) -> Vec<u8> {
    [&0_u64.encode()[..], &(number as u32).encode(), info].concat()
}

fn tell_watcher(one: &Waiting, status: Json) {
    if let Some(watcher) = &one.watcher {
        notify(std::slice::from_ref(watcher), "author_extrinsicUpdate", &status);
    }
}

pub(crate) fn notify(watchers: &[Watcher], method: &str, result: &Json) {
    for (connection, name) in watchers {
        let params = json!({ "subscription": name, "result": result });
        let _ = connection.send(json!({ "jsonrpc": "2.0", "method": method, "params": params }));
    }
}

pub(crate) fn header(block: &Block) -> Json {
    let root = text(&[0; 32]);
    json!({
        "parentHash": text(&block.parent), "number": format!("0x{:x}", block.number), "stateRoot": root, "extrinsicsRoot": root,
        "digest": { "logs": [] },
    })
}

pub(crate) fn version(runtime: &Runtime) -> Json {
    json!({
        "specName": "node-subtensor", "implName": "node-subtensor", "specVersion": runtime.spec_version,
        "transactionVersion": runtime.transaction_version, "apis": [],
    })
}

pub(crate) fn text(hash: &[u8; 32]) -> String {
    format!("0x{}", hex::encode(hash))
}
