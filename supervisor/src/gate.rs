//! The last look before an upload: the finished file is read back and every row judged by the validator's own rules, as far
//! as they need no forward pass. Any doubt, and nothing is uploaded: a failed check costs 14 windows.

use std::collections::BTreeMap;

use grail_protocol::keys::KeyScheme;
use grail_protocol::row::WindowRow;
use grail_protocol::validation::group::{GroupFailure, GroupMember, check_group};
use grail_protocol::validation::head::{HeadContext, HeadFailure, RowHead, check_head};
use grail_protocol::validation::pipeline::{RowContext, admit};
use grail_protocol::validation::proof::{ProofFailure, check_claims};
use grail_protocol::validation::structure::{Expected, FileHead, StructureFailure, check_structure};
use grail_store::window_file::{WindowFileError, read_window};
use serde_json::Value;

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
}

impl Judge {
    /// Reads the file as a validator would and judges all of it.
    ///
    /// # Errors
    /// The first doubt.
    pub fn judge(&self, bytes: Vec<u8>) -> Result<(), Doubt> {
        let file = read_window(bytes)?;
        let window_start = self.window.cast_signed();
        let expected = Expected { hotkey: &self.hotkey, window_start, block_hash: &self.block_hash };
        let head = FileHead { wallet: Some(&file.metadata.wallet), window_start: Some(file.metadata.window_start) };
        check_structure(&expected, &head, file.rows.iter().map(RowHead::from))?;
        let mut groups: BTreeMap<i64, Vec<GroupMember>> = BTreeMap::new();
        for (index, row) in file.rows.iter().enumerate() {
            let commit = row.commit.to_value();
            self.judge_row(index, row, &commit)?;
            groups.entry(row.rollout_group).or_default().push(GroupMember::from_commit(&commit));
        }
        for (group, members) in groups {
            check_group(&members).map_err(|why| Doubt::Group { group, why })?;
        }
        Ok(())
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
