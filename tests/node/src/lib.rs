//! A node of the chain, for tests: JSON-RPC over WebSocket with the real metadata of the vectors and SCALE-encoded storage of the
//! pallets that a miner uses. Extrinsics are taken apart by the metadata and their sr25519 signature is verified over what the
//! node itself holds to be signed; events are written as the runtime writes them. Blocks are made on demand or by a clock, and
//! everything that goes wrong with nodes can be asked for ([`Faults`]).
//!
//! It executes one call, `Commitments.set_commitment`, by the rules of runtime 218 (chain 5): registered accounts only, one write
//! per so many blocks. Everything else about a runtime is missing.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test's node may panic")]

mod chain;
mod extrinsic;
mod faults;
mod rpc;
mod runtime;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use grail_process::clock;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use chain::Chain;
pub use faults::Faults;
pub use runtime::Runtime;

/// Blocks by a clock.
#[derive(Debug, Clone, Copy)]
pub struct BlockClock {
    /// Unix seconds of block 0.
    pub genesis: f64,
    /// Seconds of one block.
    pub seconds: f64,
}

/// How a node begins.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What it runs at first.
    pub runtime: Arc<Runtime>,
    /// The subnet.
    pub netuid: u16,
    /// Registered accounts in UID order.
    pub members: Vec<[u8; 32]>,
    /// Commitments that are there.
    pub commitments: Vec<([u8; 32], String)>,
    /// Blocks that finality trails the head.
    pub finality_lag: u64,
    /// Blocks between two writes of an account.
    pub rate_limit: u64,
    /// Blocks at the start, where no clock says so.
    pub height: u64,
    /// Makes blocks; without one they are made on demand.
    pub clock: Option<BlockClock>,
}

impl Setup {
    /// Runtime 218 from the folder of the vectors, subnet 81, 40 blocks, finality one block behind.
    #[must_use]
    pub fn new(vectors: &Path) -> Self {
        let runtime = Runtime::read(&vectors.join("chain/metadata_218_v14.scale.gz"), 218);
        Self {
            runtime: Arc::new(runtime),
            netuid: 81,
            members: Vec::new(),
            commitments: Vec::new(),
            finality_lag: 1,
            rate_limit: 100,
            height: 40,
            clock: None,
        }
    }
}

/// Everything behind one lock.
pub(crate) struct Shared {
    pub chain: Mutex<Chain>,
    pub faults: Mutex<Faults>,
    pub dropping: tokio::sync::watch::Sender<u64>,
}

impl Shared {
    pub fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap()
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap()
    }
}

/// A running node; it ends when this is dropped.
pub struct TestNode {
    shared: Arc<Shared>,
    address: SocketAddr,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl TestNode {
    /// Starts on a free port of the loopback.
    pub async fn start(setup: Setup) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let clock = setup.clock;
        let shared = Arc::new(Shared {
            chain: Mutex::new(Chain::new(setup)),
            faults: Mutex::default(),
            dropping: tokio::sync::watch::Sender::new(0),
        });
        let mut tasks = vec![AbortOnDropHandle::new(tokio::spawn(rpc::serve(listener, shared.clone())))];
        if let Some(clock) = clock {
            tasks.push(AbortOnDropHandle::new(tokio::spawn(tick(shared.clone(), clock))));
        }
        Self { shared, address, _tasks: tasks }
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Makes a block of what is ready in the pool.
    pub fn make_block(&self) {
        self.shared.chain().make_block();
    }

    /// Number of the newest block.
    #[must_use]
    pub fn height(&self) -> u64 {
        self.shared.chain().height()
    }

    /// Hash of a block of the best chain.
    #[must_use]
    pub fn hash(&self, number: u64) -> [u8; 32] {
        self.shared.chain().best[number as usize].hash
    }

    /// Finality trails the head by so many blocks from now on.
    pub fn hold_finality_back(&self, blocks: u64) {
        self.shared.chain().setup.finality_lag = blocks;
    }

    /// Tells subscribers of a head of this number, which is no block.
    pub fn tell_head(&self, number: u64) {
        self.shared.chain().tell_head(number);
    }

    /// Replaces the newest `depth` blocks by others of the same numbers; their transactions go back to the pool.
    pub fn fork(&self, depth: u64) {
        self.shared.chain().fork(depth);
    }

    /// From the next block's state on, another runtime.
    pub fn upgrade(&self, runtime: Runtime) {
        self.shared.chain().upgrade(Arc::new(runtime));
    }

    /// What an account has committed, in the best block.
    #[must_use]
    pub fn commitment(&self, account: &[u8; 32]) -> Option<String> {
        self.shared.chain().commitment(account)
    }

    /// Lets an account commit something, without a transaction.
    pub fn commit(&self, account: &[u8; 32], text: &str) {
        self.shared.chain().commit(account, text);
    }

    /// Requests of a method so far.
    #[must_use]
    pub fn requests(&self, method: &str) -> usize {
        self.shared.faults().requests.get(method).copied().unwrap_or(0)
    }

    /// Changes what goes wrong.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        let mut faults = self.shared.faults();
        change(&mut faults);
        self.shared.chain().silent_heads = faults.silent_heads;
    }

    /// Cuts every connection.
    pub fn drop_connections(&self) {
        self.shared.dropping.send_modify(|count| *count += 1);
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.drop_connections();
    }
}

async fn tick(shared: Arc<Shared>, clock: BlockClock) {
    loop {
        let due = ((clock::unix_seconds() - clock.genesis) / clock.seconds).floor().max(0.0) as u64;
        if !shared.faults().frozen {
            while shared.chain().height() < due {
                shared.chain().make_block();
            }
        }
        let next = clock.genesis + (due + 1) as f64 * clock.seconds - clock::unix_seconds();
        tokio::time::sleep(Duration::from_secs_f64(next.clamp(0.005, 1.0))).await;
    }
}
