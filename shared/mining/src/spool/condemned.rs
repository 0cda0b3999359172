//! What must not be judged: groups, and the files that hold them. It is on disk before anything is done about it, so that
//! whatever ends the run, the next one goes on: those groups do not come back, and those files are taken out of the bucket.

use serde::{Deserialize, Serialize};

use super::Uploaded;

/// Groups that are not believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Proof slot that proved them; without one those of all slots are meant.
    pub worker: Option<u32>,
    /// Their indices are smaller than this: what is begun later is another process's work.
    pub below: i64,
    /// Why.
    pub why: String,
}

/// A file that must not be judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CondemnedFile {
    /// The file.
    pub file: Uploaded,
    /// Why.
    pub why: String,
    /// Whether every group that is judged by the same sheet is worth nothing either.
    pub groups_too: bool,
    /// Whether not the file is meant but anything else that lies in its place: the bucket has stored other bytes than were sent.
    pub anything_else: bool,
}

/// Everything of one window that must not be judged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condemned {
    /// Groups.
    pub verdicts: Vec<Verdict>,
    /// Files.
    pub files: Vec<CondemnedFile>,
}

impl Condemned {
    /// Where the record cannot be read: nothing of what is there is believed.
    pub(super) fn all<'a>(files: impl Iterator<Item = &'a Uploaded>, why: &str) -> Self {
        let why = format!("the record of what must not be judged cannot be used ({why})");
        let verdicts = vec![Verdict { worker: None, below: i64::MAX, why: why.clone() }];
        let files = files
            .map(|file| CondemnedFile { file: file.clone(), why: why.clone(), groups_too: false, anything_else: false })
            .collect();
        Self { verdicts, files }
    }

    /// Why a group must not be uploaded, if it must not.
    pub fn verdict_on(&self, index: i64, worker: u32) -> Option<&str> {
        let concerns = |verdict: &&Verdict| index < verdict.below && verdict.worker.is_none_or(|its| its == worker);
        self.verdicts.iter().find(concerns).map(|verdict| verdict.why.as_str())
    }

    /// Whether a file must not be judged.
    pub fn holds(&self, file: &Uploaded) -> bool {
        self.files.iter().any(|condemned| condemned.file.sha256 == file.sha256 && !condemned.anything_else)
    }

    pub(super) fn add(&mut self, verdict: Option<Verdict>, files: Vec<CondemnedFile>) {
        self.verdicts.extend(verdict);
        let new: Vec<_> = files.into_iter().filter(|condemned| condemned.anything_else || !self.holds(&condemned.file)).collect();
        self.files.extend(new);
    }
}
