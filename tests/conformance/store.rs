//! Window files against the vectors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use grail_protocol::row::WindowRow;
use grail_protocol::validation::head::RowHead;
use grail_protocol::validation::structure::{Expected, FileHead, StructureFailure, check_structure};
use grail_store::window_file::{WindowFile, WindowFileError, WindowMetadata, WindowWriter, layout, read_window};
use serde_json::Value;

use crate::report::{Case, Cases, Report, brief, json};

/// Runs every check of window files.
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
}

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
