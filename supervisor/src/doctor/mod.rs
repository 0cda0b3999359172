//! `doctor`: what an operator gets wrong, looked at in one go, each with what to do.
//!
//! ```text
//!  wallet ─▶ chain ─▶ subnet ─┬─▶ our bucket, with the write pair and with the published one        subnet, bucket
//!                             └─▶ the trainer's checkpoint ─▶ disk, memory                          checkpoint, host
//!  beside it: drand · dataset · ports · open files · GPUs · proof worker · generation server        accelerators
//!             what a generation server on GPUs compiles with, and where it keeps it                 toolchain
//! ```
//!
//! Every row is looked at whatever the others say, each within a time of its own. Judging is pure, in functions that end in
//! `_row`; asking is around them. Nothing is left behind: in the bucket only objects of the doctor's own, which it removes.

mod accelerators;
mod bucket;
mod checkpoint;
mod greeting;
mod host;
mod row;
mod subnet;
mod toolchain;
mod trial;

use std::future::Future;
use std::time::Duration;

use grail_protocol::keys::address_of;

use grail_settings::{Loaded, Settings};
use grail_subnet::buckets::Buckets;
use grail_subnet::chain::Standing;
use grail_subnet::configured::open_chain;
use grail_subnet::dataset::check_dataset;

pub use row::{Row, Verdict, json, table};

/// Longest wait for one answer from outside.
const PATIENCE: Duration = Duration::from_secs(45);

/// Waits for an answer from outside, no longer than [`PATIENCE`].
async fn within<T>(answer: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(PATIENCE, answer).await.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))
}

/// Looks at everything. Rows come in a fixed order.
pub async fn examine(loaded: &Loaded) -> Vec<Row> {
    let settings = &loaded.settings;
    let (state, running) = host::state(settings);
    let layout = accelerators::layout(settings);
    let blocking = {
        let (settings, layout) = (settings.clone(), layout.clone());
        // Rows that read files and ask the driver.
        tokio::task::spawn_blocking(move || {
            let dataset = check_dataset(&settings);
            (dataset, accelerators::gpus(&layout, running))
        })
    };
    let ((mut rows, told), beacon, worker, server, blocking) = tokio::join!(
        outside(settings, running),
        subnet::beacon(&settings.beacon),
        accelerators::worker(settings, &layout),
        accelerators::server(settings, &layout),
        blocking,
    );
    let at = rows.iter().position(|row| row.what == "trainer").map_or(rows.len(), |at| at + 1);
    rows.insert(at, beacon);
    rows.extend([host::open_files(settings), host::ports(settings, running), state]);
    match blocking {
        Ok((dataset, gpus)) => rows.extend([host::dataset_row(settings, &dataset, told), gpus]),
        Err(error) => rows.push(Row::not_asked("dataset, GPUs", error.to_string())),
    }
    rows.extend([worker, server]);
    rows.extend(toolchain::rows(settings));
    rows.push(host::variables(loaded));
    rows
}

/// What hangs together: from the wallet to what a checkpoint takes on disk. And the chain's block 0, if it tells that.
async fn outside(settings: &Settings, running: bool) -> (Vec<Row>, Option<Option<[u8; 32]>>) {
    let (wallet, hotkey) = subnet::wallet(settings);
    let mut rows = vec![wallet];
    let mut buckets = Buckets::open(&settings.storage, PATIENCE, false).await;
    let chain = match &buckets {
        Ok(buckets) => open_chain(settings, hotkey.as_ref(), buckets).map_err(|error| error.to_string()),
        Err(_) => Err("it is not asked without a bucket".into()),
    };
    // Without a hotkey the subnet is looked at as a stranger.
    let address = hotkey.as_ref().map_or_else(|| address_of(&[0; 32]), |hotkey| hotkey.address().to_owned());
    let (chain_rows, window, standing) = match &chain {
        Ok(chain) => {
            let ((rows, window), standing) =
                tokio::join!(subnet::chain(chain.as_ref()), subnet::standing(chain.as_ref(), &address));
            (rows, window, standing)
        }
        Err(why) => {
            (vec![Row::not_asked("chain", why), Row::not_asked("clock", "the chain tells no time")], None, Err(why.clone()))
        }
    };
    rows.extend(chain_rows);
    let (readers, told) = match (&mut buckets, &chain) {
        (Ok(buckets), Ok(chain)) => {
            let told = within(chain.genesis()).await.ok().and_then(Result::ok);
            (bucket::Readers::learn(settings, told, buckets), told)
        }
        _ => (bucket::Readers::Known, None),
    };
    let configured = buckets.as_ref().ok().map(|buckets| &buckets.commitment);
    rows.extend(subnet::standing_rows(settings.netuid, hotkey.as_ref(), configured, &standing, window.is_some()));
    let standing = standing.ok();
    let (bucket_rows, (checkpoint, found)) = match &buckets {
        Ok(buckets) => {
            let published = hotkey.as_ref().and(standing.as_ref()).and_then(|standing| standing.own_bucket.as_ref());
            let address = hotkey.as_ref().map(|_| address.as_str());
            let ours = async {
                let mut rows = bucket::rows(buckets, published, &readers).await;
                rows.push(bucket::beside(buckets, address, window, &readers).await);
                rows
            };
            tokio::join!(ours, checkpoint_of(settings, buckets, standing.as_ref(), window))
        }
        Err(error) => {
            (vec![Row::failed_as_told("bucket write", error)], (Row::not_asked("checkpoint", "there is no bucket client"), None))
        }
    };
    rows.extend(bucket_rows);
    let whole = found.and_then(|found| found.whole);
    rows.extend([checkpoint, host::disk(settings, whole), host::memory(settings, whole, running)]);
    (rows, told)
}

async fn checkpoint_of(
    settings: &Settings,
    buckets: &Buckets,
    standing: Option<&Standing>,
    window: Option<u64>,
) -> (Row, Option<checkpoint::Found>) {
    let unknown = |why: String| (Row::not_asked("checkpoint", why), None);
    let Some(standing) = standing else { return unknown("the chain does not tell whose bucket it is in".into()) };
    let (trainer, bucket) = match standing.trainer() {
        Ok(found) => found,
        Err(error) => return unknown(error.to_string()),
    };
    let signer = settings.trainer.clone().unwrap_or(trainer);
    match buckets.published(&bucket) {
        Ok(bucket) => checkpoint::look(&bucket, signer, window, settings.dataset.as_deref()).await,
        Err(error) => {
            (Row::failed("checkpoint", error.to_string(), "what UID 0 has published makes no client; tell the trainer"), None)
        }
    }
}
