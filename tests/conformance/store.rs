//! Window files and checkpoints against the vectors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use base64::Engine;
use grail_protocol::row::WindowRow;
use grail_protocol::validation::head::RowHead;
use grail_protocol::validation::structure::{Expected, FileHead, StructureFailure, check_structure};
use grail_store::bucket::{Bucket, BucketSettings, Secret, TransferLimits};
use grail_store::checkpoint::{self, CheckpointError, FetchLimits};
use grail_store::local_server::LocalBucketServer;
use grail_store::window_file::{WindowFile, WindowFileError, WindowMetadata, WindowWriter, layout, read_window};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::report::{Case, Cases, Report, brief, json};

/// The development key that signed the manifests of the vectors.
const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
const BUCKET: &str = "vectors";

/// Runs every check of the store.
pub fn run(report: &mut Report) {
    for folder in report.folders("parquet", |name| name != "reject") {
        report.check(&folder, window_folder);
    }
    report.check("parquet/reject", rejected_windows);
    report.check("grail/window.parquet", sample_window);
    report.check("grail/window.json.gz", |path, cases| {
        let windows = json(path);
        cases.case("written and read back", || same_window(&write(&windows["before"])?, &windows["after"]));
    });
    for chain in report.folders("checkpoints", |name| name.starts_with("chain")) {
        report.check(&format!("{chain}/bucket"), published_objects);
        report.check(&format!("{chain}/expect.json"), chain_expectations);
        report.check(&format!("{chain}/damaged"), damaged_checkpoints);
    }
    report.check("checkpoints/codec.json", weights_hashes);
    report.skip("checkpoints/fast_path.json", "the in-memory path applies DELTA checkpoints, which are not built");
}

// ---- window files

fn window_folder(folder: &Path, cases: &mut Cases) {
    let file = std::fs::read(folder.join("window.parquet")).expect("window.parquet");
    let read_back = folder.join("read_back.json");
    if read_back.exists() {
        cases.case("window.parquet reads as read_back.json", || same_window(&file, &json(&read_back)));
    }
    let (input, expect) = (folder.join("input.json"), folder.join("expect.json"));
    if !input.exists() {
        return;
    }
    let mut window = json(&input);
    if window.get("timestamp").is_none() {
        window["timestamp"] = json(&read_back)["timestamp"].clone();
    }
    cases.case("input.json written and read back", || same_window(&write(&window)?, &json(&read_back)));
    if expect.exists() {
        let want = json(&expect)["parquet"].clone();
        cases.case("file metadata", || same_key_values(&write(&window)?, &want));
        cases.case("columns", || same_columns(&write(&window)?, &want));
    }
}

fn sample_window(path: &Path, cases: &mut Cases) {
    let windows = json(&path.with_file_name("window.json.gz"));
    let file = std::fs::read(path).expect("the sample");
    cases.case("reads as .after", || same_window(&file, &windows["after"]));
}

fn rejected_windows(folder: &Path, cases: &mut Cases) {
    for verdict in json(&folder.join("verdicts.json")).as_array().expect("a list of verdicts") {
        let name = verdict["file"].as_str().unwrap_or_default();
        let Ok(bytes) = std::fs::read(folder.join(name)) else { continue };
        cases.case(name, || same_verdict(read_window(bytes), verdict));
    }
}

fn same_verdict(got: Result<WindowFile, WindowFileError>, verdict: &Value) -> Case {
    let parsed = verdict["parsed"].as_bool().unwrap_or(false);
    let banned = match verdict["validator_outcome"].as_str() {
        Some(outcome) => outcome.starts_with("banned"),
        None => verdict["error_class"] == "ParquetError",
    };
    match got {
        Ok(file) if parsed => {
            let rows = verdict["rows"].as_u64().unwrap_or(file.rows.len() as u64);
            if rows != file.rows.len() as u64 {
                return Err(format!("{} rows, want {rows}", file.rows.len()));
            }
            same_structure(&file, &verdict["structure"])
        }
        Ok(_) => Err("was read, should be refused".into()),
        Err(error) if parsed => Err(format!("should be read: {error}")),
        Err(WindowFileError::Corrupt(_)) if banned => Ok(()),
        Err(WindowFileError::Unreadable(_)) if !banned => Ok(()),
        Err(error) => Err(format!("wrong class (banned should be {banned}): {error}")),
    }
}

