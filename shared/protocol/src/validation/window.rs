//! One miner's window file from structure to metrics (grail-validation 4).

use std::collections::BTreeMap;

use serde_json::Value;

use super::group::{GroupMember, check_group};
use super::head::{HeadContext, RowHead, check_head};
use super::pipeline::{Admitted, Examination, RowContext, RowVerdict, admit};
use super::selection::select_rows;
use super::structure::{Expected, FileHead, StructureFailure, check_structure};
use super::verdict::{MinerAccount, WindowMetrics};
use crate::derivation::completion_digest;
use crate::python_json::number::python_int;

/// What a window is judged against.
#[derive(Clone, Copy, Debug)]
pub struct WindowContext<'a> {
    /// First block of the target window.
    pub window_start: i64,
    /// Hash of that block, with `0x`.
    pub block_hash: &'a str,
    /// Everything else, the same for all rows.
    pub row: RowContext<'a>,
}

/// One row of a file: its head and its raw commit ([`crate::row::Commit::to_value`]).
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Everything but the commit.
    pub head: RowHead<'a>,
    /// The commit.
    pub commit: &'a Value,
}

/// What only the caller can do: prompts, forward passes, evaluation.
pub trait Judge {
    /// The canonical prompt ids of a group.
    ///
    /// # Errors
    /// Why there is none; the rollout fails its prompt check.
    fn prompt(&mut self, group: i64) -> Result<Vec<i64>, String>;

    /// The forward pass over the row with index `row` in the file.
    ///
    /// # Errors
    /// Why there is none; the rollout fails its proof.
    fn examine(&mut self, row: usize, rollout: &Admitted<'_>) -> Result<Examination, String>;

    /// The reward of a completion of a group; none where nobody here can know it, and the claim stands.
    ///
    /// # Errors
    /// What the environment raised; the rollout fails its evaluation.
    fn evaluate(&self, group: i64, completion: &[i64]) -> Result<Option<f64>, String>;
}

/// The outcome of a window.
#[derive(Clone, Debug)]
pub struct WindowVerdict {
    /// Rows that were selected, ascending.
    pub selected: Vec<usize>,
    /// The verdicts in that order, up to the rejection.
    pub rows: Vec<(usize, RowVerdict)>,
    /// The account over them.
    pub account: MinerAccount,
    /// What the window is worth.
    pub metrics: WindowMetrics,
}

/// Judges a file as a validator does: structure, selection, every selected row until one rejects, then the groups.
/// `commit_digest` gives the SHA-256 of the canonical JSON of a row's commit (typed rows stream it,
/// [`crate::python_json::commit::hash_commit`]).
///
/// # Errors
/// [`StructureFailure`] if the file as a whole is refused.
pub fn judge(
    context: &WindowContext<'_>,
    file: &FileHead<'_>,
    rows: &[Row<'_>],
    commit_digest: impl FnMut(usize) -> [u8; 32],
    judge: &mut dyn Judge,
) -> Result<WindowVerdict, StructureFailure> {
    let expected = Expected { hotkey: context.row.hotkey, window_start: context.window_start, block_hash: context.block_hash };
    check_structure(&expected, file, rows.iter().map(|row| row.head))?;
    // The structure check has seen a group in every row.
    let groups: Vec<i64> = rows.iter().map(|row| row.head.rollout_group.unwrap_or_default()).collect();
    let selected = select_rows(context.row.hotkey, context.row.challenge_randomness, &groups, commit_digest);
    Ok(judge_rows(context, rows, selected, judge))
}

/// Judges the rows `selected` (ascending, whole groups) of a file whose structure holds, until one rejects, then their
/// groups. A local check selects every row; a validator draws ([`select_rows`]).
pub fn judge_rows(context: &WindowContext<'_>, rows: &[Row<'_>], selected: Vec<usize>, judge: &mut dyn Judge) -> WindowVerdict {
    let mut account = MinerAccount::new(selected.len());
    let mut verdicts = Vec::new();
    for index in selected.iter().copied() {
        if let Some(verdict) = judge_row(context, index, &rows[index], &mut account, judge) {
            verdicts.push((index, verdict));
        }
        if account.rejection().is_some() {
            break;
        }
    }
    judge_groups(rows, &selected, &mut account);
    let metrics = account.metrics(rows.len());
    WindowVerdict { selected, rows: verdicts, account, metrics }
}

fn judge_row(
    context: &WindowContext<'_>,
    index: usize,
    row: &Row<'_>,
    account: &mut MinerAccount,
    judge: &mut dyn Judge,
) -> Option<RowVerdict> {
    let head = HeadContext {
        scheme: context.row.scheme,
        hotkey: context.row.hotkey,
        window_start: context.window_start,
        block_hash: context.block_hash,
        checkpoint_window: context.row.checkpoint_window,
    };
    let group = match check_head(&head, &row.head) {
        Ok(group) => group,
        Err(failure) => {
            account.on_head_failure(failure);
            return None;
        }
    };
    let verdict = judge_commit(&context.row, index, group, row.commit, judge);
    let success = row.commit["rollout"]["success"].as_bool().unwrap_or(false);
    account.on_rollout(&verdict, digest_of(row.commit), success);
    Some(verdict)
}

fn judge_commit(context: &RowContext<'_>, index: usize, group: i64, commit: &Value, judge: &mut dyn Judge) -> RowVerdict {
    let admitted = match admit(context, commit) {
        Ok(admitted) => admitted,
        Err(verdict) => return *verdict,
    };
    let prompt = judge.prompt(group);
    let prompt = prompt.as_deref().map_err(String::as_str);
    let examination = judge.examine(index, &admitted);
    let examination = examination.as_ref().map_err(String::as_str);
    admitted.finish(context, prompt, examination, &|completion| judge.evaluate(group, completion))
}

fn digest_of(commit: &Value) -> Option<String> {
    let tokens: Option<Vec<i64>> = commit["tokens"].as_array()?.iter().map(Value::as_i64).collect();
    completion_digest(&tokens?, commit["rollout"].get("prompt_length").and_then(python_int))
}

fn judge_groups(rows: &[Row<'_>], selected: &[usize], account: &mut MinerAccount) {
    let mut members: BTreeMap<i64, Vec<GroupMember>> = BTreeMap::new();
    for index in selected {
        let group = rows[*index].head.rollout_group.unwrap_or_default();
        members.entry(group).or_default().push(GroupMember::from_commit(rows[*index].commit));
    }
    for (group, members) in members {
        if let Err(failure) = check_group(&members) {
            account.on_group_failure(format!("group {group}: {failure}"));
        }
    }
}
