//! Checkpoints against the vectors: what the network's own publisher wrote, read back and damaged.

mod codec;
mod served;

use std::path::Path;

use base64::Engine;
use grail_store::checkpoint::{self, CheckpointError, FetchLimits};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::report::{Case, Cases, Report, json};
use served::{Served, files_below};

/// The development key that signed the manifests of the vectors.
const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
/// A message that says what to do has one of these.
const REMEDIES: [&str; 3] = ["ait for", "sk its trainer", "try again"];

/// Runs every check of checkpoints.
pub fn run(report: &mut Report) {
    for chain in report.folders("checkpoints", |name| name.starts_with("chain")) {
        report.check(&format!("{chain}/bucket"), published_objects);
        report.check(&format!("{chain}/expect.json"), chain_expectations);
        report.check(&format!("{chain}/damaged"), damaged_checkpoints);
    }
    report.check("checkpoints/codec.json", codec::run);
    report.skip(
        "checkpoints/fast_path.json",
        "it tells what the reference does to a process over time, without the objects it did it with",
    );
}

fn published_objects(bucket: &Path, cases: &mut Cases) {
    let expect = json(&bucket.with_file_name("expect.json"));
    let objects = expect["objects"].as_object().cloned().unwrap_or_default();
    for (key, want) in &objects {
        cases.case(key, || {
            let path = bucket.join(key);
            let got = checkpoint::file_sha256(&path).map_err(|error| error.to_string())?;
            if want["sha256"] == got.as_str() { Ok(()) } else { Err(format!("sha256 {got}")) }
        });
    }
    for path in files_below(bucket).into_iter().filter(|path| path.ends_with("manifest.sig")) {
        cases.case(format!("signature {}", path.display()), || {
            let document = std::fs::read(path.with_file_name("metadata.json")).map_err(|error| error.to_string())?;
            let signature = std::fs::read(&path).map_err(|error| error.to_string())?;
            let signed = checkpoint::is_signed_by(ALICE, &document, &signature);
            if signed { Ok(()) } else { Err("does not verify".into()) }
        });
    }
}

fn chain_expectations(path: &Path, cases: &mut Cases) {
    let expect = json(path);
    let tree = path.with_file_name("bucket");
    for (window, want) in expect["discovery_before_window"].as_object().into_iter().flatten() {
        cases.case(format!("discovery before {window}"), || {
            let served = Served::start(&tree, &[], None)?;
            let window = window.parse().map_err(|_| "the vector's window is no number")?;
            let found = served.wait(checkpoint::discover(&served.bucket, window)).map_err(|error| error.to_string())?;
            let got = found;
            if want["latest_ready"].as_u64() == got { Ok(()) } else { Err(format!("got {got:?}, want {want}")) }
        });
    }
    for (name, case) in expect["cases"].as_object().into_iter().flatten() {
        cases.case(name, || judge(&Served::start(&tree, &[], None)?, case, true));
    }
    let preferred = &expect["metadata_preference"];
    cases.case("metadata preference", || {
        let served = Served::start(&tree, &[], None)?;
        let window = preferred["window"].as_u64().ok_or("the vector names no window")?;
        let limits = FetchLimits { trainer: Some(ALICE.into()), ..FetchLimits::default() };
        let metadata = served.wait(checkpoint::fetch_metadata(&served.bucket, window, &limits)).map_err(|e| e.to_string())?;
        let got = metadata.checkpoint_type.unwrap_or_default();
        if preferred["get_checkpoint_metadata_type"] == got.as_str() { Ok(()) } else { Err(format!("it is a {got}")) }
    });
}

