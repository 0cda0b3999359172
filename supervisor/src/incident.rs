//! `grail-supervisor incident`: everything that somebody who helps needs, in one file, and no secret.
//!
//! ```text
//!  grail-incident-<time>.tar.gz
//!    README.txt     what is in it, what is missing and why
//!    settings.txt   `config explain`, and every mistake in them
//!    status.json    as of the last half second
//!    story.txt      `explain` of the last windows
//!    journal/…      as it is
//!    log.txt        the end of supervisor.log; log-1.txt of the one before
//! ```
//!
//! Every text passes a filter that knows what is secret in the settings, also within addresses and command lines, and every variable
//! whose name speaks of a key, token, secret or password; afterwards the packed bytes are searched for each of them once more.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use grail_process::clock;
use grail_secrets::HIDDEN;
use grail_settings::{Loaded, explain};
use grail_supervision::exit::Failure;
use grail_supervision::{journal, log, secrets};

use crate::explain::story;

/// Most of the log, from its end.
const LOG_BYTES: u64 = 4 * 1024 * 1024;
/// Most of any other file.
const FILE_BYTES: u64 = 40 * 1024 * 1024;
/// Windows whose stories are told.
const STORIES: usize = 12;

/// Packs the file and says in one line where it is.
///
/// # Errors
/// When it cannot be written, or would hold a secret after all.
pub fn pack(loaded: &Loaded, environment: &BTreeMap<String, String>, output: Option<PathBuf>) -> Result<String, Failure> {
    let path = output.unwrap_or_else(|| format!("grail-incident-{}.tar.gz", clock::since_epoch().as_secs()).into());
    let filter = secrets::of_host(loaded.secrets(), environment);
    let parts = gather(loaded);
    let parts: Vec<(String, Vec<u8>)> =
        parts.into_iter().map(|(name, bytes)| (name, filter.clean(&bytes).into_owned())).collect();
    if let Some((name, _)) = parts.iter().find(|(_, bytes)| filter.finds_any(bytes)) {
        return Err(Failure::Internal(format!("{name} would hold a secret even after filtering; nothing was written")));
    }
    let bytes = archive(&parts).map_err(|error| Failure::internal("pack the incident", error))?;
    let written = File::create(&path).and_then(|mut file| file.write_all(&bytes));
    written.map_err(|error| {
        Failure::Unavailable(format!("{path:?} cannot be written: {error}; give another place with --output"))
    })?;
    Ok(format!("{} ({} KiB, {} files, secrets hidden)\n", path.display(), bytes.len() / 1024, parts.len()))
}

/// Everything there is, by name. What cannot be read is said in the first part.
fn gather(loaded: &Loaded) -> Vec<(String, Vec<u8>)> {
    let state = &loaded.settings.state;
    let mut missing = String::new();
    let mut settings = explain(loaded);
    if !loaded.mistakes.0.is_empty() {
        let _ = writeln!(settings, "\n{}", loaded.mistakes);
    }
    let mut parts = vec![("settings.txt".to_owned(), settings.into_bytes())];
    let mut add = |name: &str, read: io::Result<Vec<u8>>| match read {
        Ok(bytes) => parts.push((name.to_owned(), bytes)),
        Err(error) => {
            let _ = writeln!(missing, "missing: {name} ({error})");
        }
    };
    add("status.json", end_of(&state.join("status.json"), FILE_BYTES));
    add("log.txt", end_of(&state.join(log::FILE), LOG_BYTES));
    if state.join(log::EARLIER).exists() {
        add("log-1.txt", end_of(&state.join(log::EARLIER), LOG_BYTES));
    }
    let folder = state.join("journal");
    for path in journal::files(&folder).into_iter().filter(|path| path.exists()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        add(&format!("journal/{name}"), end_of(&path, FILE_BYTES));
    }
    add("story.txt", stories(&folder).map(String::into_bytes));
    let readme = format!(
        "grail-supervisor {} on {}, packed at Unix second {}.\nSecrets are replaced by {HIDDEN}.\n{missing}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        clock::since_epoch().as_secs(),
    );
    parts.insert(0, ("README.txt".into(), readme.into_bytes()));
    parts
}