/// The vectors do not say which window the file was altered from; most of its rows still do.
fn same_structure(file: &WindowFile, want: &Value) -> Case {
    let expected = Expected {
        hotkey: file.rows.first().map_or(&file.metadata.wallet, |row| &row.hotkey),
        window_start: most_common(file.rows.iter().map(|row| row.window_start)).unwrap_or(file.metadata.window_start),
        block_hash: most_common(file.rows.iter().map(|row| row.block_hash.as_str())).unwrap_or_default(),
    };
    let head = FileHead { wallet: Some(&file.metadata.wallet), window_start: Some(file.metadata.window_start) };
    let got = check_structure(&expected, &head, file.rows.iter().map(RowHead::from));
    match (got.map_err(StructureFailure::reason), want["reason"].as_str()) {
        (Ok(()), None) => Ok(()),
        (Err(got), Some(want)) if got == want => Ok(()),
        (got, _) => Err(format!("structure {got:?}, want {want}")),
    }
}

fn most_common<T: Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_insert(0) += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

fn rows_of(window: &Value) -> Result<Vec<WindowRow>, String> {
    serde_json::from_value(window["inferences"].clone()).map_err(|error| format!("rows of the vector: {error}"))
}

fn metadata_of(window: &Value) -> WindowMetadata {
    WindowMetadata {
        wallet: window["wallet"].as_str().unwrap_or_default().to_owned(),
        window_start: window["window_start"].as_i64().unwrap_or_default(),
        timestamp: window["timestamp"].as_f64().unwrap_or_default(),
    }
}

fn write(window: &Value) -> Result<Vec<u8>, String> {
    let mut writer = WindowWriter::new(Vec::new(), &metadata_of(window)).map_err(|error| error.to_string())?;
    for group in rows_of(window)?.chunks(16) {
        writer.append_group(group).map_err(|error| error.to_string())?;
    }
    writer.finish().map_err(|error| error.to_string())
}

fn same_window(file: &[u8], want: &Value) -> Case {
    let got = read_window(file.to_vec()).map_err(|error| error.to_string())?;
    let counts = (got.window_length, got.inference_count);
    let wanted = (want["window_length"].as_i64().unwrap_or(30), want["inference_count"].as_i64().unwrap_or(got.inference_count));
    if got.metadata != metadata_of(want) || counts != wanted {
        return Err(format!("metadata {:?} {counts:?}, want {:?} {wanted:?}", got.metadata, metadata_of(want)));
    }
    let rows = rows_of(want)?;
    if let Some(index) = (0..rows.len().max(got.rows.len())).find(|index| got.rows.get(*index) != rows.get(*index)) {
        return Err(format!("row {index}: {} instead of {}", brief(&got.rows.get(index)), brief(&rows.get(index))));
    }
    Ok(())
}

fn same_key_values(file: &[u8], want: &Value) -> Case {
    let got = layout(file.to_vec()).map_err(|error| error.to_string())?.key_values;
    // The Arrow schema is a hint from one library to itself.
    let want: BTreeMap<String, String> =
        serde_json::from_value(want["kv_metadata"].clone()).map_err(|error| error.to_string())?;
    let want: BTreeMap<_, _> = want.into_iter().filter(|(key, _)| !key.starts_with("ARROW:")).collect();
    if got == want { Ok(()) } else { Err(format!("got {got:?}, want {want:?}")) }
}

