//! Runs checks over vector files and prints a line per file.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;

/// The result of one case: `Ok` or what differed.
pub type Case = Result<(), String>;

/// Collects cases by file, prints a line per file, and remembers which files were claimed.
pub struct Report {
    root: PathBuf,
    filter: Option<String>,
    claimed: BTreeSet<PathBuf>,
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// The cases of one file, to be filled by a check.
#[derive(Default)]
pub struct Cases {
    passed: usize,
    failures: Vec<String>,
    skipped: BTreeMap<&'static str, usize>,
}

impl Cases {
    /// Runs one case; a panic is a failure of that case only.
    pub fn case(&mut self, name: impl std::fmt::Display, check: impl FnOnce() -> Case) {
        match catch_unwind(AssertUnwindSafe(check)) {
            Ok(Ok(())) => self.passed += 1,
            Ok(Err(why)) => self.failures.push(format!("{name}: {why}")),
            Err(_) => self.failures.push(format!("{name}: panicked")),
        }
    }

    /// Passes over something of the file, and says why.
    pub fn skip(&mut self, why: &'static str) {
        *self.skipped.entry(why).or_default() += 1;
    }

    /// A case that compares two values.
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, name: impl std::fmt::Display, got: T, want: T) {
        self.case(name, || if got == want { Ok(()) } else { Err(format!("got {}, want {}", brief(&got), brief(&want))) });
    }
}

/// A `Debug` text cut to a readable length.
pub fn brief(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    if text.len() > 160 { format!("{}…", text.chars().take(160).collect::<String>()) } else { text }
}

impl Report {
    /// Opens the folder in `GRAIL_VECTORS`; a first argument that is no flag filters files by substring.
    pub fn open() -> Self {
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
        let root = std::env::var_os("GRAIL_VECTORS").map_or(default, PathBuf::from);
        // cargo runs tests in the package's folder, the user names the folder from the workspace's.
        let root = if root.is_relative() { Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(root) } else { root };
        println!("Vectors: {}", root.display());
        let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
        Self { root, filter, claimed: BTreeSet::new(), passed: 0, failed: 0, skipped: 0 }
    }

    /// The folder that holds the vectors.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folders directly below `folder` whose name satisfies `wanted`, sorted (vector sets are discovered, not listed).
    pub fn folders(&self, folder: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| wanted(name))
            .map(|name| format!("{folder}/{name}"))
            .collect();
        names.sort();
        names
    }

    /// Checks one file or folder `path` (relative to the root) and prints its line.
    pub fn check(&mut self, path: &str, check: impl FnOnce(&Path, &mut Cases)) {
        let full = self.root.join(path);
        self.claimed.insert(full.clone());
        if self.filter.as_ref().is_some_and(|filter| !path.contains(filter.as_str())) {
            return;
        }
        if !full.exists() {
            self.skipped += 1;
            println!("{path:<58} SKIPPED: not in this folder");
            return;
        }
        let mut cases = Cases::default();
        if catch_unwind(AssertUnwindSafe(|| check(&full, &mut cases))).is_err() {
            cases.failures.push("the check itself panicked: is the file of another form?".into());
        }
        self.passed += cases.passed;
        self.failed += cases.failures.len();
        if cases.passed + cases.failures.len() == 0 {
            cases.failures.push("the file holds no case".into());
            self.failed += 1;
        }
        println!("{path:<58} {} passed, {} failed", cases.passed, cases.failures.len());
        for failure in cases.failures.iter().take(5) {
            println!("    {failure}");
        }
        for (why, count) in &cases.skipped {
            println!("    {count} skipped: {why}");
        }
    }

    /// Says why a file that is there is not checked.
    pub fn skip(&mut self, path: &str, why: &str) {
        let full = self.root.join(path);
        self.claimed.insert(full.clone());
        if full.exists() && self.filter.is_none() {
            self.skipped += 1;
            println!("{path:<58} SKIPPED: {why}");
        }
    }

    /// Reports files that nobody claimed, prints the totals, and fails if anything failed or nothing ran.
    pub fn finish(mut self) -> ExitCode {
        if self.filter.is_none() {
            for file in self.unclaimed(&self.root.clone()) {
                self.skipped += 1;
                println!("{:<58} SKIPPED: no check knows this file", file.strip_prefix(&self.root).unwrap_or(&file).display());
            }
        }
        println!("\n{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        if self.failed > 0 || self.passed == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn unclaimed(&self, folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for path in entries {
            let readme = path.file_name().is_some_and(|name| name == "README.md");
            if self.claimed.contains(&path) || readme {
                continue;
            }
            if path.is_dir() { found.extend(self.unclaimed(&path)) } else { found.push(path) }
        }
        found
    }
}

/// A JSON document, gunzipped where the name ends in `.gz`.
pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&bytes(path)).unwrap_or_else(|error| panic!("{} is not JSON: {error}", path.display()))
}

/// The documents of a JSON-lines file.
pub fn json_lines(path: &Path) -> Vec<Value> {
    let text = String::from_utf8(bytes(path)).expect("JSON lines are UTF-8");
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect()
}

/// A file's bytes, gunzipped where the name ends in `.gz`.
pub fn bytes(path: &Path) -> Vec<u8> {
    let raw = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if path.extension().is_none_or(|extension| extension != "gz") {
        return raw;
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(raw.as_slice()).read_to_end(&mut plain).expect("a gzip file");
    plain
}
