//! The last look before an upload. Any doubt, and nothing is uploaded: a failed check costs 14 windows.
//!
//! ```text
//!  while the window runs, per group:  encoded file ─ read back ─ validator's rules on every row ─▶ JudgedGroup with its digest
//!                                     random rollouts ─ proved again by another worker ─▶ spot_check
//!  at the end, for the whole file:    footer ─ digests are those that were judged ─ validator's rules on the file
//! ```
//!
//! A row group's digest covers every byte that decoding depends on, so the finished file holds exactly the rows that were
//! judged, and closing costs no second look at them.

mod agreement;
mod spot_check;

use bytes::Bytes;
use grail_protocol::advantage::{python_sum, recomputed_advantages};
use grail_protocol::constants::{MAX_FILE_BYTES, MIN_FILE_BYTES};
use grail_protocol::keys::KeyScheme;
use grail_protocol::row::WindowRow;
use grail_protocol::validation::group::{ELEMENT_TOLERANCE, GroupFailure, GroupMember, SUM_TOLERANCE, check_group};
use grail_protocol::validation::head::{HeadContext, HeadFailure, RowHead, check_head};
use grail_protocol::validation::pipeline::{RowContext, admit};
use grail_protocol::validation::proof::{ProofFailure, check_claims};
use grail_protocol::validation::structure::{Expected, FileHead, StructureFailure, check_structure};
use grail_store::window_file::{RowGroupOutline, WindowFileError, outline, read_window};
use serde_json::Value;

pub use agreement::{Agreement, Claim};
pub use spot_check::{Finding, Scope, SecondOpinion, SpotPlan, check};

/// What the file must agree with.
#[derive(Debug, Clone)]
pub struct Judge {
    /// Our address.
    pub hotkey: String,
    /// Scheme of our key.
    pub scheme: KeyScheme,
    /// First block of the window.
    pub window: u64,
    /// Its hash, with `0x`.
    pub block_hash: String,
    /// Window of the checkpoint that validators take.
    pub checkpoint_window: u64,
    /// Vocabulary of the model.
    pub vocab_size: u32,
    /// Longest sequence of the model.
    pub max_positions: u32,
}

/// Why the file is held back.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    /// A validator could not read it.
    #[error(transparent)]
    Read(#[from] WindowFileError),
    /// The file as a whole.
    #[error("{0}")]
    Structure(#[from] StructureFailure),
    /// A row's window, hash, nonce or signature.
    #[error("row {row}: {why}")]
    Head {
        /// Index in the file.
        row: usize,
        /// What does not hold.
        why: HeadFailure,
    },
    /// A row's schema or tokens.
    #[error("row {row}: {why}")]
    Commit {
        /// Index in the file.
        row: usize,
        /// What does not hold.
        why: String,
    },
    /// A row's commitments or their signature.
    #[error("row {row}: {why}")]
    Proof {
        /// Index in the file.
        row: usize,
        /// What does not hold.
        why: ProofFailure,
    },
    /// The advantages of a group.
    #[error("group {group}: {why}")]
    Group {
        /// The group.
        group: i64,
        /// What does not hold.
        why: GroupFailure,
    },
    /// A number of a row is none. A validator's rules let some of them through; nothing of ours may depend on that.
    #[error("row {row}: {what} is {value}, which is no finite number")]
    NoNumber {
        /// Index in the file.
        row: usize,
        /// Which one.
        what: &'static str,
        /// What it is.
        value: f64,
    },
    /// The advantages of a group do not follow from its rewards, where a validator's comparison may not see it.
    #[error("group {group}: its advantages do not follow from its rewards")]
    Advantages {
        /// The group.
        group: i64,
    },
    /// A group's file holds more or less than one row group of one group.
    #[error("a group's file holds {row_groups} row groups of {groups} groups; it must be one of one")]
    NotOneGroup {
        /// Row groups found.
        row_groups: usize,
        /// Different group numbers found.
        groups: usize,
    },
    /// The finished file does not hold what was judged.
    #[error("the finished file's {what} is not what was judged")]
    Changed {
        /// What differs.
        what: String,
    },
    /// Validators do not look at a file of this size.
    #[error("the file has {0} bytes, validators look at {MIN_FILE_BYTES} to {MAX_FILE_BYTES}")]
    Size(usize),
}

/// A group that was read back and passed every rule for rows and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgedGroup {
    /// The problem index.
    pub index: i64,
    /// Nonces of its rows, in file order.
    pub nonces: Vec<i64>,
    /// What the window's file must hold in its place.
    pub outline: RowGroupOutline,
}

impl Judge {
    /// Reads a file as a validator would and judges every row of it.
    ///
    /// # Errors
    /// The first doubt.
    pub fn judge_rows(&self, bytes: Bytes) -> Result<Vec<WindowRow>, Doubt> {
        let file = read_window(bytes)?;
        let head = FileHead { wallet: Some(&file.metadata.wallet), window_start: Some(file.metadata.window_start) };
        check_structure(&self.expected(), &head, file.rows.iter().map(RowHead::from))?;
        let mut groups: std::collections::BTreeMap<i64, Vec<GroupMember>> = Default::default();
        for (index, row) in file.rows.iter().enumerate() {
            let commit = row.commit.to_value();
            self.judge_row(index, row, &commit)?;
            groups.entry(row.rollout_group).or_default().push(GroupMember::from_commit(&commit));
        }
        for (group, members) in groups {
            check_group(&members).map_err(|why| Doubt::Group { group, why })?;
            if !advantages_follow(&members) {
                return Err(Doubt::Advantages { group });
            }
        }
        Ok(file.rows)
    }

