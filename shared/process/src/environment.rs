//! Which variables of the parent a child inherits: what compilers, CUDA and caches need, and no secret.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;

/// Says whose family a process belongs to: the run of the supervisor below which it was started.
pub const FAMILY: &str = "GRAIL_FAMILY";

/// Variables that a child may inherit as they are.
#[derive(Debug)]
pub struct Inherited {
    /// Their names; one that ends with `*` stands for every name that begins so.
    pub names: &'static [&'static str],
    /// Who needs them.
    pub why: &'static str,
}

const fn inherited(names: &'static [&'static str], why: &'static str) -> Inherited {
    Inherited { names, why }
}

/// Everything that a child may inherit. `HF_` as a whole is not among it: `HF_TOKEN` is a secret.
pub const INHERITED: &[Inherited] = &[
    inherited(&[FAMILY], "whose process it is, for a later start that finds it"),
    inherited(&["PATH", "HOME", "USER", "LANG", "LC_*", "TZ", "TERM", "NO_COLOR"], "what every program expects"),
    inherited(&["TMPDIR", "XDG_CACHE_HOME"], "where temporary files and caches may lie"),
    inherited(&["RUST_LOG", "RUST_BACKTRACE"], "what our own programs log"),
    inherited(&["LD_LIBRARY_PATH"], "libtorch and the driver's libraries, where no run path names them"),
    inherited(&["CUDA_*", "NVIDIA_*"], "which GPUs there are, where the toolkit is (CUDA_HOME, CUDA_PATH), and CUDA's own cache"),
    inherited(&["OMP_*", "MKL_*"], "threads of libtorch on the CPU"),
    inherited(&["TORCH_*", "PYTORCH_*", "TORCHINDUCTOR_*"], "libtorch's allocator and logs, and where compiled kernels are kept"),
    inherited(&["SGLANG_*", "VLLM_*"], "the generation servers' own switches and caches"),
    inherited(
        &["FLASHINFER_*", "TVM_FFI_*", "DG_JIT_CACHE_DIR", "TRITON_*"],
        "where SGLang's and vLLM's kernels are compiled at run time and kept, and for which GPUs",
    ),
    inherited(
        &["CC", "CXX", "CUDAHOSTCXX", "NVCC_*", "CPATH", "LIBRARY_PATH", "MAX_JOBS"],
        "which compilers build those kernels, with what headers and libraries, how many at once",
    ),
    inherited(&["NCCL_*", "UCX_*", "GLOO_*", "NVSHMEM_*"], "how the GPUs of one server talk to each other"),
    inherited(&["CONDA_PREFIX"], "where a Python of conda has its toolkit and libraries"),
    inherited(&["HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"], "where tokenizers and models of the Hugging Face hub are kept"),
];

/// Words that name a secret, whatever else a name says.
const SECRET_WORDS: [&str; 8] = ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "KEY", "CREDENTIAL", "AUTH"];

/// [`INHERITED`] as a table for people.
pub fn table() -> String {
    let rows = INHERITED.iter().map(|inherited| format!("{}\n    {}\n", inherited.names.join(" "), inherited.why));
    rows.collect::<String>() + &format!("Never one whose name holds {}.\n", SECRET_WORDS.join(", "))
}

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
    let upper = name.to_ascii_uppercase();
    let secret = SECRET_WORDS.iter().any(|word| upper.contains(word));
    let known = |pattern: &&str| pattern.strip_suffix('*').map_or(*pattern == name, |begin| name.starts_with(begin));
    !secret && INHERITED.iter().flat_map(|inherited| inherited.names).any(known)
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
    fn what_compilers_caches_and_links_between_gpus_need_reaches_a_child() {
        let needed = [
            "CUDA_HOME",
            "CUDA_PATH",
            "CUDAHOSTCXX",
            "NVCC_PREPEND_FLAGS",
            "CPATH",
            "LIBRARY_PATH",
            "MAX_JOBS",
            "FLASHINFER_WORKSPACE_BASE",
            "TVM_FFI_CACHE_DIR",
            "DG_JIT_CACHE_DIR",
            "TRITON_CACHE_DIR",
            "TORCHINDUCTOR_CACHE_DIR",
            "TORCH_EXTENSIONS_DIR",
            "NCCL_IB_DISABLE",
            "UCX_TLS",
            "GLOO_SOCKET_IFNAME",
            "NVSHMEM_DISABLE_CUDA_VMM",
            "CONDA_PREFIX",
            "HF_HUB_CACHE",
        ];
        let kept = for_child(needed.map(|name| pair(name, "x")), []);
        assert_eq!(kept, needed.map(|name| pair(name, "x")));
        for other in ["PATHS", "MAX_JOBS_TOO", "HF_ENDPOINT", "AWS_REGION", "BT_WALLET_HOT", "GRAIL_STATE_DIR", "cuda_home"] {
            assert_eq!(for_child([pair(other, "x")], []), [], "{other} is nobody's need");
        }
    }

    #[test]
    fn no_family_lets_a_secret_through() {
        let families = INHERITED.iter().flat_map(|inherited| inherited.names).filter_map(|name| name.strip_suffix('*'));
        let mut tried = 0;
        for family in families {
            for word in SECRET_WORDS {
                for name in [format!("{family}{word}"), format!("{family}API_{}_X", word.to_lowercase())] {
                    assert_eq!(for_child([pair(&name, "x")], []), [], "{name}");
                    tried += 1;
                }
            }
        }
        assert!(tried > 100, "{tried}");
        let text = table();
        assert!(text.contains("FLASHINFER_*") && text.contains("CREDENTIAL"), "{text}");
    }

    #[test]
    fn extra_variables_win() {
        let kept = for_child([pair("CUDA_VISIBLE_DEVICES", "0,1")], [pair("CUDA_VISIBLE_DEVICES", "1")]);
        assert_eq!(kept, [pair("CUDA_VISIBLE_DEVICES", "1")]);
    }
}
