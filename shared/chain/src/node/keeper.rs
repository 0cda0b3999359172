//! Keeps one connection: opens, identifies, follows heads and runtime versions, and begins anew when it ends.
//!
//! ```text
//!           genesis and runtime known        silence, surprise, close, requests unanswered
//!  Opening ───────────────────────────▶ Up ───────────────────────────────────────────────▶ Down(why)
//!     ▲                                                                                        │
//!     └──────────────────── pause: 1 s doubled to 30 s, jitter; next endpoint ─────────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use grail_process::clock::{self, Verdict};
use grail_secrets::Address;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::error::NodeError;
use super::runtime::{Runtime, Versions, fetch, hash_of, versions, versions_at};
use super::session::Session;
use super::{Endpoints, read_timestamp};
use crate::patience::Patience;

/// A head that is lower than one already seen by more than this means a node that lags.
const LAG_BLOCKS: u64 = 5;

/// A wall clock that was set by this much more is looked at again at once.
const STEP_SECONDS: f64 = 2.0;

/// The newest block that the node has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Number.
    pub number: u64,
    /// When it was told, in time since the machine's start: a suspend does not keep a head young.
    pub since: Duration,
}

/// The present connection.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    /// The first connection is being made.
    Opening,
    /// There is one.
    Up(Arc<Live>),
    /// There is none, and why; calls fail at once.
    Down(NodeError),
}

/// A connection to a node whose network and runtime are known.
#[derive(Debug)]
pub(crate) struct Live {
    pub session: Session,
    pub endpoint: Address,
    pub genesis: [u8; 32],
    pub runtime: watch::Sender<Arc<Runtime>>,
}

/// What the keeper tells.
#[derive(Debug)]
pub(crate) struct Announcements {
    pub link: watch::Sender<Link>,
    pub head: watch::Sender<Option<Head>>,
}

/// Runs until it is aborted.
pub(crate) async fn keep(endpoints: Endpoints, patience: Arc<Patience>, told: Announcements) {
    let mut keeper = Keeper { endpoints, patience, told, runtime: None, highest: 0, stale: false, judged: 0.0 };
    let mut failures: u32 = 0;
    for turn in 0_usize.. {
        let endpoint = keeper.endpoints.addresses[turn % keeper.endpoints.addresses.len()].clone();
        let begun = clock::monotonic();
        let why = match keeper.open(&endpoint).await {
            Ok(live) => {
                let live = Arc::new(live);
                tracing::info!(%endpoint, spec_version = live.runtime.borrow().spec_version, "Connected to a node of the chain.");
                keeper.told.link.send_replace(Link::Up(live.clone()));
                let why = NodeError::Down(format!("{endpoint}: {}", keeper.follow(&live).await));
                if live.session.was_left() {
                    // Its metadata is believed no more than the rest.
                    keeper.runtime = None;
                }
                why
            }
            Err(error) => error,
        };
        failures = if begun.elapsed() > keeper.patience.backoff.longest { 1 } else { failures.saturating_add(1) };
        let pause = keeper.patience.backoff.pause(failures, rand::random());
        tracing::warn!(%endpoint, %why, pause = pause.as_secs_f64(), "There is no connection to the chain; it is made anew.");
        keeper.told.link.send_replace(Link::Down(why));
        tokio::time::sleep(pause).await;
    }
}

struct Keeper {
    endpoints: Endpoints,
    patience: Arc<Patience>,
    told: Announcements,
    /// Survives the connection, because metadata is large and changes seldom; but what one node has told is another's no proof.
    runtime: Option<(Address, Arc<Runtime>)>,
    highest: u64,
    stale: bool,
    /// Seconds by which the wall clock was set, as last judged.
    judged: f64,
}

impl Keeper {
    async fn open(&mut self, endpoint: &Address) -> Result<Live, NodeError> {
        let session = Session::open(endpoint, self.patience.clone()).await?;
        let method = "chain_getBlockHash";
        let genesis = hash_of(method, &session.request(method, json!([0])).await?)?;
        match &self.endpoints.genesis {
            Some(expected) if *expected != genesis => {
                let (endpoint, text) = (endpoint.clone(), |hash: &[u8; 32]| format!("0x{}", hex::encode(hash)));
                return Err(NodeError::OtherNetwork { endpoint, found: text(&genesis), expected: text(expected) });
            }
            Some(_) => {}
            None => {
                // From now on the same network is wanted, whatever answers at the address.
                tracing::info!(%endpoint, genesis = %format!("0x{}", hex::encode(genesis)), "The custom endpoint's network.");
                self.endpoints.genesis = Some(genesis);
            }
        }
        let found = versions_at(&session, None).await?;
        let runtime = self.runtime_of(endpoint, &session, found).await?;
        Ok(Live { session, endpoint: endpoint.clone(), genesis, runtime: watch::Sender::new(runtime) })
    }

    async fn runtime_of(&mut self, endpoint: &Address, session: &Session, found: Versions) -> Result<Arc<Runtime>, NodeError> {
        let same = |(of, held): &&(Address, Arc<Runtime>)| {
            of == endpoint && (held.spec_version, held.transaction_version) == (found.spec, found.transaction)
        };
        if let Some((_, held)) = self.runtime.as_ref().filter(same) {
            return Ok(held.clone());
        }
        let runtime = fetch(session, found, None).await?;
        self.runtime = Some((endpoint.clone(), runtime.clone()));
        Ok(runtime)
    }

