//! Extrinsics: call, extensions, payload, bytes, and what the events said of them.

use grail_chain::era::Era;
use grail_chain::events::{self, Verdict};
use grail_chain::extrinsic::{self, Contribution, Terms};
use grail_chain::metadata::Metadata;
use grail_protocol::keys::{Hotkey, KeyScheme, verify};
use parity_scale_codec::{Compact, Encode};
use serde_json::{Map, Value};

use super::values::{bytes, fields, hash, number};
use super::{beside, metadata_218, metadata_365};
use crate::report::{self, Case, Cases, Report, json};

pub fn run(report: &mut Report) {
    report.check("chain/runtime_version.json", |path, cases| {
        let file = json(path);
        cases.equal("specVersion", file["specVersion"].as_u64(), Some(218));
        cases.equal("transactionVersion", file["transactionVersion"].as_u64(), Some(1));
    });
    report.check("chain/extrinsics.json", |path, cases| {
        let metadata = metadata_218(path);
        let renamed = report::bytes(&beside(path, "metadata_218_v14_renamed.scale.gz"));
        let renamed = Metadata::decode(&renamed).expect("renamed metadata");
        for case in json(path).as_array().expect("cases") {
            let name = case["name"].as_str().expect("a name");
            cases.case(format!("{name}: bytes"), || built(&metadata, case));
            cases.case(format!("{name}: bytes, payment extension renamed"), || built(&renamed, case));
            if !case["included"].is_null() {
                cases.case(format!("{name}: events"), || judged(&metadata, case));
            }
        }
    });
    report.check("chain/newer_metadata.json", |path, cases| {
        let metadata = metadata_365(path);
        let file = json(path);
        for (index, case) in file["extrinsics"].as_array().expect("extrinsics").iter().enumerate() {
            cases.case(format!("extrinsic {index}"), || built(&metadata, case));
        }
        file["eras"].as_array().expect("eras").iter().for_each(|case| era(case, cases));
        for case in file["nonces"].as_array().expect("nonces") {
            let encoded = Compact(number::<u32>(&case["nonce"])).encode();
            cases.equal(format!("nonce {}", case["nonce"]), encoded, bytes(&case["compact"]));
        }
    });
}

fn era(case: &Value, cases: &mut Cases) {
    let current = number(&case["current"]);
    let era = Era::mortal(number(&case["period"]), current);
    let name = |what: &str| format!("era {} at {current}: {what}", case["period"]);
    cases.equal(name("bytes"), era.encode(), bytes(&case["encoded"]));
    // Above a period of 4096 the encoding holds the phase rounded down, and the runtime counts from that (chain 5); the vectors
    // give the phase so, but birth and death from the block as it was.
    let rounded = current % number::<u64>(&case["period"]) - number::<u64>(&case["phase"]);
    cases.equal(name("birth"), Some(era.birth(current) + rounded), case["birth"].as_u64());
    cases.equal(name("death"), Some(era.death(current) + rounded), case["dies_at"].as_u64());
    cases.equal(name("read back"), Era::decode(&mut era.encode().as_slice()), Some(era));
}

/// What was given to the signer, and what a correct signer would have taken instead, where the case is about a mistake.
fn terms(case: &Value) -> Terms {
    let additional = |name: &str| {
        let listed = case["extensions"].as_array().expect("extensions");
        bytes(&listed.iter().find(|one| one["id"] == name).expect("the extension")["additional"])
    };
    let word = |name: &str| u32::from_le_bytes(additional(name).try_into().expect("4 bytes"));
    let era = match case["era"].as_object() {
        Some(era) => {
            let current = era.get("current").or(era.get("birth")).expect("a block");
            Era::mortal(number(&era["period"]), number(current))
        }
        None => Era::Immortal,
    };
    Terms {
        spec_version: word("CheckSpecVersion"),
        transaction_version: word("CheckTxVersion"),
        genesis: additional("CheckGenesis").try_into().expect("32 bytes"),
        era,
        birth_hash: additional("CheckMortality").try_into().expect("32 bytes"),
        nonce: number(&case["nonce"]),
        tip: number(&case["tip"]),
    }
}

fn recorded(case: &Value) -> Vec<Contribution> {
    let contribution = |one: &Value| Contribution {
        name: one["id"].as_str().expect("a name").into(),
        extra: bytes(&one["extra"]),
        additional: bytes(&one["additional"]),
    };
    case["extensions"].as_array().expect("extensions").iter().map(contribution).collect()
}

fn call(metadata: &Metadata, case: &Value, want: &[u8]) -> Result<Vec<u8>, String> {
    // One field of raw bytes is what a miner writes; other calls are taken as recorded.
    let raw = want.len() > 6 && want[0] == 18 && want[4] == 4 && usize::from(want[5]) == want.len() - 5 && want[5] <= 129;
    if !raw {
        return Ok(want.to_vec());
    }
    let netuid = u16::from_le_bytes([want[2], want[3]]);
    let got = extrinsic::set_commitment(metadata, netuid, &want[6..]).map_err(|error| error.to_string())?;
    if got == want { Ok(got) } else { Err(format!("{}: another call", case["name"])) }
}

