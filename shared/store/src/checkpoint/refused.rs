//! What was found damaged, so that gigabytes need not be downloaded again in every window to find the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::{CheckpointError, Metadata};

/// Verdicts at most. A checkpoint has some shards, and few checkpoints are damaged at the same time.
const REMEMBERED: usize = 256;

/// By subject: the verdict, and whether it stands.
type Verdicts = BTreeMap<String, (Verdict, bool)>;

/// Verdicts on objects and chains of one bucket, each under everything that it depends on: whatever is published again is looked
/// at anew. Kept in memory: a restart looks again. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Refused(Arc<Mutex<Verdicts>>);

/// The errors that say something about what is published, and not about this attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Hash { window: u64, name: String, got: String, want: String },
    Weights { window: u64, got: String, want: String, rebuilt: bool },
    Link { window: u64, link: u64, why: String },
    Unverifiable { window: u64, why: String },
}

impl Refused {
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
    }

    fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            WrongWeights { window, got, want, rebuilt } => {
                Self::Weights { window: *window, got: got.clone(), want: want.clone(), rebuilt: *rebuilt }
            }
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
            Verdict::Weights { window, got, want, rebuilt } => Self::WrongWeights { window, got, want, rebuilt },
            Verdict::Link { window, link, why } => Self::BrokenLink { window, link, why },
            Verdict::Unverifiable { window, why } => Self::Unverifiable { window, why },
        }
    }
}
