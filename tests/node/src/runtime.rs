//! A runtime: version, metadata, and events in its own types.

use std::io::Read;
use std::path::Path;

use grail_chain::metadata::Metadata;
use parity_scale_codec::{Compact, Encode};
use scale_value::Value;

/// A runtime version with its metadata.
#[derive(Debug)]
pub struct Runtime {
    /// specVersion.
    pub spec_version: u32,
    /// transactionVersion.
    pub transaction_version: u32,
    /// The metadata's version: 14 or 16.
    pub(crate) metadata_version: u8,
    pub(crate) bytes: Vec<u8>,
    pub(crate) metadata: Metadata,
}

impl Runtime {
    /// Reads gzipped metadata.
    #[must_use]
    pub fn read(path: &Path, spec_version: u32) -> Self {
        let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        let metadata = Metadata::decode(&bytes).unwrap();
        Self { spec_version, transaction_version: 1, metadata_version: bytes[4], bytes, metadata }
    }

    /// The value of `System.Events` for records of (extrinsic, pallet, event).
    pub(crate) fn events(&self, records: &[(u32, &str, Value)]) -> Vec<u8> {
        let list = self.metadata.storage("System", "Events").unwrap().value;
        let values = records.iter().map(|(extrinsic, pallet, event)| {
            Value::named_composite([
                ("phase", Value::unnamed_variant("ApplyExtrinsic", [Value::u128((*extrinsic).into())])),
                ("event", Value::unnamed_variant(*pallet, [event.clone()])),
                ("topics", Value::unnamed_composite([])),
            ])
        });
        let mut bytes = Vec::new();
        scale_value::scale::encode_as_type(&Value::unnamed_composite(values), list, self.metadata.types(), &mut bytes).unwrap();
        bytes
    }

    /// A pallet's error as `System.ExtrinsicFailed` has it.
    pub(crate) fn failed(&self, pallet: &str, call: &str, error: impl Fn(&str) -> bool) -> Value {
        let index = self.metadata.call(pallet, call).unwrap().0;
        let number =
            (0..=255).find(|number| self.metadata.error_name(index, *number).is_ok_and(|(_, name)| error(name))).unwrap();
        let module =
            Value::named_composite([("index", Value::u128(index.into())), ("error", Value::from_bytes([number, 0, 0, 0]))]);
        let error = Value::unnamed_variant("Module", [module]);
        Value::named_variant("ExtrinsicFailed", [("dispatch_error", error), ("dispatch_info", self.info())])
    }

    /// `System.ExtrinsicSuccess`.
    pub(crate) fn success(&self) -> Value {
        Value::named_variant("ExtrinsicSuccess", [("dispatch_info", self.info())])
    }

    fn info(&self) -> Value {
        let weight = Value::named_composite([("ref_time", Value::u128(385_074_000)), ("proof_size", Value::u128(6344))]);
        let class = Value::unnamed_variant("Operational", []);
        Value::named_composite([("weight", weight), ("class", class), ("pays_fee", Value::unnamed_variant("No", []))])
    }

    /// The metadata as `state_call("Metadata_metadata_at_version")` gives it: an option of bytes.
    pub(crate) fn at_version(&self, version: u32) -> Vec<u8> {
        if version != u32::from(self.metadata_version) {
            return vec![0];
        }
        let mut bytes = vec![1];
        bytes.extend(Compact(self.bytes.len() as u32).encode());
        bytes.extend(&self.bytes);
        bytes
    }
}
