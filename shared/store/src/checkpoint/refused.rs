//! What was found damaged, so that gigabytes need not be downloaded again in every window to find the same.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{CheckpointError, Metadata};
use crate::bucket::Bucket;

/// Verdicts at most. A checkpoint has some shards, and few checkpoints are damaged at the same time.
const REMEMBERED: usize = 256;
/// Bytes of a file of so many verdicts at most.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// By subject: the verdict, and whether it stands.
type Verdicts = BTreeMap<String, (Verdict, bool)>;

/// Verdicts on objects and chains of one bucket, each under everything that it depends on: whatever is published again is looked
/// at anew. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Refused {
    verdicts: Arc<Mutex<Verdicts>>,
    /// Where they outlive this process, and whose they are.
    kept: Option<Arc<(PathBuf, String)>>,
}

/// What is on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    bucket: String,
    verdicts: Verdicts,
}

/// The errors that say something about what is published, and not about this attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Verdict {
    Hash { window: u64, name: String, got: String, want: String },
    Weights { window: u64, got: String, want: String },
    Link { window: u64, link: u64, why: String },
    Unverifiable { window: u64, why: String },
}

impl Refused {
    /// Verdicts on what lies in `bucket`, kept in a file: a start after a crash knows them. A file of another bucket, or one that
    /// cannot be read, is as good as none: at worst something is downloaded once more.
    pub fn kept_in(file: &Path, bucket: &Bucket) -> Self {
        let whose = format!("{}/{}", bucket.endpoint(), bucket.name());
        let verdicts = match read(file) {
            Ok(Some(kept)) if kept.bucket == whose => kept.verdicts,
            Ok(_) => Verdicts::new(),
            Err(error) => {
                tracing::warn!(%error, path = %file.display(), "What was found damaged before cannot be read; it is looked at anew.");
                Verdicts::new()
            }
        };
        Self { verdicts: Arc::new(Mutex::new(verdicts)), kept: Some(Arc::new((file.to_owned(), whose))) }
    }

    /// The verdict on this, if it stands.
    pub(super) fn verdict(&self, subject: &str) -> Option<CheckpointError> {
        let verdicts = self.verdicts();
        verdicts.get(subject).filter(|(_, stands)| *stands).map(|(verdict, _)| verdict.clone().into())
    }

    /// Remembers why this was refused, unless another attempt may succeed. Weights are put together here, so one damaged bit of
    /// this host's memory could be to blame: only the same hash again makes that verdict stand.
    pub(super) fn remember(&self, subject: String, error: &CheckpointError) {
        let Some(verdict) = Verdict::of(error) else { return };
        let mut verdicts = self.verdicts();
        if verdicts.len() >= REMEMBERED {
            // At worst something is downloaded once more.
            verdicts.clear();
        }
        let again = verdicts.get(&subject).is_some_and(|(before, _)| *before == verdict);
        let stands = again || !matches!(verdict, Verdict::Weights { .. });
        verdicts.insert(subject, (verdict, stands));
        let Some((file, bucket)) = self.kept.as_deref() else { return };
        let kept = Kept { bucket: bucket.clone(), verdicts: verdicts.clone() };
        if let Err(error) = write(file, &kept) {
            tracing::warn!(%error, path = %file.display(), "What was found damaged is not on disk; a restart downloads it again.");
        }
    }

    fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> io::Result<Option<Kept>> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

/// Replaces the file in one step, so that a kill leaves the old one or the new one.
fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut beside = tempfile::NamedTempFile::new_in(folder)?;
    beside.write_all(&serde_json::to_vec(kept)?)?;
    beside.as_file().sync_all()?;
    beside.persist(path).map(drop).map_err(|error| error.error)
}

/// A checkpoint by everything that its weights follow from.
pub(super) fn subject<'a>(kind: &str, window: u64, documents: impl IntoIterator<Item = &'a Metadata>) -> String {
    let mut hasher = Sha256::new();
    documents.into_iter().for_each(|document| hasher.update(document.to_json()));
    format!("{kind} {window} {}", hex::encode(hasher.finalize()))
}

impl Verdict {
    fn of(error: &CheckpointError) -> Option<Self> {
        use CheckpointError::{BrokenLink, Unverifiable, WrongHash, WrongWeights};
        Some(match error {
            WrongHash { window, name, got, want } => {
                Self::Hash { window: *window, name: name.clone(), got: got.clone(), want: want.clone() }
            }
            WrongWeights { window, got, want } => Self::Weights { window: *window, got: got.clone(), want: want.clone() },
            BrokenLink { window, link, why } => Self::Link { window: *window, link: *link, why: why.clone() },
            Unverifiable { window, why } => Self::Unverifiable { window: *window, why: why.clone() },
            _ => return None,
        })
    }
}

impl From<Verdict> for CheckpointError {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Hash { window, name, got, want } => Self::WrongHash { window, name, got, want },
            Verdict::Weights { window, got, want } => Self::WrongWeights { window, got, want },
            Verdict::Link { window, link, why } => Self::BrokenLink { window, link, why },
            Verdict::Unverifiable { window, why } => Self::Unverifiable { window, why },
        }
    }
}
