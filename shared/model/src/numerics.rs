//! How exactly libtorch shall compute: the precision tuning of the guides and the attention, judged before libtorch starts
//! (GRAIL local tools 4).
//!
//! Levels 1 and 2 concern CUDA. The proof model is bf16 there, so switching TF32 off changes next to nothing (it is off by
//! default, and it concerns f32 products only); what reaches bf16 products is the reduced-precision reduction. Level 2 also
//! leaves the kernels that validators use (`docs/gpu-hosts.md`, Which attention), so it moves away from them, within their tolerance.

use std::fmt;
use std::str::FromStr;

use tch::TchError;

use crate::native;

/// Names the workspace that makes cuBLAS deterministic.
const WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";

/// The values of it that do.
const LEGAL_WORKSPACES: [&str; 2] = [":4096:8", ":16:8"];

/// Switches TF32 on in libtorch, whatever the program wants.
const TORCH_TF32_OVERRIDE: &str = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE";

/// Switches TF32 on (1) or off (0) in cuBLAS and cuDNN, whatever libtorch says.
const NVIDIA_TF32_OVERRIDE: &str = "NVIDIA_TF32_OVERRIDE";

/// Sums of products in full precision, which may be made in parts: `allow_..._reduced_precision_reduction = False` of Python.
/// Without split-K cuBLAS, libtorch's default, refuses every product in bf16 and f16.
const FULL_WITH_SPLIT_K: u8 = 1;

/// The precision tuning of the guides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum PrecisionTuning {
    /// Level 0: libtorch's defaults, as validators have them.
    #[default]
    Standard,
    /// Level 1: no TF32, no reduced-precision sums in products, one fixed cuDNN algorithm.
    FullPrecision,
    /// Level 2: as level 1, with deterministic algorithms only, and eager attention.
    Deterministic,
}

impl PrecisionTuning {
    /// 0, 1 or 2.
    pub fn level(self) -> u8 {
        match self {
            Self::Standard => 0,
            Self::FullPrecision => 1,
            Self::Deterministic => 2,
        }
    }
}

impl FromStr for PrecisionTuning {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "0" => Ok(Self::Standard),
            "1" => Ok(Self::FullPrecision),
            "2" => Ok(Self::Deterministic),
            other => Err(format!("{other:?} is no precision tuning: use 0, 1 or 2")),
        }
    }
}

/// How the exact forward pass attends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attention {
    /// libtorch's `scaled_dot_product_attention`, which picks a fused kernel.
    #[default]
    Sdpa,
    /// Two matmuls around a softmax in f32, as transformers' eager attention.
    Eager,
}

impl Attention {
    /// `sdpa` or `eager`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sdpa => "sdpa",
            Self::Eager => "eager",
        }
    }
}

impl FromStr for Attention {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sdpa" => Ok(Self::Sdpa),
            "eager" => Ok(Self::Eager),
            other => Err(format!("{other:?} is no attention: use sdpa or eager")),
        }
    }
}

/// Why a wish for numerics is refused.
#[derive(Debug, thiserror::Error)]
pub enum NumericsError {
    /// cuBLAS would not be deterministic.
    #[error(
        "precision tuning 2 needs {WORKSPACE} to be :4096:8 or :16:8 before the program starts, it is {found}; run `export {WORKSPACE}=:4096:8`"
    )]
    Workspace {
        /// What the variable is.
        found: String,
    },
    /// Two wishes that exclude each other.
    #[error("precision tuning 2 computes attention eagerly, sdpa is asked for too; leave --attention out or take tuning 0 or 1")]
    Conflict,
    /// libtorch refused a switch.
    #[error("libtorch refused the precision tuning {level}: {source}; use tuning 0")]
    Torch {
        /// The level.
        level: u8,
        /// What libtorch said.
        source: TchError,
    },
    /// The switches are not as they were set.
    #[error("libtorch does not hold the precision tuning {level}, its switches are: {found}; use tuning 0")]
    NotTaken {
        /// The level.
        level: u8,
        /// The switches, as they were read back.
        found: Switches,
    },
}

