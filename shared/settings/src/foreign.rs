//! Variables of this software family that no setting here is made of, each known one with the reason (grail-miner 10).

use std::collections::BTreeMap;

use super::Unused;
use super::table::TABLE;

/// Prefixes of variables that belong to this software family.
const FAMILIES: [&str; 5] = ["GRAIL_", "R2_", "BT_", "SUBSTRATE_", "WANDB_"];

/// Variables of the Python miner, and why they change nothing here.
const REASONS: &[(&str, &str)] = &[
    ("BT_CLOSE_TIMEOUT", "nothing waits for a connection to close"),
    ("BT_WALLET_NAME", "a label of the monitoring; the wallet is BT_WALLET_COLD and BT_WALLET_HOT"),
    ("BT_WALLET_HOTKEY", "a label of the logs; the wallet is BT_WALLET_COLD and BT_WALLET_HOT"),
    ("SUBSTRATE_QUERY_TIMEOUT", "the validator's; here it is chain.call_timeout_seconds (BT_CALL_TIMEOUT)"),
    ("SUBSTRATE_QUERY_RETRIES", "the validator's; here it is chain.call_tries (BT_CALL_RETRIES)"),
    ("R2_FORCE_PATH_STYLE", "addresses are always path style"),
    ("GRAIL_THINKING_MODE", "the checkpoint's metadata says it"),
    ("GRAIL_DELTA_BASE_INTERVAL", "the checkpoints' metadata says what each is a difference against"),
    ("GRAIL_DELTA_CHECKPOINT_RETENTION_LIMIT", "the cache keeps the checkpoint in use and nothing else"),
    ("GRAIL_CHECKPOINT_MILESTONE_INTERVAL", "the cache keeps the checkpoint in use and nothing else"),
    ("GRAIL_PIPELINE_ENABLED", "nothing reads it in the Python miner either"),
    ("GRAIL_USE_FLASH_ATTENTION", "nothing reads it in the Python miner either"),
    ("GRAIL_MULTI_GPU", "nothing reads it in the Python miner either; GPUs are generation.gpu and proof.gpus"),
    ("GRAIL_GENERATION_BATCH_SIZE", "nothing reads it in the Python miner either"),
    ("GRAIL_TRAINER_ATTN_IMPL", "the trainer's; there it leaked into proofs"),
    ("GRAIL_TRAINER_USE_LIGER_KERNEL", "the trainer's; there it leaked into proofs"),
    ("GRAIL_GPU_EVAL", "for an environment that is not mined here"),
    ("GRAIL_LOG_FILE", "the log is supervisor.log in the state folder"),
    ("GRAIL_LOG_MAX_SIZE", "the log is kept in two files of 16 MiB"),
    ("GRAIL_LOG_BACKUP_COUNT", "the log is kept in two files of 16 MiB"),
    ("GRAIL_MONITORING_BACKEND", "nothing is sent to a monitoring service"),
];

/// Why a line of a `.env` changes nothing.
pub(super) const UNREAD: &str = "it is not NAME=value, and was skipped";

/// Names of the family that no setting is made of; an empty variable counts as not set.
pub(super) fn names(variables: &BTreeMap<String, String>) -> Unused {
    let known = |name: &str| TABLE.iter().any(|setting| setting.variables.contains(&name));
    let foreign = |name: &str| FAMILIES.iter().any(|family| name.starts_with(family)) && !known(name);
    let set = variables.iter().filter(|(name, value)| foreign(name) && !value.trim().is_empty());
    set.map(|(name, _)| (name.clone(), reason(name))).collect()
}

/// Why a variable changes nothing, where it is a known one.
fn reason(name: &str) -> Option<&'static str> {
    REASONS.iter().find(|(known, _)| *known == name).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_a_settings_or_has_a_reason_never_both() {
        for (name, reason) in REASONS {
            assert!(!reason.is_empty() && TABLE.iter().all(|setting| !setting.variables.contains(name)), "{name}");
            let alone = BTreeMap::from([((*name).to_owned(), "1".to_owned())]);
            assert_eq!(names(&alone).len(), 1, "{name} is told of");
        }
        let variables = [("GRAIL_NONSENSE", "1"), ("R2_REGION", "auto"), ("BT_CLOSE_TIMEOUT", " "), ("PATH", "/bin")];
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(names(&variables).into_keys().collect::<Vec<_>>(), ["GRAIL_NONSENSE"]);
    }
}
