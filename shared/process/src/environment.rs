//! Which variables of the parent a child inherits: what compilers, CUDA and caches need, and no secret.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;

/// Says whose family a process belongs to: the run of the supervisor below which it was started.
pub const FAMILY: &str = "GRAIL_FAMILY";

/// Names that a child may inherit as they are.
const NAMES: [&str; 16] = [
    FAMILY,
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TZ",
    "TMPDIR",
    "TERM",
    "LD_LIBRARY_PATH",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "NO_COLOR",
    "XDG_CACHE_HOME",
    "HF_HUB_OFFLINE",
    "CC",
    "CXX",
];

/// Prefixes of families that a child may inherit. `HF_` is not among them: `HF_TOKEN` is a secret.
const PREFIXES: [&str; 12] =
    ["LC_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "MKL_", "TORCH_", "PYTORCH_", "TRITON_", "SGLANG_", "VLLM_", "HF_HOME"];

/// What is laid over the environment that this process was started with.
static LAID_OVER: OnceLock<BTreeMap<String, String>> = OnceLock::new();

/// From now on these variables (a `.env` file's) count like exported ones, for children and for [`variable`], as far as a child may
/// inherit them; they win. This process's own environment stays as it is. The first word counts.
pub fn lay_over(variables: &BTreeMap<String, String>) {
    let counting = variables.iter().filter(|(name, _)| can_be_laid_over(name));
    let _ = LAID_OVER.set(counting.map(|(name, value)| (name.clone(), value.clone())).collect());
}

/// Whether a variable of a `.env` file counts as if it had been exported.
pub fn can_be_laid_over(name: &str) -> bool {
    name != FAMILY && may_inherit(OsStr::new(name))
}

/// The environment that this process was started with, and what is laid over it.
pub fn of_this_process() -> Vec<(OsString, OsString)> {
    over(std::env::vars_os(), LAID_OVER.get())
}

/// One of those variables.
pub fn variable(name: &str) -> Option<String> {
    LAID_OVER.get().and_then(|laid| laid.get(name).cloned()).or_else(|| std::env::var(name).ok())
}

fn over(
    started_with: impl Iterator<Item = (OsString, OsString)>,
    laid: Option<&BTreeMap<String, String>>,
) -> Vec<(OsString, OsString)> {
    let replaced = |name: &OsString| laid.is_some_and(|laid| name.to_str().is_some_and(|name| laid.contains_key(name)));
    let laid_over = laid.into_iter().flatten().map(|(name, value)| (name.into(), value.into()));
    started_with.filter(|(name, _)| !replaced(name)).chain(laid_over).collect()
}

/// The variables of `parent` that a child gets, with `extra` laid over them.
///
/// An allow-list: a name that is not known to be harmless stays with the parent, so that a wallet password, a bucket's
/// write key or an API token never reaches a child.
pub fn for_child(
    parent: impl IntoIterator<Item = (OsString, OsString)>,
    extra: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let mut kept: Vec<(OsString, OsString)> = parent.into_iter().filter(|(name, _)| may_inherit(name)).collect();
    for (name, value) in extra {
        kept.retain(|(known, _)| *known != name);
        kept.push((name, value));
    }
    kept
}

fn may_inherit(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let secret = ["TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL"].iter().any(|word| name.contains(word));
    !secret && (NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (OsString, OsString) {
        (name.into(), value.into())
    }

    #[test]
    fn secrets_stay_with_the_parent() {
        let parent = ["PATH", "R2_WRITE_SECRET_ACCESS_KEY", "HF_TOKEN", "HF_HOME", "WANDB_API_KEY", "CUDA_HOME", "VLLM_API_KEY"];
        let kept = for_child(parent.map(|name| pair(name, "x")), [pair("CUDA_VISIBLE_DEVICES", "2")]);
        let names: Vec<_> = kept.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(names, ["PATH", "HF_HOME", "CUDA_HOME", "CUDA_VISIBLE_DEVICES"]);
    }

    #[test]
    fn what_is_laid_over_wins_and_nothing_else_of_a_file_counts() {
        let laid = BTreeMap::from([("HF_HOME".to_owned(), "/b".to_owned()), ("RUST_LOG".to_owned(), "debug".to_owned())]);
        let started = [pair("HF_HOME", "/a"), pair("PATH", "/bin")].into_iter();
        assert_eq!(over(started, Some(&laid)), [pair("PATH", "/bin"), pair("HF_HOME", "/b"), pair("RUST_LOG", "debug")]);
        for name in ["HF_HOME", "LD_LIBRARY_PATH", "NCCL_DEBUG", "RUST_LOG", "TMPDIR"] {
            assert!(can_be_laid_over(name), "{name}");
        }
        for name in [FAMILY, "LD_PRELOAD", "HF_TOKEN", "R2_WRITE_SECRET_ACCESS_KEY", "HTTPS_PROXY"] {
            assert!(!can_be_laid_over(name), "{name}");
        }
    }

    #[test]
    fn extra_variables_win() {
        let kept = for_child([pair("CUDA_VISIBLE_DEVICES", "0,1")], [pair("CUDA_VISIBLE_DEVICES", "1")]);
        assert_eq!(kept, [pair("CUDA_VISIBLE_DEVICES", "1")]);
    }
}
