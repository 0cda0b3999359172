//! `codec.json`: bodies that the network's encoder wrote, bodies that lie, and what applying one leads to.

use std::path::Path;

use grail_store::checkpoint::sparse::{SparseFormat, SparseReader, SparseTensor, ValueType, encode};
use grail_store::checkpoint::{self, CheckpointError, delta_key, full_key, ready_key};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::base64;
use super::served::Served;
use crate::report::{Case, Cases, brief, json as read_json};

/// A body of the vectors is small.
const LIMIT: u64 = 1 << 24;
/// Where a case's base and its difference are published.
const BASE: u64 = 30;
const TARGET: u64 = 60;

pub fn run(path: &Path, cases: &mut Cases) {
    let file = read_json(path);
    for case in list(&file["cases"]) {
        for (format, want) in case["codecs"].as_object().into_iter().flatten() {
            let format = SparseFormat::named(&format!("sparse_codec_{format}")).expect("a known format");
            let name = format!("{} {}", case["case"], format.name());
            cases.case(format!("{name} encoded"), || encoded(case, format, want));
            cases.case(format!("{name} decoded"), || decoded(format, want));
        }
    }
    for case in list(&file["malformed"]["cases"]) {
        cases.case(format!("malformed {}", case["case"]), || malformed(&file["malformed"]["base"]["w"], case));
    }
    for case in list(&file["apply"]) {
        cases.case(format!("apply {}", case["case"]), || applied(case));
    }
    for case in list(&file["weights_hash"]) {
        let tensors: Vec<(String, Vec<u8>)> =
            list(&case["tensors"]).iter().map(|tensor| (text(&tensor["name"]), base64(&tensor["data_b64"]))).collect();
        let got = checkpoint::hash_tensors(tensors.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
        cases.equal(&case["case"], got, text(&case["weights_hash_xxh3_128"]));
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn numbers(value: &Value) -> Vec<u64> {
    list(value).iter().filter_map(Value::as_u64).collect()
}

/// The flat positions of rows and columns.
fn flat(shape: &[u64], rows: &[u64], columns: &[u64]) -> Vec<u32> {
    let width: u64 = shape.iter().skip(1).product();
    rows.iter().zip(columns).map(|(row, column)| u32::try_from(row * width + column).expect("small")).collect()
}

/// A tensor of the vectors, its entries put in order.
fn tensor(name: &Value, shape: Vec<u64>, positions: Vec<u32>, dtype: &Value, values: &[u8]) -> SparseTensor {
    let value_type = ValueType::named(dtype.as_str().unwrap_or_default()).expect("a value type");
    let mut entries: Vec<(u32, &[u8])> = positions.into_iter().zip(values.chunks(value_type.width())).collect();
    entries.sort();
    let values = entries.iter().flat_map(|(_, value)| value.iter().copied()).collect();
    SparseTensor { name: text(name), shape, value_type, positions: entries.iter().map(|(at, _)| *at).collect(), values }
}

fn encoded(case: &Value, format: SparseFormat, want: &Value) -> Case {
    let tensors: Vec<SparseTensor> = list(&case["input"])
        .iter()
        .map(|input| {
            let shape = numbers(&input["shape"]);
            let positions = flat(&shape, &numbers(&input["rows"]), &numbers(&input["cols"]));
            tensor(&input["name"], shape, positions, &input["dtype"], &base64(&input["values_b64"]))
        })
        .collect();
    let body = encode(&tensors, format);
    let same = match &want["body_b64"] {
        Value::String(_) => body == base64(&want["body_b64"]),
        _ => want["body_sha256"] == hex::encode(Sha256::digest(&body)).as_str(),
    };
    if same { Ok(()) } else { Err(format!("another body of {} bytes", body.len())) }
}

fn decode(file: &[u8], format: SparseFormat) -> Result<Vec<SparseTensor>, String> {
    let mut reader = SparseReader::open(file, file.len() as u64, format, LIMIT).map_err(|error| error.to_string())?;
    let mut tensors = Vec::new();
    while let Some(tensor) = reader.next_tensor(|_| true).map_err(|error| error.to_string())? {
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn decoded(format: SparseFormat, codec: &Value) -> Case {
    // Large frames are not in the file; their bodies were compared.
    let (Value::String(_), Value::Array(wanted)) = (&codec["frame_b64"], &codec["decoded"]) else { return Ok(()) };
    let got = decode(&base64(&codec["frame_b64"]), format)?;
    let want: Vec<SparseTensor> = wanted
        .iter()
        .map(|want| {
            let shape = numbers(&want["shape"]);
            let indices = list(&want["indices"]);
            let positions = match indices.first() {
                Some(Value::Array(_)) => flat(&shape, &numbers(&indices[0]), &numbers(&indices[1])),
                _ => numbers(&want["indices"]).iter().map(|at| u32::try_from(*at).expect("small")).collect(),
            };
            tensor(&want["name"], shape, positions, &want["dtype"], &base64(&want["values_b64"]))
        })
        .collect();
    if got == want { Ok(()) } else { Err(format!("got {}, want {}", brief(&got), brief(&want))) }
}

/// Publishes `base` as FULL and `body` as DELTA against it, and fetches that.
fn fetched(base: &[Stored], body: &[u8], format: &str, weights_hash: &str) -> Result<(Served, Outcome), String> {
    let tree = tempfile::tempdir().map_err(|error| error.to_string())?;
    let put = |key: String, bytes: &[u8]| {
        let path = tree.path().join(key);
        std::fs::create_dir_all(path.parent().expect("a folder")).and_then(|()| std::fs::write(&path, bytes)).expect("a tree");
    };
    let weights = safetensors(base);
    let sha256 = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let full = json!({"file_manifest": {"model.safetensors": sha256(&weights)}, "checkpoint_type": "FULL"});
    put(full_key(BASE, "model.safetensors"), &weights);
    put(full_key(BASE, "metadata.json"), full.to_string().as_bytes());
    put(ready_key(BASE, BASE), b"");
    let about = json!({"format": format}).to_string();
    let manifest = json!({"delta_metadata.json": sha256(about.as_bytes()), "delta_sparse.bin.zst": sha256(body)});
    let delta = json!({"file_manifest": manifest, "checkpoint_type": "DELTA", "prev_window": BASE, "weights_hash": weights_hash});
    put(delta_key(TARGET, "delta_metadata.json"), about.as_bytes());
    put(delta_key(TARGET, "delta_sparse.bin.zst"), body);
    put(delta_key(TARGET, "metadata.json"), delta.to_string().as_bytes());
    put(ready_key(TARGET, TARGET), b"");
    let served = Served::start(tree.path(), &[], None)?;
    let outcome = served.fetch(TARGET, None);
    Ok((served, outcome))
}

type Outcome = Result<std::path::PathBuf, CheckpointError>;
/// Name, type, shape and bytes.
type Stored = (String, String, Vec<u64>, Vec<u8>);

fn stored(tensors: &Value) -> Vec<Stored> {
    let one =
        |tensor: &Value| (text(&tensor["name"]), text(&tensor["dtype"]), numbers(&tensor["shape"]), base64(&tensor["data_b64"]));
    list(tensors).iter().map(one).collect()
}

fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let dtype = if dtype == "float32" { "F32" } else { "BF16" };
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend_from_slice(bytes);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

fn malformed(base: &Value, case: &Value) -> Case {
    let shape = numbers(&base["shape"]);
    let bytes = vec![0; 2 * shape.iter().product::<u64>() as usize];
    let base = [("w".to_owned(), "bfloat16".to_owned(), shape, bytes)];
    let hash = case["weights_hash"].as_str().unwrap_or("00000000000000000000000000000000");
    let format = format!("sparse_codec_{}", case["decoder_used"].as_str().unwrap_or_default());
    let (_served, outcome) = fetched(&base, &base64(&case["file_b64"]), &format, hash)?;
    match (outcome, case["apply"] == "ok") {
        (Ok(_), true) => Ok(()),
        (Err(CheckpointError::BrokenLink { .. } | CheckpointError::Unverifiable { .. }), false) => Ok(()),
        (outcome, _) => Err(format!("{outcome:?}, the reference says {} and {}", case["decoder"], case["apply"])),
    }
}

/// What the network's publisher sends of a change, and what comes of it.
fn applied(case: &Value) -> Case {
    let (base, current) = (stored(&case["base"]), stored(&case["current"]));
    let entries = case["delta_entries"].as_object().cloned().unwrap_or_default();
    let tensors: Vec<SparseTensor> = entries
        .iter()
        .map(|(name, indices)| {
            let (_, dtype, shape, bytes) = current.iter().find(|(known, ..)| known == name).expect("a changed tensor");
            let rows = numbers(&indices[0]);
            let columns = if shape.len() == 1 { vec![0; rows.len()] } else { numbers(&indices[1]) };
            let positions = flat(shape, &rows, &columns);
            let width = ValueType::named(dtype).expect("a value type").width();
            let values: Vec<u8> =
                positions.iter().flat_map(|at| bytes[*at as usize * width..][..width].iter().copied()).collect();
            tensor(&json!(name), shape.clone(), positions, &json!(dtype), &values)
        })
        .collect();
    let body = zstd::bulk::compress(&encode(&tensors, SparseFormat::V31), 1).map_err(|error| error.to_string())?;
    let (_served, outcome) = fetched(&base, &body, "sparse_codec_v3.1", &text(&case["published_hash"]))?;
    // Every tensor keeps its type here, so what the reference rounds to one type arrives as it was published.
    let types: std::collections::BTreeSet<&String> = base.iter().map(|(_, dtype, ..)| dtype).collect();
    match outcome {
        Ok(_) if case["hash_matches"] == true || types.len() > 1 => Ok(()),
        Err(CheckpointError::WrongWeights { got, .. }) if case["hash_matches"] == false => {
            if case["reconstructed_hash"] == got.as_str() { Ok(()) } else { Err(format!("rebuilt as {got}")) }
        }
        outcome => Err(format!("{outcome:?}, want hash_matches {}", case["hash_matches"])),
    }
}
