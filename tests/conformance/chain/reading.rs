//! Metadata, storage keys and values, commitments.

use grail_chain::commitment::Registration;
use grail_chain::metadata::{Metadata, MetadataError};
use grail_chain::storage;
use grail_protocol::keys::public_key_of;
use grail_subnet::chain::BucketCommitment;
use scale_value::Value as Scale;
use serde_json::Value;

use super::values::{bytes, shown};
use super::{metadata_218, metadata_365};
use crate::report::{self, Case, Cases, Report, json};

pub fn run(report: &mut Report) {
    for (file, extensions, limit) in [
        ("chain/metadata_218_v14.scale.gz", 11, "CommitmentSetRateLimitExceeded"),
        ("chain/metadata_218_v14_renamed.scale.gz", 11, "CommitmentSetRateLimitExceeded"),
        ("chain/metadata_365_v16.scale.gz", 12, "SpaceLimitExceeded"),
    ] {
        report.check(file, |path, cases| {
            let bytes = report::bytes(path);
            cases.case("read", || described(&bytes, extensions, limit));
            for length in (0..bytes.len()).step_by(bytes.len() / 97 + 1) {
                cases.case(format!("cut after {length} bytes"), || match Metadata::decode(&bytes[..length]) {
                    Err(MetadataError::Undecodable(_)) => Ok(()),
                    other => Err(format!("{:?}", other.err())),
                });
            }
        });
    }
    report.check("chain/storage.json", |path, cases| {
        let file = json(path);
        for metadata in [metadata_218(path), metadata_365(path)] {
            items(&metadata, &file, cases);
        }
    });
    report.check("chain/commitments.json", |path, cases| {
        let (old, new) = (metadata_218(path), metadata_365(path));
        for case in json(path)["cases"].as_array().expect("cases") {
            let name = case["name"].as_str().expect("a name");
            // What 218 knows, 365 reads the same.
            if case["metadata"] == "218" {
                cases.case(format!("{name} by 218"), || commitment(&old, case));
            }
            cases.case(format!("{name} by 365"), || commitment(&new, case));
        }
    });
}

fn described(bytes: &[u8], extensions: usize, limit: &str) -> Case {
    let metadata = Metadata::decode(bytes).map_err(|error| error.to_string())?;
    let (index, call) = metadata.call("Commitments", "set_commitment").map_err(|error| error.to_string())?;
    let error = metadata.error_name(18, 2).map_err(|error| error.to_string())?;
    let missing = metadata.storage("Commitments", "NoSuchItem").map(|_| ());
    let want = MetadataError::Missing { what: "storage item", name: "Commitments.NoSuchItem".into() };
    let agrees = (index, call.index) == (18, 0)
        && error == ("Commitments", limit)
        && metadata.extensions().len() == extensions
        && metadata.extrinsic_versions().contains(&4)
        && missing == Err(want);
    if agrees { Ok(()) } else { Err(format!("{index} {} {error:?} {:?}", call.index, metadata.extensions())) }
}

fn items(metadata: &Metadata, file: &Value, cases: &mut Cases) {
    for (name, prefix) in file["prefixes"].as_object().expect("prefixes") {
        let (pallet, item) = name.split_once('.').expect("pallet.item");
        cases.case(format!("prefix of {name}"), || {
            let item = metadata.storage(pallet, item).map_err(|error| error.to_string())?;
            if storage::prefix(item) == bytes(prefix) { Ok(()) } else { Err("another prefix".into()) }
        });
    }
    for (name, entries) in file["items"].as_object().expect("items") {
        let (pallet, item) = name.split_once('.').expect("pallet.item");
        for entry in entries.as_array().expect("entries") {
            let arguments: Vec<Scale> = entry["args"].as_array().into_iter().flatten().map(argument).collect();
            cases.case(format!("{name} {}", entry["args"]), || {
                let key = storage::key(metadata, pallet, item, &arguments).map_err(|error| error.to_string())?;
                if key != bytes(&entry["key"]) {
                    return Err(format!("got the key {}", hex::encode(key)));
                }
                if entry["value"].is_null() { Ok(()) } else { decoded(metadata, (pallet, item), entry) }
            });
        }
    }
}

fn argument(value: &Value) -> Scale {
    match value.as_str() {
        Some(address) => Scale::from_bytes(public_key_of(address).expect("an address")),
        None => Scale::u128(value.as_u64().expect("a number").into()),
    }
}

fn decoded(metadata: &Metadata, (pallet, item): (&str, &str), entry: &Value) -> Case {
    let encoded = bytes(&entry["value"]);
    let value = storage::value(metadata, pallet, item, &encoded).map_err(|error| error.to_string())?;
    if item == "CommitmentOf" {
        let registration = Registration::decode(metadata, &encoded).map_err(|error| error.to_string())?;
        let agrees = entry["decoded"]["block"] == registration.block
            && entry["decoded"]["deposit"] == registration.deposit
            && entry["accepted_by_miner_reader"] == registration.text.is_some();
        return if agrees { Ok(()) } else { Err(format!("got {registration:?}")) };
    }
    let mut got = shown(&value);
    // The vectors write an account's balances beside its counters.
    if let Some(Value::Object(data)) = got.as_object_mut().and_then(|account| account.shift_remove("data")) {
        got.as_object_mut().expect("an account").extend(data);
    }
    if got == entry["decoded"] { Ok(()) } else { Err(format!("got {got}, want {}", entry["decoded"])) }
}

fn commitment(metadata: &Metadata, case: &Value) -> Case {
    let read = Registration::decode(metadata, &bytes(&case["registration"]));
    let reader = &case["reader"];
    if case["metadata"] == "none" {
        return if read.is_err() { Ok(()) } else { Err("an entry that must be skipped was read".into()) };
    }
    let read = read.map_err(|error| error.to_string())?;
    if case["deposit"] != read.deposit || case["block"] != read.block {
        return Err(format!("got {read:?}"));
    }
    let Some(text) = read.text else {
        return if reader["accepted"] == false { Ok(()) } else { Err("a commitment was passed over".into()) };
    };
    let bucket = BucketCommitment::decode(&text).map_err(|error| error.to_string())?;
    let agrees = reader["accepted"] == true
        && reader["account_id"] == bucket.account_id.as_str()
        && reader["access_key_id"] == bucket.access_key_id.as_str()
        && reader["secret_access_key"] == bucket.secret_access_key.reveal();
    if agrees { Ok(()) } else { Err("got another bucket".into()) }
}