/// The bytes follow from metadata and terms, except the signature, which is compared by verification.
fn built(metadata: &Metadata, case: &Value) -> Case {
    let call = call(metadata, case, &bytes(&case["call"]))?;
    let terms = terms(case);
    let mut contributions = extrinsic::contributions(metadata, &terms).map_err(|error| error.to_string())?;
    let name = case["name"].as_str().unwrap_or_default();
    let wanted = recorded(case);
    // The runtime's verdict on another mode was wanted there; this signer never writes one.
    if name == "err_metadata_hash_mode_without_hash" {
        contributions.clone_from(&wanted);
    }
    let same = |(got, want): (&Contribution, &Contribution)| (&got.extra, &got.additional) == (&want.extra, &want.additional);
    if contributions.len() != wanted.len() || !contributions.iter().zip(&wanted).all(same) {
        return Err(format!("got {contributions:?}"));
    }
    let message = extrinsic::signed_bytes(&call, &contributions);
    if case.get("signed_bytes").is_some_and(|signed| bytes(signed) != message) {
        return Err("other bytes are signed".into());
    }
    let hotkey = Hotkey::from_uri(case["signer_uri"].as_str().expect("a URI")).map_err(|error| error.to_string())?;
    let signature: [u8; 64] = bytes(&case["signature"]).try_into().expect("64 bytes");
    if name != "err_bad_signature" && !verify(KeyScheme::Sr25519, hotkey.address(), &message, &hex::encode(signature)) {
        return Err("the recorded signature does not verify over these bytes".into());
    }
    // That case lacks the last byte of the whole, whatever its name says.
    let on_wire = if name == "err_missing_mode_byte" { &call[..call.len() - 1] } else { &call };
    let mut whole = extrinsic::assemble(on_wire, &contributions, &hotkey.public_key(), &signature);
    if name == "err_wrong_signature_kind" {
        // Behind length (2 bytes), version, kind of address and key: the kind of signature, Ed25519.
        whole.bytes[36] = 0;
        return if whole.bytes == bytes(&case["extrinsic"]) { Ok(()) } else { Err("other bytes".into()) };
    }
    if whole.bytes != bytes(&case["extrinsic"]) || whole.hash != hash(&case["extrinsic_hash"]) {
        return Err(format!("other bytes: {}", hex::encode(&whole.bytes)));
    }
    resigned(metadata, &call, &terms, &hotkey, &whole.bytes)
}

/// Our own signature makes the same bytes but for the signature, which verifies.
fn resigned(metadata: &Metadata, call: &[u8], terms: &Terms, hotkey: &Hotkey, want: &[u8]) -> Case {
    let ours = extrinsic::sign(metadata, call, terms, hotkey).map_err(|error| error.to_string())?;
    let signature = 37..101;
    let masked = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[signature.clone()].fill(0);
        bytes
    };
    let honest = extrinsic::contributions(metadata, terms).map_err(|error| error.to_string())?;
    let message = extrinsic::signed_bytes(call, &honest);
    let verifies = verify(KeyScheme::Sr25519, hotkey.address(), &message, &hex::encode(&ours.bytes[signature.clone()]));
    let mode_differs = want.len() != ours.bytes.len() || masked(want) != masked(&ours.bytes);
    match (verifies, mode_differs) {
        (false, _) => Err("our signature does not verify".into()),
        (true, true) if want.len() == ours.bytes.len() && honest.last().is_some_and(|last| last.extra == [0]) => {
            let differing = masked(want).iter().zip(masked(&ours.bytes)).filter(|(a, b)| *a != b).count();
            // Only the mode byte that this signer never sets.
            if differing == 1 { Ok(()) } else { Err(format!("{differing} bytes differ")) }
        }
        (true, true) if want.len() + 1 == ours.bytes.len() && ours.bytes[2..].starts_with(&want[2..37]) => Ok(()),
        (true, true) => Err("other bytes".into()),
        (true, false) => Ok(()),
    }
}

fn judged(metadata: &Metadata, case: &Value) -> Case {
    let included = &case["included"];
    let decoded = events::decode(metadata, &bytes(&included["events_raw"])).map_err(|error| error.to_string())?;
    if decoded.undecoded > 0 {
        return Err(format!("{} records were not decoded", decoded.undecoded));
    }
    let index = number(&included["index"]);
    let own = decoded.events.iter().filter(|event| event.extrinsic == Some(index));
    let shown: Vec<Value> = own
        .map(|event| {
            let inner = Map::from_iter([(event.name.clone(), fields(&event.fields))]);
            Map::from_iter([(event.pallet.clone(), inner.into())]).into()
        })
        .collect();
    let want = included["events_of_this_extrinsic"].as_array().expect("events");
    if without_blanks(&shown) != without_blanks(want) {
        return Err(format!("got {}, want {}", Value::from(shown), Value::from(want.clone())));
    }
    let name = case["name"].as_str().expect("a name");
    let wanted = match name {
        "err_rate_limit" => "Commitments.CommitmentSetRateLimitExceeded",
        "err_unregistered" | "err_wrong_netuid" => "Commitments.AccountNotAllowedCommit",
        _ => "success",
    };
    let got = match decoded.verdict(metadata, index) {
        Verdict::Success => "success".to_owned(),
        Verdict::Failed(error) => error.to_string(),
        Verdict::Untold => "untold".to_owned(),
    };
    if got == wanted { Ok(()) } else { Err(format!("got {got}, want {wanted}")) }
}

/// Empty fields are written in more than one way.
fn without_blanks(events: &[Value]) -> String {
    Value::from(events.to_vec()).to_string().replace("{}", "[]")
}