fn same_columns(file: &[u8], want: &Value) -> Case {
    let got = layout(file.to_vec()).map_err(|error| error.to_string())?.columns;
    let want = want["columns"].as_array().ok_or("expect.json has no columns")?;
    if got.len() != want.len() {
        return Err(format!("{} columns, want {}", got.len(), want.len()));
    }
    for (got, want) in got.iter().zip(want) {
        let encodings: BTreeSet<&str> = got.encodings.iter().map(String::as_str).collect();
        let wanted: BTreeSet<&str> = want["encodings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let same = want["path"] == got.path.as_str()
            && want["physical"] == got.physical.as_str()
            && want["logical"] == got.logical.as_str()
            && want["max_def"] == got.max_definition
            && want["max_rep"] == got.max_repetition
            && want.get("codec").is_none_or(|codec| *codec == got.codec.as_str())
            && want.get("has_dict").is_none_or(|flag| *flag == got.has_dictionary)
            && want.get("stats").is_none_or(|flag| *flag == got.has_statistics)
            && (wanted.is_empty() || wanted == encodings);
        if !same {
            return Err(format!("got {got:?}, want {want}"));
        }
    }
    Ok(())
}

// ---- checkpoints

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
            let found = checkpoint::discover(&served.bucket, window);
            let got = served.wait(found).map_err(|error| error.to_string())?;
            if want["latest_ready"].as_u64() == got { Ok(()) } else { Err(format!("got {got:?}, want {want}")) }
        });
    }
    let mut deltas = 0;
    for (name, case) in expect["cases"].as_object().into_iter().flatten() {
        cases.case(name, || {
            let served = Served::start(&tree, &[], None)?;
            deltas += usize::from(!served.has_full(target_of(case)));
            served.judge(case)
        });
    }
    say_deltas(deltas);
}

