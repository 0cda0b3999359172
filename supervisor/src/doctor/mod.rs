//! `doctor`: what an operator gets wrong, looked at in one go, each with what to do.
//!
//! ```text
//!  wallet ─▶ chain ─▶ subnet ─┬─▶ our bucket, with the write pair and with the published one        subnet, bucket
//!                             └─▶ the trainer's checkpoint ─▶ disk, memory                          checkpoint, host
//!  beside it: drand · dataset · ports · open files · GPUs · proof worker · generation server        accelerators
//!             what a generation server on GPUs compiles with, and where it keeps it                 toolchain
//! ```
//!
//! Every row is looked at whatever the others say and whatever is wrong with settings that are another row's, each within a time of its own. Judging is pure, in functions that end in
//! `_row`; asking is around them. Nothing is left behind: in the bucket only objects of the doctor's own, which it removes.

mod accelerators;
mod bucket;
mod checkpoint;
mod greeting;
mod host;
mod row;
mod start;
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
use grail_supervision::exit::Failure;
use grail_workers::plan::Plan;
use grail_workers::preflight::Preflight;

pub use row::{Row, Verdict, json, table};

/// Longest wait for one answer from outside.
const PATIENCE: Duration = Duration::from_secs(45);

/// Why something is not looked at.
const OF_SETTINGS: &str = "its settings are not in order (row settings)";

/// Waits for an answer from outside, no longer than [`PATIENCE`].
async fn within<T>(answer: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(PATIENCE, answer).await.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))
}

/// Looks at everything. Rows come in a fixed order.
pub async fn examine(loaded: &Loaded) -> Vec<Row> {
    let settings = &loaded.settings;
    let preflight = Preflight::of_host(settings);
    let (state, running) = match &preflight.sockets {
        Some(error) => (Row::failed_as_told("state", error), false),
        None => host::state(settings),
    };
    let layout = match loaded.mistakes.concern(&["proof", "generation"]) {
        true => Err(OF_SETTINGS.to_owned()),
        false => accelerators::layout(&preflight),
    };
    let blocking = {
        let (settings, layout) = (settings.clone(), layout.clone());
        let no_dataset = loaded.mistakes.concern(&["environment"]);
        // Rows that read files and ask the driver.
        tokio::task::spawn_blocking(move || {
            let dataset = if no_dataset { Err(Failure::Configuration(OF_SETTINGS.into())) } else { check_dataset(&settings) };
            let gpus = match layout {
                Err(why) if why == OF_SETTINGS => Row::not_asked("GPUs", why),
                layout => accelerators::gpus(&layout, running),
            };
            (dataset, gpus)
        })
    };
    let ((mut rows, told), beacon, workers, server, blocking) = tokio::join!(
        outside(loaded, running),
        beacon(loaded),
        accelerators::workers(settings, &layout),
        server(loaded, &layout),
        blocking,
    );
    let at = rows.iter().position(|row| row.what == "trainer").map_or(rows.len(), |at| at + 1);
    rows.insert(at, beacon);
    rows.extend([host::open_files(settings), host::ports(settings, running), state]);
    match blocking {
        Ok((dataset, gpus)) => rows.extend([host::dataset_row(settings, &dataset, told), gpus]),
        Err(error) => rows.push(Row::not_asked("dataset, GPUs", error.to_string())),
    }
    rows.extend(workers);
    rows.push(server);
    rows.extend(toolchain::rows(settings));
    rows.extend([start::temporary_row(&preflight), start::proxy_row(&preflight), host::variables(loaded)]);
    rows.insert(0, start::settings_row(loaded));
    rows
}

/// What hangs together: from the wallet to what a checkpoint takes on disk. And the chain's block 0, if it tells that.
async fn outside(loaded: &Loaded, running: bool) -> (Vec<Row>, Option<Option<[u8; 32]>>) {
    let settings = &loaded.settings;
    let mistakes = |section| start::mistakes(&loaded.mistakes, section);
    let (wallet, hotkey) = match mistakes(start::WALLET) {
        Some(told) => (Row::failed_as_told("wallet", &told), None),
        None => subnet::wallet(settings),
    };
    let mut rows = vec![wallet];
    let mut buckets = match mistakes(start::BUCKET) {
        Some(told) => Err(Failure::Configuration(told)),
        None => Buckets::open(&settings.storage, PATIENCE, false).await,
    };
    let own = buckets.as_ref().ok().map(|buckets| &buckets.commitment);
    let chain = match loaded.mistakes.concern(&["chain"]) {
        true => Err(OF_SETTINGS.to_owned()),
        false => open_chain(settings, hotkey.as_ref(), own).map_err(|error| error.to_string()),
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
    let told = match &chain {
        Ok(chain) => within(chain.genesis()).await.ok().and_then(Result::ok),
        Err(_) => None,
    };
    let readers = match (&mut buckets, &chain) {
        (Ok(buckets), Ok(_)) => bucket::Readers::learn(settings, told, buckets),
        _ => bucket::Readers::Known,
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
            let why = "there is no bucket client (row bucket write)";
            let others = ["bucket read", "read-only pair", "window files"].map(|what| Row::not_asked(what, why));
            let rows = [Row::failed_as_told("bucket write", error)].into_iter().chain(others).collect();
            (rows, (Row::not_asked("checkpoint", why), None))
        }
    };
    rows.extend(bucket_rows);
    let whole = found.and_then(|found| found.whole);
    rows.extend([checkpoint, host::disk(settings, whole), host::memory(settings, whole, running)]);
    (rows, told)
}

async fn beacon(loaded: &Loaded) -> Row {
    match loaded.mistakes.concern(&["beacon"]) {
        true => Row::not_asked("drand", OF_SETTINGS),
        false => subnet::beacon(&loaded.settings.beacon).await,
    }
}

async fn server(loaded: &Loaded, layout: &Result<Plan, String>) -> Row {
    match loaded.mistakes.concern(&["generation"]) {
        true => Row::not_asked("server", OF_SETTINGS),
        false => accelerators::server(&loaded.settings, layout).await,
    }
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
