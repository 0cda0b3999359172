//! A bucket of the vectors behind a real server.

use std::path::{Path, PathBuf};

use grail_store::bucket::{Bucket, BucketSettings, Secret, TransferLimits};
use grail_store::checkpoint::{CheckpointError, FetchLimits, Fetcher};
use grail_store::local_server::LocalBucketServer;

const BUCKET: &str = "vectors";

/// A copy of an object tree, changed as a case says, behind a real server, and an empty cache.
pub struct Served {
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    cache: tempfile::TempDir,
    pub bucket: Bucket,
    _server: LocalBucketServer,
}

impl Served {
    pub fn start(tree: &Path, deleted: &[&str], replaced: Option<&Path>) -> Result<Self, String> {
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

    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(key)
    }

    pub fn fetch(&self, window: u64, trainer: Option<String>) -> Result<PathBuf, CheckpointError> {
        let limits = FetchLimits { trainer, ..FetchLimits::default() };
        let fetcher = Fetcher { bucket: &self.bucket, cache_root: self.cache.path(), limits: &limits, observer: &|_| () };
        self.wait(fetcher.fetch(window)).map(|fetched| fetched.dir)
    }

    /// What the cache holds, sorted.
    pub fn cached(&self) -> Vec<String> {
        names_in(self.cache.path())
    }
}

/// The names in a folder, sorted.
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Every file below a folder, sorted.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
