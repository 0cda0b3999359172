//! The network's chain and its beacon: keys, values, commitments, extrinsics, events, rounds.

mod beacon;
mod extrinsics;
mod reading;
mod recorded;
mod replay;
mod values;

use std::path::{Path, PathBuf};

use grail_chain::metadata::Metadata;

use crate::report::{Report, bytes};

/// Every vector file of `chain/`.
pub fn run(report: &mut Report) {
    reading::run(report);
    extrinsics::run(report);
    recorded::run(report);
    beacon::run(report);
}

/// The file beside another one.
fn beside(path: &Path, name: &str) -> PathBuf {
    path.with_file_name(name)
}

/// Specification 218, metadata version 14.
fn metadata_218(path: &Path) -> Metadata {
    Metadata::decode(&bytes(&beside(path, "metadata_218_v14.scale.gz"))).expect("metadata of 218")
}

/// Specification 365, metadata version 16.
fn metadata_365(path: &Path) -> Metadata {
    Metadata::decode(&bytes(&beside(path, "metadata_365_v16.scale.gz"))).expect("metadata of 365")
}