fn end_of(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn stories(folder: &Path) -> io::Result<String> {
    let reading = journal::read(folder)?;
    let mut windows: Vec<u64> = reading.entries.iter().filter_map(journal::Entry::window).collect();
    windows.sort_unstable();
    windows.dedup();
    let last = windows.split_off(windows.len().saturating_sub(STORIES));
    Ok(last.into_iter().filter_map(|window| story(&reading, window)).collect::<Vec<_>>().join("\n"))
}

fn archive(parts: &[(String, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (name, bytes) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(clock::since_epoch().as_secs());
        archive.append_data(&mut header, name, bytes.as_slice())?;
    }
    archive.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use flate2::read::GzDecoder;
    use grail_mining::events::SpoolRefused;
    use grail_settings::{Sources, load};

    use super::*;

    const CANARY: &str = "canary-5f3a\"9b";

    fn unpacked(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(GzDecoder::new(File::open(path).unwrap()));
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        });
        entries.collect()
    }

    /// A host whose every secret is the canary, and which has let it slip into log, status and journal.
    fn leaky_host(folder: &Path) -> (Loaded, BTreeMap<String, String>) {
        let file = folder.join("host.toml");
        let secret = |name: &str| format!("{name} = '{CANARY}-{name}'\n");
        let storage = ["read_access_key_id", "read_secret_access_key", "write_access_key_id", "write_secret_access_key"];
        let storage: String = storage.iter().map(|name| secret(name)).collect();
        let text = format!(
            "[chain]\nnetwork = 'local'\n[storage]\naccount_id = 'a'\nbucket = 'a'\n{storage}[wallet]\ndevelopment = '//{CANARY}'\n"
        );
        std::fs::write(&file, text).unwrap();
        let environment: BTreeMap<String, String> =
            [("WANDB_API_KEY", format!("{CANARY}-wandb")), ("HF_TOKEN", format!("{CANARY}-hf")), ("PATH", "/bin".into())]
                .map(|(name, value)| (name.to_owned(), value))
                .into();
        let loaded = load(&Sources { file: Some(file), environment: environment.clone(), ..Sources::default() }).unwrap();
        let state = &loaded.settings.state;
        std::fs::create_dir_all(state).unwrap();
        let slip = format!("{CANARY}-write_secret_access_key and {CANARY}-hf and {CANARY}-wandb");
        std::fs::write(state.join("supervisor.log"), format!("line\n{slip}\nlast line\n")).unwrap();
        std::fs::write(state.join("status.json"), serde_json::to_vec(&serde_json::json!({ "slip": slip })).unwrap()).unwrap();
        let journal = journal::Journal::open(&state.join("journal"));
        journal.record(&SpoolRefused { window: 600, why: slip });
        journal.flush(std::time::Duration::from_secs(20));
        (loaded, environment)
    }

    #[test]
    fn everything_is_packed_and_no_secret_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let (loaded, environment) = leaky_host(folder.path());
        let path = folder.path().join("incident.tar.gz");
        let said = pack(&loaded, &environment, Some(path.clone())).unwrap();
        assert!(said.contains("incident.tar.gz"), "{said}");
        let parts = unpacked(&path);
        let names: Vec<&str> = parts.keys().map(String::as_str).collect();
        assert_eq!(names, ["README.txt", "journal/journal.jsonl", "log.txt", "settings.txt", "status.json", "story.txt"]);
        for (name, bytes) in &parts {
            let text = String::from_utf8_lossy(bytes);
            assert!(!text.contains("canary") && !text.contains("9b-"), "{name}:\n{text}");
        }
        let text = |name: &str| String::from_utf8_lossy(&parts[name]).into_owned();
        assert!(text("log.txt").contains("last line") && text("log.txt").contains(HIDDEN));
        assert!(text("settings.txt").contains("storage.write_secret_access_key"));
        assert!(text("story.txt").contains("Window 600"), "{}", text("story.txt"));
    }

    #[test]
    fn what_is_missing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("host.toml");
        std::fs::write(&file, "[chain]\nnetwork = 'local'\n[storage]\nlocal_folder = 'b'\n").unwrap();
        let loaded = load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
        let path = folder.path().join("incident.tar.gz");
        pack(&loaded, &BTreeMap::new(), Some(path.clone())).unwrap();
        let readme = String::from_utf8(unpacked(&path)["README.txt"].clone()).unwrap();
        for name in ["status.json", "log.txt", "story.txt"] {
            assert!(readme.contains(&format!("missing: {name}")), "{readme}");
        }
    }
}