fn damaged_checkpoints(folder: &Path, cases: &mut Cases) {
    let tree = folder.with_file_name("bucket");
    let mut deltas = 0;
    for (name, case) in json(&folder.join("verdicts.json")).as_object().into_iter().flatten() {
        cases.case(name, || {
            let deleted: Vec<&str> = case["delete"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let served = Served::start(&tree, &deleted, Some(&folder.join(name).join("replace")))?;
            deltas += usize::from(!served.has_full(target_of(case)));
            served.judge(case)
        });
    }
    say_deltas(deltas);
}

fn say_deltas(count: usize) {
    if count > 0 {
        println!(
            "    {count} of the following cases target a DELTA: they pass when it is refused by name, its decoding is not built"
        );
    }
}

fn weights_hashes(path: &Path, cases: &mut Cases) {
    println!("    codec.json: only weights_hash is checked; DELTA bodies are not built");
    for case in json(path)["weights_hash"].as_array().into_iter().flatten() {
        let tensors: Vec<(String, Vec<u8>)> = case["tensors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|tensor| {
                let data = tensor["data_b64"].as_str().unwrap_or_default();
                let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
                (tensor["name"].as_str().unwrap_or_default().to_owned(), bytes)
            })
            .collect();
        let got = checkpoint::hash_tensors(tensors.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
        let want = case["weights_hash_xxh3_128"].as_str().unwrap_or_default().to_owned();
        cases.equal(case["case"].as_str().unwrap_or("?"), got, want);
    }
}

fn target_of(case: &Value) -> u64 {
    case["target"].as_u64().expect("a case has a target window")
}

/// A copy of an object tree, changed as a case says, behind a real server.
struct Served {
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    cache: tempfile::TempDir,
    bucket: Bucket,
    _server: LocalBucketServer,
}

impl Served {
    fn start(tree: &Path, deleted: &[&str], replaced: Option<&Path>) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let root = folder.path().join(BUCKET);
        for source in std::iter::once(tree).chain(replaced) {
            for file in files_below(source) {
                let target = root.join(file.strip_prefix(source).map_err(|error| error.to_string())?);
                std::fs::create_dir_all(target.parent().ok_or("no parent")?).map_err(|error| error.to_string())?;
                std::fs::copy(&file, &target).map_err(|error| error.to_string())?;
            }
        }
        for key in deleted {
            std::fs::remove_file(root.join(key)).map_err(|error| format!("{key}: {error}"))?;
        }
        let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
        let address = "127.0.0.1:0".parse().map_err(|_| "an address")?;
        let start = LocalBucketServer::start(folder.path(), address, "key", "secret", &[BUCKET]);
        let server = runtime.block_on(start).map_err(|error| error.to_string())?;
        let bucket = Bucket::new(&BucketSettings {
            endpoint: server.endpoint(),
            region: "us-east-1".into(),
            bucket: BUCKET.into(),
            access_key_id: "key".into(),
            secret_access_key: Secret::new("secret"),
            limits: TransferLimits::default(),
        })
        .map_err(|error| error.to_string())?;
        let cache = tempfile::tempdir().map_err(|error| error.to_string())?;
        Ok(Self { runtime, folder, cache, bucket, _server: server })
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(key)
    }

    fn has_full(&self, window: u64) -> bool {
        self.path(&checkpoint::full_key(window, "")).exists()
    }

    /// Fetches the case's target and compares with the reference's verdict, or with ours where it is stricter.
    fn judge(&self, case: &Value) -> Case {
        let window = target_of(case);
        for earlier in case["pre_fetch"].as_array().into_iter().flatten().filter_map(Value::as_u64) {
            // Only fills the cache as the case asks; the verdict is on the target.
            let _ = self.fetch(earlier);
        }
        let before = names_in(self.cache.path());
        let got = self.fetch(window);
        let accepted = case["verdict"] == "ok";
        match (got, accepted) {
            (Ok(dir), true) => self.same_result(&dir, &case["result"]),
            (Ok(_), false) => Err("was accepted, should be rejected".into()),
            (Err(error), _) if names_in(self.cache.path()) != before => Err(format!("left something behind: {error}")),
            (Err(CheckpointError::Unsupported { .. } | CheckpointError::NotReady { .. }), _) if !self.has_full(window) => Ok(()),
            (Err(error), false) => self.rejected_for_a_reason(&error),
            (Err(error), true) => self.stricter(window, &case["result"], &error),
        }
    }

    fn fetch(&self, window: u64) -> Result<PathBuf, CheckpointError> {
        let limits = FetchLimits::default();
        self.wait(checkpoint::fetch_full(&self.bucket, window, self.cache.path(), &limits)).map(|fetched| fetched.dir)
    }

    fn rejected_for_a_reason(&self, error: &CheckpointError) -> Case {
        match error {
            CheckpointError::WrongHash { .. } | CheckpointError::MissingFile { .. } | CheckpointError::NotReady { .. } => Ok(()),
            other => Err(format!("rejected, but for another reason: {other}")),
        }
    }

    /// What the reference accepts without verifying and this build refuses.
    fn stricter(&self, window: u64, result: &Value, error: &CheckpointError) -> Case {
        let document = std::fs::read(self.path(&checkpoint::full_key(window, "metadata.json")));
        let metadata: Value = document.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let unverifiable = metadata["file_manifest"].as_object().is_none_or(serde_json::Map::is_empty);
        let wrong_hash = metadata["weights_hash"].is_string() && metadata["weights_hash"] != result["weights_hash_xxh3_128"];
        match error {
            CheckpointError::Unverifiable { .. } if unverifiable => Ok(()),
            CheckpointError::WrongWeights { .. } if wrong_hash => Ok(()),
            other => Err(format!("should be accepted: {other}")),
        }
    }

    fn same_result(&self, dir: &Path, want: &Value) -> Case {
        let names = match &want["files"] {
            Value::Array(names) => names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
            Value::Object(files) => files.keys().cloned().collect(),
            _ => names_in(dir),
        };
        if names != names_in(dir) {
            return Err(format!("files {:?}, want {names:?}", names_in(dir)));
        }
        let hash = checkpoint::weights_hash(dir).map_err(|error| error.to_string())?;
        if want["weights_hash_xxh3_128"].as_str().is_some_and(|want| want != hash) {
            return Err(format!("weights hash {hash}"));
        }
        for (name, tensor) in want["tensors"].as_object().into_iter().flatten() {
            same_tensor(dir, name, tensor)?;
        }
        Ok(())
    }
}

fn same_tensor(dir: &Path, name: &str, want: &Value) -> Case {
    let places = checkpoint::tensor_places(dir).map_err(|error| error.to_string())?;
    let place = places.get(name).ok_or_else(|| format!("tensor {name} is missing"))?;
    let file = std::fs::read(&place.file).map_err(|error| error.to_string())?;
    let tensors = safetensors::SafeTensors::deserialize(&file).map_err(|error| error.to_string())?;
    let tensor = tensors.tensor(name).map_err(|error| error.to_string())?;
    let shape: Vec<u64> = want["shape"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let got_shape: Vec<u64> = tensor.shape().iter().map(|side| *side as u64).collect();
    let sha256 = hex::encode(Sha256::digest(tensor.data()));
    if want["sha256"] == sha256.as_str() && shape == got_shape {
        Ok(())
    } else {
        Err(format!("tensor {name}: {sha256} {got_shape:?}"))
    }
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