/// A legal wish for numerics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numerics {
    tuning: PrecisionTuning,
    attention: Attention,
}

impl Numerics {
    /// Judges a wish against the environment that libtorch and cuBLAS will read. Without an `attention` the tuning decides.
    ///
    /// # Errors
    /// When level 2 comes without a legal `CUBLAS_WORKSPACE_CONFIG`, or with another attention than eager.
    pub fn judge(
        tuning: PrecisionTuning,
        attention: Option<Attention>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, NumericsError> {
        if tuning == PrecisionTuning::Deterministic {
            if attention == Some(Attention::Sdpa) {
                return Err(NumericsError::Conflict);
            }
            let workspace = variable(WORKSPACE);
            if !workspace.as_deref().is_some_and(|value| LEGAL_WORKSPACES.contains(&value)) {
                let found = workspace.map_or("not set".to_owned(), |value| format!("{value:?}"));
                return Err(NumericsError::Workspace { found });
            }
            return Ok(Self { tuning, attention: Attention::Eager });
        }
        Ok(Self { tuning, attention: attention.unwrap_or_default() })
    }

    /// What of the environment decides about TF32 in the program's place, as `NAME=value`; f32 products alone depend on it.
    pub fn overrides(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
        // libtorch knows no value of its own but 1.
        let torch = variable(TORCH_TF32_OVERRIDE).filter(|value| value == "1").map(|value| (TORCH_TF32_OVERRIDE, value));
        let nvidia = variable(NVIDIA_TF32_OVERRIDE).filter(|value| !value.is_empty()).map(|value| (NVIDIA_TF32_OVERRIDE, value));
        torch.into_iter().chain(nvidia).map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// A sentence for the log about one of the [`Numerics::overrides`].
    pub fn warning(setting: &str) -> String {
        if setting.ends_with("=0") {
            format!("{setting} keeps TF32 off, which it is by default: f32 products are computed in full.")
        } else {
            format!("{setting} switches TF32 on: f32 products lose 13 bits; unset it.")
        }
    }

    /// The level.
    pub fn tuning(self) -> PrecisionTuning {
        self.tuning
    }

    /// The attention.
    pub fn attention(self) -> Attention {
        self.attention
    }

    /// Sets libtorch's switches and reads them back. Call it after [`crate::startup()`] and before a model is loaded. Without
    /// a CUDA half the switches are set all the same and have no effect.
    ///
    /// # Errors
    /// When libtorch refuses a switch or does not hold it.
    pub fn apply(self) -> Result<Switches, NumericsError> {
        let level = self.tuning.level();
        let refused = |source| NumericsError::Torch { level, source };
        // Where there is a choice it would be taken first on compute capability 9 and 10.
        native::without_cudnn_attention().map_err(refused)?;
        if level >= 1 {
            native::full_precision().map_err(refused)?;
        }
        if level >= 2 {
            native::deterministic().map_err(refused)?;
        }
        if self.attention == Attention::Eager {
            native::math_attention_only().map_err(refused)?;
        }
        let found = Switches::read().map_err(refused)?;
        if found.satisfy(self) { Ok(found) } else { Err(NumericsError::NotTaken { level, found }) }
    }
}

/// libtorch's numerics switches, as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switches(native::Switches);

impl Switches {
    /// Reads the switches of this process.
    ///
    /// # Errors
    /// When libtorch refuses, for example because two of its ways to set TF32 were mixed.
    pub fn read() -> Result<Self, TchError> {
        Ok(Self(native::switches()?))
    }

    fn satisfy(&self, wish: Numerics) -> bool {
        let is = &self.0;
        let level = wish.tuning.level();
        let off = [is.tf32_matmul, is.tf32_cudnn, is.matmul_precision, is.benchmark_cudnn];
        let full_sums = [is.bf16_reduction, is.fp16_reduction].iter().all(|reduction| *reduction == FULL_WITH_SPLIT_K);
        let fused = [is.sdp_flash, is.sdp_memory_efficient, is.sdp_math_reduction];
        is.sdp_cudnn == 0
            && (level < 1 || (off.iter().all(|switch| *switch == 0) && full_sums && is.deterministic_cudnn == 1))
            && (level < 2 || is.deterministic_algorithms == 1)
            && (wish.attention == Attention::Sdpa || (fused.iter().all(|switch| *switch == 0) && is.sdp_math == 1))
    }
}

impl fmt::Display for Switches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is = &self.0;
        let on = |switch: u8| if switch == 0 { "off" } else { "on" };
        let precision = ["highest", "high", "medium"].get(usize::from(is.matmul_precision)).unwrap_or(&"unknown");
        let reductions = ["full without split-K", "full", "reduced"];
        let reduction = |code: u8| reductions.get(usize::from(code)).copied().unwrap_or("unknown");
        write!(f, "TF32 {} in matmul and {} in cuDNN, ", on(is.tf32_matmul), on(is.tf32_cudnn))?;
        write!(f, "f32 matmul {precision}, ")?;
        write!(f, "sums of bf16 {} and of f16 {}, ", reduction(is.bf16_reduction), reduction(is.fp16_reduction))?;
        write!(f, "cuDNN deterministic {} and autotune {}, ", on(is.deterministic_cudnn), on(is.benchmark_cudnn))?;
        write!(f, "deterministic algorithms {}, ", on(is.deterministic_algorithms))?;
        write!(f, "SDP flash {}, memory-efficient {}, ", on(is.sdp_flash), on(is.sdp_memory_efficient))?;
        write!(f, "cuDNN {}, math {}, ", on(is.sdp_cudnn), on(is.sdp_math))?;
        write!(f, "its sums reduced {}", on(is.sdp_math_reduction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(tuning: &str, attention: Option<Attention>, workspace: Option<&str>) -> Result<Numerics, String> {
        let variable = |name: &str| workspace.filter(|_| name == WORKSPACE).map(str::to_owned);
        Numerics::judge(tuning.parse()?, attention, variable).map_err(|error| error.to_string())
    }

    #[test]
    fn level_two_wants_a_workspace_and_eager_attention() {
        for workspace in [None, Some(""), Some(":4096:2"), Some("4096:8")] {
            let error = judged("2", None, workspace).unwrap_err();
            assert!(error.contains("export CUBLAS_WORKSPACE_CONFIG=:4096:8"), "{error}");
        }
        for workspace in LEGAL_WORKSPACES {
            assert_eq!(judged("2", None, Some(workspace)).unwrap().attention(), Attention::Eager);
        }
        assert!(judged("2", Some(Attention::Sdpa), Some(":16:8")).unwrap_err().contains("--attention"));
        assert_eq!(judged("1", None, None).unwrap().attention(), Attention::Sdpa);
        assert_eq!(judged("0", Some(Attention::Eager), None).unwrap().attention(), Attention::Eager);
        assert!(judged("3", None, None).unwrap_err().contains("use 0, 1 or 2"));
    }

    #[test]
    fn overrides_of_tf32_are_named_with_what_they_do() {
        let overrides = |pairs: &'static [(&str, &str)]| {
            let variable = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            Numerics::overrides(variable)
        };
        for idle in [&[][..], &[(NVIDIA_TF32_OVERRIDE, "")], &[(TORCH_TF32_OVERRIDE, "0")]] {
            assert_eq!(overrides(idle), [""; 0], "{idle:?}");
        }
        let both = overrides(&[(NVIDIA_TF32_OVERRIDE, "0"), (TORCH_TF32_OVERRIDE, "1")]);
        assert_eq!(both, ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1", "NVIDIA_TF32_OVERRIDE=0"]);
        assert!(Numerics::warning(&both[0]).contains("switches TF32 on"));
        assert!(Numerics::warning(&both[1]).contains("keeps TF32 off"));
        assert!(Numerics::warning("NVIDIA_TF32_OVERRIDE=1").contains("unset it"));
    }
}
