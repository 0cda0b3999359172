//! The chain and the buckets that the settings name, opened.

use std::sync::Arc;

use grail_chain::node::Endpoints;
use grail_protocol::keys::Hotkey;
use grail_settings::{self as settings, ConfigErrors, Settings};
use grail_supervision::exit::Failure;

use crate::buckets::Buckets;
use crate::chain::{BucketCommitment, Chain, LocalChain, NetworkChain, genesis};

/// UID 0 of the local chain.
const LOCAL_TRAINER: &str = "//Trainer";

/// The chain of the settings; a local one is founded with the trainer as UID 0 and this hotkey, if there is one and a bucket of its
/// `own`, as UID 1. A network's connects in the background.
///
/// # Errors
/// When the local chain's file cannot be used.
pub fn open_chain(
    settings: &Settings,
    hotkey: Option<&Hotkey>,
    own: Option<&BucketCommitment>,
) -> Result<Arc<dyn Chain>, Failure> {
    match &settings.chain {
        settings::Chain::Local { genesis, block_seconds, file } => {
            tracing::info!(
                genesis,
                block_seconds,
                file = %file.display(),
                "A local chain stands in for the network's: a block clock, with registration and commitments in a file."
            );
            let chain = LocalChain::new(*genesis, *block_seconds, file.clone());
            if let (Some(hotkey), Some(own)) = (hotkey, own) {
                chain.found(&[
                    (local_trainer()?.address().to_owned(), Buckets::local_trainer()),
                    (hotkey.address().to_owned(), own.clone()),
                ])?;
            }
            Ok(Arc::new(chain))
        }
        settings::Chain::Network { name, endpoints, genesis, block_seconds } => {
            tracing::info!(network = name, ?endpoints, netuid = settings.netuid, "The chain is behind these nodes.");
            let endpoints = Endpoints { addresses: endpoints.clone(), genesis: *genesis };
            Ok(Arc::new(NetworkChain::connect(endpoints, settings.netuid, *block_seconds, settings.patience.clone())))
        }
    }
}

/// Lets block 0 decide where buckets are read, before anything is sent to one. A network that is known by name was judged with
/// the settings; of another one its node is asked.
///
/// # Errors
/// A bucket that this network's validators cannot read, or a chain that gives no answer for two minutes.
pub async fn settle(settings: &Settings, chain: &dyn Chain, buckets: &mut Buckets) -> Result<(), Failure> {
    let told = match &settings.chain {
        settings::Chain::Network { genesis: None, .. } => genesis(chain).await?,
        _ => None,
    };
    Ok(settle_on(settings, told, buckets)?)
}

/// The same with what a node has `told` of its block 0.
///
/// # Errors
/// A bucket that this network's validators cannot read.
pub fn settle_on(settings: &Settings, told: Option<[u8; 32]>, buckets: &mut Buckets) -> Result<(), ConfigErrors> {
    let named = if let settings::Chain::Network { genesis, .. } = &settings.chain { *genesis } else { None };
    let Some(genesis) = named.or(told) else { return Ok(()) };
    if settings::network_of(&genesis).is_some() {
        buckets.read_each_at_its_own_address();
    }
    settings.judged_on(&genesis).map(|_| ())
}

/// The key of the local chain's trainer.
///
/// # Errors
/// Never in practice: the development URI is fixed.
pub fn local_trainer() -> Result<Hotkey, Failure> {
    Hotkey::from_uri(LOCAL_TRAINER).map_err(|error| Failure::internal("derive the local trainer's key", error))
}
