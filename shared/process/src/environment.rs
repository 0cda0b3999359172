//! Which variables of the parent a child inherits: what compilers, CUDA and caches need, and no secret.

use std::ffi::{OsStr, OsString};

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
    fn extra_variables_win() {
        let kept = for_child([pair("CUDA_VISIBLE_DEVICES", "0,1")], [pair("CUDA_VISIBLE_DEVICES", "1")]);
        assert_eq!(kept, [pair("CUDA_VISIBLE_DEVICES", "1")]);
    }
}