    /// Judges the file of one group.
    ///
    /// # Errors
    /// The first doubt.
    pub fn judge_group(&self, bytes: &Bytes) -> Result<JudgedGroup, Doubt> {
        let rows = self.judge_rows(bytes.clone())?;
        let outline = outline(bytes)?;
        let mut groups: Vec<i64> = rows.iter().map(|row| row.rollout_group).collect();
        groups.dedup();
        match (&outline.row_groups[..], &groups[..]) {
            ([outline], [index]) => {
                Ok(JudgedGroup { index: *index, nonces: rows.iter().map(|row| row.nonce).collect(), outline: *outline })
            }
            (row_groups, groups) => Err(Doubt::NotOneGroup { row_groups: row_groups.len(), groups: groups.len() }),
        }
    }

    /// Judges the finished file: it must hold exactly `groups`, in this order, and be in order as a whole.
    ///
    /// # Errors
    /// The first doubt.
    pub fn judge_file(&self, bytes: &Bytes, groups: &[JudgedGroup]) -> Result<(), Doubt> {
        if !(MIN_FILE_BYTES..=MAX_FILE_BYTES).contains(&(bytes.len() as u64)) {
            return Err(Doubt::Size(bytes.len()));
        }
        let found = outline(bytes)?;
        let changed = |what: String| Err(Doubt::Changed { what });
        if found.row_groups.len() != groups.len() {
            return changed(format!("number of groups, {} instead of {},", found.row_groups.len(), groups.len()));
        }
        if let Some((_, group)) = found.row_groups.iter().zip(groups).find(|(found, group)| **found != group.outline) {
            return changed(format!("group {}", group.index));
        }
        let rows: usize = groups.iter().map(|group| group.nonces.len()).sum();
        if usize::try_from(found.inference_count).ok() != Some(rows) {
            return changed(format!("inference_count, {} instead of {rows},", found.inference_count));
        }
        // Every row of a judged group is of this window and hash; what remains is what only the whole file can break.
        let head = FileHead { wallet: Some(&found.metadata.wallet), window_start: Some(found.metadata.window_start) };
        let row = |group: &JudgedGroup, nonce: i64| RowHead {
            window_start: Some(self.window.cast_signed()),
            block_hash: Some(&self.block_hash),
            nonce: Some(nonce),
            rollout_group: Some(group.index),
            ..RowHead::default()
        };
        let rows = groups.iter().flat_map(|group| group.nonces.iter().map(move |nonce| row(group, *nonce)));
        Ok(check_structure(&self.expected(), &head, rows)?)
    }

    fn expected(&self) -> Expected<'_> {
        Expected { hotkey: &self.hotkey, window_start: self.window.cast_signed(), block_hash: &self.block_hash }
    }

    fn judge_row(&self, index: usize, row: &WindowRow, commit: &Value) -> Result<(), Doubt> {
        let checkpoint_window = Some(self.checkpoint_window.cast_signed());
        let head = HeadContext {
            scheme: self.scheme,
            hotkey: &self.hotkey,
            window_start: self.window.cast_signed(),
            block_hash: &self.block_hash,
            checkpoint_window,
        };
        check_head(&head, &RowHead::from(row)).map_err(|why| Doubt::Head { row: index, why })?;
        if let Some((what, value)) = no_number(row) {
            return Err(Doubt::NoNumber { row: index, what, value });
        }
        let context = RowContext {
            scheme: self.scheme,
            hotkey: &self.hotkey,
            challenge_randomness: "",
            vocabulary: self.vocab_size.into(),
            max_context: self.max_positions.into(),
            eos_token: None,
            generation_params: &Value::Null,
            checkpoint_window,
        };
        admit(&context, commit).map_err(|verdict| Doubt::Commit { row: index, why: verdict.failure.unwrap_or_default() })?;
        let completion = usize::try_from(row.commit.rollout.completion_length).unwrap_or(0);
        check_claims(self.scheme, &self.hotkey, commit, completion, checkpoint_window)
            .map_err(|why| Doubt::Proof { row: index, why })
    }
}

/// The first number of a row that is not finite.
fn no_number(row: &WindowRow) -> Option<(&'static str, f64)> {
    let rollout = &row.commit.rollout;
    let single = [("timestamp", row.timestamp), ("total_reward", rollout.total_reward), ("advantage", rollout.advantage)];
    let logprobs = rollout.token_logprobs.iter().map(|value| ("a log-probability", f64::from(*value)));
    single.into_iter().chain(logprobs).find(|(_, value)| !value.is_finite())
}

/// The validator's rule, written so that NaN fails it, whatever the rewards are.
fn advantages_follow(members: &[GroupMember]) -> bool {
    let rewards: Vec<f64> = members.iter().map(|member| member.reward).collect();
    let sum = python_sum(members.iter().map(|member| member.advantage));
    let mut pairs = members.iter().zip(recomputed_advantages(&rewards));
    sum.abs() <= SUM_TOLERANCE && pairs.all(|(member, recomputed)| (member.advantage - recomputed).abs() <= ELEMENT_TOLERANCE)
}

#[cfg(test)]
pub(crate) mod tests;