fn damaged_checkpoints(folder: &Path, cases: &mut Cases) {
    let tree = folder.with_file_name("bucket");
    for (name, case) in json(&folder.join("verdicts.json")).as_object().into_iter().flatten() {
        cases.case(name, || {
            let deleted: Vec<&str> = case["delete"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            judge(&Served::start(&tree, &deleted, Some(&folder.join(name).join("replace")))?, case, false)
        });
    }
}

/// Fetches the case's target and compares with the reference's verdict, or with ours where it is stricter.
fn judge(served: &Served, case: &Value, signed: bool) -> Case {
    let trainer = signed.then(|| ALICE.to_owned());
    let window = case["target"].as_u64().ok_or("a case has a target window")?;
    // "Warm" is told by what the reference's cache holds in the end.
    let leftover: Vec<&str> = case["leftover_dirs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let earlier = case["pre_fetch"].as_array().into_iter().flatten().filter_map(Value::as_u64);
    let warm = leftover.iter().filter(|_| signed).filter_map(|dir| dir.strip_prefix("checkpoint-")?.parse().ok());
    for earlier in earlier.chain(warm.filter(|earlier| *earlier < window)) {
        // Only fills the cache as the case asks; the verdict is on the target.
        let _ = served.fetch(earlier, trainer.clone());
    }
    let got = served.fetch(window, trainer);
    let dirs = served.cached();
    match (got, case["verdict"] == "ok") {
        (Ok(dir), true) => {
            let whole: Vec<&str> = dirs.iter().map(String::as_str).filter(|dir| !dir.starts_with("delta-")).collect();
            if whole != leftover {
                return Err(format!("the cache holds {whole:?}, want {leftover:?}"));
            }
            same_result(&dir, &case["result"])
        }
        (Ok(_), false) => Err("was accepted, should be rejected".into()),
        (Err(error), accepted) => {
            if let Some(stranger) = dirs.iter().find(|dir| !leftover.contains(&dir.as_str())) {
                return Err(format!("left {stranger} behind: {error}"));
            }
            if !REMEDIES.iter().any(|remedy| error.to_string().contains(remedy)) {
                return Err(format!("does not say what to do: {error}"));
            }
            if accepted { stricter(served, window, &case["result"], &error) } else { same_reason(&case["log"], &error) }
        }
    }
}

/// Rejected for what the reference's log names.
fn same_reason(log: &Value, error: &CheckpointError) -> Case {
    let log = log.to_string();
    let same = match error {
        CheckpointError::WrongHash { .. } => log.contains("Checksum mismatch"),
        CheckpointError::WrongWeights { .. } => log.contains("hash mismatch"),
        CheckpointError::MissingFile { .. } => log.contains("Missing file"),
        CheckpointError::NotReady { .. } => log.contains("not ready"),
        CheckpointError::BrokenLink { .. } => [
            "Failed to apply delta chain",
            "Unsupported delta format",
            "Cannot fetch metadata for chain link",
            "missing prev_window",
        ]
        .iter()
        .any(|reason| log.contains(reason)),
        _ => false,
    };
    if same { Ok(()) } else { Err(format!("rejected, but for another reason than {log}: {error}")) }
}

/// What the reference accepts without verifying and this build refuses.
fn stricter(served: &Served, window: u64, result: &Value, error: &CheckpointError) -> Case {
    let key = |kind: fn(u64, &str) -> String| served.path(&kind(window, "metadata.json"));
    let document = std::fs::read(key(checkpoint::full_key)).or_else(|_| std::fs::read(key(checkpoint::delta_key)));
    let metadata: Value = document.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let unlisted = metadata["file_manifest"].as_object().is_none_or(serde_json::Map::is_empty);
    let unhashed = metadata["checkpoint_type"] == "DELTA" && metadata["weights_hash"].is_null();
    let wrong_hash = metadata["weights_hash"].is_string() && metadata["weights_hash"] != result["weights_hash_xxh3_128"];
    match error {
        CheckpointError::Unverifiable { .. } if unlisted || unhashed => Ok(()),
        CheckpointError::WrongWeights { .. } if wrong_hash => Ok(()),
        other => Err(format!("should be accepted: {other}")),
    }
}

fn same_result(dir: &Path, want: &Value) -> Case {
    let got: Vec<String> = served::names_in(dir);
    let mut names: Vec<String> = match &want["files"] {
        Value::Array(names) => names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        Value::Object(files) => files.keys().cloned().collect(),
        _ => got.clone(),
    };
    names.sort();
    if names != got {
        return Err(format!("files {got:?}, want {names:?}"));
    }
    let hash = checkpoint::weights_hash(dir).map_err(|error| error.to_string())?;
    if want["weights_hash_xxh3_128"].as_str().is_some_and(|want| want != hash) {
        return Err(format!("weights hash {hash}"));
    }
    for (name, tensor) in want["tensors"].as_object().into_iter().flatten() {
        same_tensor(dir, name, tensor)?;
    }
    same_metadata(dir, &want["local_metadata"])
}

/// The keys that the reference writes have its values here, and the manifest is of the same files and right.
fn same_metadata(dir: &Path, want: &Value) -> Case {
    let got = json(&dir.join("metadata.json"));
    for (key, want) in want.as_object().into_iter().flatten() {
        if key == "file_manifest" {
            let names = |manifest: &Value| manifest.as_object().map(|files| files.keys().cloned().collect()).unwrap_or_default();
            let (mine, theirs): (Vec<String>, Vec<String>) = (names(&got[key]), names(want));
            let sorted = |mut names: Vec<String>| {
                names.sort();
                names
            };
            if sorted(mine.clone()) != sorted(theirs) {
                return Err(format!("manifest of {mine:?}"));
            }
        } else if got[key] != *want {
            return Err(format!("local metadata has {key} {}, want {want}", got[key]));
        }
    }
    match checkpoint::verify_dir(dir) {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("does not verify: {other:?}")),
    }
}

fn same_tensor(dir: &Path, name: &str, want: &Value) -> Case {
    let places = checkpoint::tensor_places(dir).map_err(|error| error.to_string())?;
    let place = places.get(name).ok_or_else(|| format!("tensor {name} is missing"))?;
    let bytes = place.read().map_err(|error| error.to_string())?;
    let shape: Vec<u64> = want["shape"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let got: Vec<u64> = place.shape.iter().map(|side| *side as u64).collect();
    let sha256 = hex::encode(Sha256::digest(bytes));
    if want["sha256"] == sha256.as_str() && shape == got { Ok(()) } else { Err(format!("tensor {name}: {sha256} {got:?}")) }
}

/// Bytes that the vectors hold as base64.
fn base64(value: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default()).expect("base64")
}