    /// Follows heads and runtime versions until the connection is dead, and tells why.
    async fn follow(&mut self, live: &Live) -> String {
        let session = &live.session;
        // Where a node offers no subscription, polling does the same.
        let mut heads = session.subscribe("chain_subscribeNewHeads", json!([])).await.ok();
        let mut upgrades = session.subscribe("state_subscribeRuntimeVersion", json!([])).await.ok();
        let mut poll = tokio::time::interval(self.patience.poll);
        let (mut news, mut checked, mut compared) = (clock::since_boot(), None::<Duration>, clock::monotonic());
        let quiet_for = |news: Duration| clock::since_boot().saturating_sub(news);
        let mut newest = None;
        loop {
            let told = tokio::select! {
                reason = session.ended() => return reason,
                header = next(&mut heads) => Some(header),
                version = next(&mut upgrades) => {
                    if let Err(error) = self.upgraded(live, versions(&version)).await {
                        return error.to_string();
                    }
                    None
                }
                _ = poll.tick() => {
                    let quiet = heads.is_none() || newest.is_none() || quiet_for(news) > self.patience.poll * 5;
                    let header = if quiet { session.request("chain_getHeader", json!([])).await.ok() } else { None };
                    if quiet_for(news) > self.patience.silence {
                        return format!("it has told no new block for {} s", quiet_for(news).as_secs());
                    }
                    if compared.elapsed() > self.patience.recheck {
                        compared = clock::monotonic();
                        let found = versions_at(session, None).await;
                        if let Err(error) = self.upgraded(live, found).await {
                            return error.to_string();
                        }
                    }
                    header
                }
            };
            if let Some(number) = told.as_ref().and_then(header_number) {
                if newest != Some(number) {
                    newest = Some(number);
                    news = clock::since_boot();
                    self.head(number, &live.endpoint);
                }
                let stepped = (clock::step_seconds() - self.judged).abs() > STEP_SECONDS;
                if stepped || checked.is_none_or(|checked| quiet_for(checked) > self.patience.stale / 2) {
                    checked = Some(clock::since_boot());
                    self.check_age(live).await;
                }
            }
        }
    }

    async fn upgraded(&mut self, live: &Live, found: Result<Versions, NodeError>) -> Result<(), NodeError> {
        let found = match found {
            Ok(found) => found,
            Err(error) if error.is_passing() && !error.is_a_lie() => return Ok(()),
            Err(error) => return Err(error),
        };
        let before = live.runtime.borrow().spec_version;
        let runtime = self.runtime_of(&live.endpoint, &live.session, found).await?;
        if before != runtime.spec_version {
            tracing::info!(
                before,
                now = runtime.spec_version,
                "The chain's runtime was upgraded; its metadata was fetched again."
            );
        }
        live.runtime.send_replace(runtime);
        Ok(())
    }

    fn head(&mut self, number: u64, endpoint: &Address) {
        if number.saturating_add(LAG_BLOCKS) < self.highest {
            tracing::warn!(%endpoint, number, highest = self.highest, "The node lags: a higher block was seen before.");
            // Told once; and the higher one may have been no block at all.
            self.highest = number;
        }
        self.highest = self.highest.max(number);
        self.told.head.send_replace(Some(Head { number, since: clock::since_boot() }));
    }

    /// Tells once when the head is older than it may be, and once when it is young again.
    async fn check_age(&mut self, live: &Live) {
        let Ok(head) = live.session.request("chain_getBlockHash", json!([])).await else { return };
        let Some(hash) = head.as_str() else { return };
        let runtime = live.runtime.borrow().clone();
        let time = match read_timestamp(&live.session, &runtime.metadata, hash).await {
            Ok(Some(time)) => time,
            Err(error) if error.is_a_lie() => return live.session.leave(error.to_string()),
            Ok(None) | Err(_) => return,
        };
        self.judge_step(time);
        let age = clock::unix_seconds() - time;
        let stale = age.abs() > self.patience.stale.as_secs_f64();
        if stale && !self.stale {
            tracing::warn!(
                endpoint = %live.endpoint,
                seconds = age.round(),
                "The newest block's time is far from this machine's clock: the node lags, or the clock is wrong (check with: timedatectl)."
            );
        } else if !stale && self.stale {
            tracing::info!(endpoint = %live.endpoint, "The newest block is of now again.");
        }
        self.stale = stale;
    }
}

impl Keeper {
    /// Whether a wall clock that was set is followed; told once for every step.
    fn judge_step(&mut self, time: f64) {
        let verdict = clock::judge(time);
        let step = match verdict {
            Verdict::Kept(step) => step,
            Verdict::Agreed | Verdict::Followed(_) => 0.0,
        };
        match verdict {
            Verdict::Followed(seconds) => tracing::warn!(
                seconds,
                "This machine's clock was set, and the chain's newest block says that it is right now: time is told by it."
            ),
            Verdict::Kept(seconds) if (step - self.judged).abs() > STEP_SECONDS => tracing::warn!(
                seconds,
                "This machine's clock was set, and the chain's newest block says that it was right before: windows and signatures go \
                 on by the time before. Set it right (timedatectl)."
            ),
            Verdict::Agreed if self.judged != 0.0 => tracing::info!("This machine's clock is right again."),
            Verdict::Kept(_) | Verdict::Agreed => {}
        }
        self.judged = step;
    }
}

/// The next notification; never where there is no subscription (any more).
async fn next(receiver: &mut Option<mpsc::Receiver<Value>>) -> Value {
    if let Some(open) = receiver {
        if let Some(value) = open.recv().await {
            return value;
        }
        *receiver = None;
    }
    std::future::pending().await
}

/// A header's number: hex text, padded or not.
pub(crate) fn header_number(header: &Value) -> Option<u64> {
    u64::from_str_radix(header["number"].as_str()?.strip_prefix("0x")?, 16).ok()
}

/// For one wait that is not longer than a second, whatever the patience is.
pub(crate) fn at_most_a_second(time: Duration) -> Duration {
    time.min(Duration::from_secs(1))
}
