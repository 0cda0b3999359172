//! Which miners, groups and rows a validator looks at.

use std::collections::{BTreeSet, HashMap};

use grail_protocol::python_json::{CANONICAL, canonical_hash, commit::hash_commit, to_string};
use grail_protocol::row::Commit;
use grail_protocol::validation::selection::{
    RollingCounts, group_digests, group_seed, groups_to_check, miner_sample_size, select_group_places, select_miners, select_rows,
};
use serde_json::{Value, json};

use super::values::{integers, items, size, sizes, text};
use crate::report::{Cases, Report, json as document, json_lines};

pub fn run(report: &mut Report) {
    report.check("grail/sampling.json.gz", |path, cases| {
        for (index, case) in items(&document(path)["cases"]).iter().enumerate() {
            sampled(index, case, cases);
        }
    });
    report.check("env/rollout_sampling.jsonl", |path, cases| rollouts(&json_lines(path), cases));
    report.check("env/group_selection.jsonl", |path, cases| groups(&json_lines(path), cases));
    report.check("env/miner_sampling.jsonl", |path, cases| miners(&json_lines(path), cases));
    report.check("env/rolling_counts.jsonl", |path, cases| counts(&json_lines(path), cases));
}

fn sampled(index: usize, case: &Value, cases: &mut Cases) {
    let rows = items(&case["inferences"]);
    let groups: Vec<i64> = rows.iter().map(|row| row["rollout_group"].as_i64().expect("a group")).collect();
    let (hotkey, randomness) = (text(&case["miner_hotkey"]), text(&case["challenge_randomness"]));
    if let Some(want) = case["first_commit_canonical_json"].as_str() {
        cases.equal(format!("{index} canonical"), to_string(&rows[0]["commit"], CANONICAL).as_str(), want);
    }
    if !case["rng_seed_u64"].is_null() {
        cases.equal(format!("{index} seed"), group_seed(hotkey, randomness).to_string(), plain(&case["rng_seed_u64"]));
    }
    let digest = |row: usize| canonical_hash(&rows[row]["commit"]);
    digests_agree(index, &groups, digest, &case["group_digests"], cases);
    let got = select_rows(hotkey, randomness, &groups, digest);
    cases.equal(format!("{index} rows"), got, sizes(&case["indices_to_check"]));
}

fn rollouts(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let groups = integers(&case["rollout_groups"]);
        let (hotkey, randomness) = (text(&case["hotkey"]), text(&case["window_rand"]));
        let commits = items(&case["commits"]);
        if commits.len() == groups.len() {
            let digest = |row: usize| canonical_hash(&commits[row]);
            digests_agree(index, &groups, digest, &case["group_digests"], cases);
            let got = select_rows(hotkey, randomness, &groups, digest);
            cases.equal(format!("{index} rows"), got, sizes(&case["indices"]));
            typed_agree(index, commits, cases);
            continue;
        }
        // Without commits, the given digests decide.
        let mut by_digest: Vec<(&str, i64)> = case["group_digests"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(group, digest)| (text(digest), group.parse().expect("a group")))
            .collect();
        by_digest.sort_unstable();
        let chosen: BTreeSet<i64> = match groups.len() <= 20 {
            true => groups.iter().copied().collect(),
            false => {
                select_group_places(hotkey, randomness, by_digest.len()).into_iter().map(|place| by_digest[place].1).collect()
            }
        };
        let got: Vec<usize> = (0..groups.len()).filter(|row| chosen.contains(&groups[*row])).collect();
        cases.equal(format!("{index} rows"), got, sizes(&case["indices"]));
    }
}

/// A commit that the typed form holds without loss streams to the same digest.
fn typed_agree(index: usize, commits: &[Value], cases: &mut Cases) {
    for (row, commit) in commits.iter().enumerate() {
        let typed = serde_json::from_value::<Commit>(commit.clone());
        let Some(typed) = typed.ok().filter(|typed| canonical_hash(&typed.to_value()) == canonical_hash(commit)) else {
            continue;
        };
        cases.equal(format!("{index} row {row} typed"), hash_commit(&typed), canonical_hash(commit));
    }
}

fn digests_agree(index: usize, groups: &[i64], digest: impl FnMut(usize) -> [u8; 32], want: &Value, cases: &mut Cases) {
    for (group, digest) in group_digests(groups, digest) {
        let got = hex::encode(digest);
        cases.equal(format!("{index} digest of {group}"), Some(got.as_str()), want[group.to_string()].as_str());
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn groups(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let (hotkey, randomness) = (text(&case["hotkey"]), text(&case["window_rand"]));
        let count = size(&case["num_groups"]);
        cases.equal(format!("{index} count"), groups_to_check(count), size(&case["groups_to_check"]));
        cases.equal(format!("{index} seed"), group_seed(hotkey, randomness).to_string(), plain(&case["rng_seed"]));
        let places = select_group_places(hotkey, randomness, count);
        cases.equal(format!("{index} places"), places, sizes(&case["positions_in_digest_sorted_order"]));
    }
}

fn miners(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let active: Vec<String> = items(&case["active"]).iter().map(|hotkey| text(hotkey).to_owned()).collect();
        let selections: HashMap<String, u64> = case["selection_counts"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(hotkey, count)| (hotkey.clone(), count.as_u64().expect("a count")))
            .collect();
        cases.equal(format!("{index} size"), miner_sample_size(active.len()), size(&case["sample_size"]));
        let selected = select_miners(&active, &selections, text(&case["window_hash"]));
        cases.equal(index, json!(selected), case["selected"].clone());
    }
}

fn counts(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let mut rolling = RollingCounts::new(size(&case["maxlen"]));
        for (step, case) in items(&case["steps"]).iter().enumerate() {
            rolling.push(items(&case["set"]).iter().map(|member| text(member).to_owned()).collect());
            // A member that fell to zero may be listed or not.
            let want: HashMap<String, u64> = case["counts"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(member, count)| (member.clone(), count.as_u64().expect("a count")))
                .filter(|(_, count)| *count > 0)
                .collect();
            let got: HashMap<String, u64> = rolling.counts().clone().into_iter().collect();
            cases.equal(format!("{index} step {step}"), got, want);
        }
    }
}
