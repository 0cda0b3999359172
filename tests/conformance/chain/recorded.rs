//! Recorded exchanges with a node: what a client reads must be found in them.

use std::collections::BTreeMap;

use grail_chain::commitment::Registration;
use grail_chain::events::{self, Verdict};
use grail_chain::metadata::Metadata;
use serde_json::Value;

use super::metadata_218;
use super::values::bytes;
use crate::report::{Cases, Report, json_lines};

/// Beginnings of keys: `System.Events`, `Commitments.CommitmentOf`.
const EVENTS: &str = "0x26aa394eea5630e07c48ae0c9558cef780d41e5e16056765bc8461851072c9d7";
const COMMITMENT_OF: &str = "0xca407206ec1ab726b2636c4b145ac287419a60ae8b01e6dcaebd7317e43c69bf";

pub fn run(report: &mut Report) {
    for file in ["chain/rpc.jsonl", "chain/python_client.jsonl"] {
        report.check(file, |path, cases| {
            let metadata = metadata_218(path);
            let lines = json_lines(path);
            super::replay::run(path, &lines, cases);
            blocks(&metadata, &lines, cases);
            commitments(&metadata, &lines, cases);
        });
    }
}

/// Own extrinsics in recorded blocks, by equal bytes, and the verdict of the block's events.
fn blocks(metadata: &Metadata, lines: &[Value], cases: &mut Cases) {
    let mut bodies: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    let mut submitted = Vec::new();
    for line in lines {
        let (method, params) = (line["request"]["method"].as_str().unwrap_or_default(), &line["request"]["params"]);
        if method.starts_with("author_submit") {
            submitted.push(&params[0]);
        }
        if let ("chain_getBlock", Some(hash)) = (method, params[0].as_str()) {
            let extrinsics = line["response"]["result"]["block"]["extrinsics"].as_array();
            bodies.insert(hash, extrinsics.into_iter().flatten().collect());
        }
        let key = params[0].as_str().unwrap_or_default();
        let Some(body) = params[1].as_str().and_then(|hash| bodies.get(hash)).filter(|_| key == EVENTS) else { continue };
        let name = line.get("case").or(line.get("note")).and_then(Value::as_str).unwrap_or_default();
        cases.case(format!("events: {name}"), || {
            let position = body.iter().position(|one| submitted.contains(one)).ok_or("the extrinsic is not in the block")?;
            let decoded = events::decode(metadata, &bytes(&line["response"]["result"])).map_err(|error| error.to_string())?;
            let got = decoded.verdict(metadata, position as u32);
            let failed = matches!(&got, Verdict::Failed(error) if error.pallet.as_deref() == Some("Commitments"));
            let wanted = matches!(name, "err_rate_limit" | "err_unregistered" | "err_wrong_netuid");
            if failed == wanted && got != Verdict::Untold { Ok(()) } else { Err(format!("got {got:?}")) }
        });
    }
}

/// Every commitment that was read, alone or in a list.
fn commitments(metadata: &Metadata, lines: &[Value], cases: &mut Cases) {
    for line in lines {
        let result = &line["response"]["result"];
        let single = line["request"]["params"][0].as_str().filter(|key| key.starts_with(COMMITMENT_OF)).map(|_| result);
        let changes = result[0]["changes"].as_array().into_iter().flatten();
        let listed =
            changes.filter(|change| change[0].as_str().is_some_and(|key| key.starts_with(COMMITMENT_OF))).map(|one| &one[1]);
        for value in single.into_iter().chain(listed).filter(|value| value.is_string()) {
            cases.case("commitment", || {
                let read = Registration::decode(metadata, &bytes(value)).map_err(|error| error.to_string())?;
                if read.block > 0 { Ok(()) } else { Err(format!("got {read:?}")) }
            });
        }
    }
}
