//! Which kernel libtorch's `scaled_dot_product_attention` takes. It is asked for, not assumed: kernels differ in the last bits, and
//! what decides is in no setting of ours (device, type, the shape of the heads).

use std::fmt;

use tch::{Device, Kind, TchError, Tensor};

use crate::config::ModelConfig;
use crate::numerics::Attention;

/// The shape of the heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries.
    pub queries: i64,
    /// Heads of keys and values, which divide those.
    pub keys: i64,
    /// Width of a head.
    pub width: i64,
}

impl Heads {
    /// What the models of the network have (Qwen2.5, Qwen3, Llama 3: heads of 128, several queries for a key), for whoever has to
    /// ask before there is a model.
    pub const USUAL: Self = Self { queries: 16, keys: 8, width: 128 };

    /// The heads of a model.
    pub fn of(config: &ModelConfig) -> Self {
        Self { queries: config.num_attention_heads, keys: config.num_key_value_heads, width: config.head_dim }
    }
}

/// What attention is computed by. Displayed as workers tell each other: `flash`, `mem-efficient`, `math`, `cpu-flash`, `cpu-math`,
/// `eager`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionKernel {
    /// libtorch's fused causal kernel: on CUDA FlashAttention-2's algorithm.
    Flash {
        /// Whether it is the CPU's.
        cpu: bool,
    },
    /// The kernel for what flash does not take on CUDA, f32 above all.
    MemoryEfficient,
    /// Two products around a softmax, by libtorch.
    Math {
        /// Whether it is the CPU's.
        cpu: bool,
    },
    /// The same by ourselves, as transformers does it.
    Eager,
}

impl fmt::Display for AttentionKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flash { cpu: false } => "flash",
            Self::Flash { cpu: true } => "cpu-flash",
            Self::MemoryEfficient => "mem-efficient",
            Self::Math { cpu: false } => "math",
            Self::Math { cpu: true } => "cpu-math",
            Self::Eager => "eager",
        })
    }
}

impl AttentionKernel {
    /// What a sequence is attended by, causally and without a mask, in `kind` on `device`: asked of libtorch's dispatcher as it is
    /// set now, with tensors that lie as the forward pass lays them.
    ///
    /// # Errors
    /// When the device fails, or libtorch would take a kernel that is not meant to be taken.
    pub fn chosen(attention: Attention, device: Device, kind: Kind, heads: Heads) -> Result<Self, TchError> {
        if attention == Attention::Eager {
            return Ok(Self::Eager);
        }
        let _guard = tch::no_grad_guard();
        let make = |count: i64| Tensor::f_zeros([1, TOKENS, count, heads.width], (kind, device))?.f_transpose(1, 2);
        let (query, key) = (make(heads.queries)?, make(heads.keys)?);
        let code = Tensor::f_internal_fused_sdp_choice(&query, &key, &key, None::<&Tensor>, 0.0, true, None, true)?;
        Self::of(code, device).ok_or_else(|| {
            TchError::Torch(format!(
                "libtorch would attend by kernel {code} in {kind:?} on {device:?} with {heads:?}, which no proof is made with"
            ))
        })
    }

    /// `at::SDPBackend` by its number; cuDNN's (3) and those of plugins are none of ours.
    fn of(code: i64, device: Device) -> Option<Self> {
        let cpu = device == Device::Cpu;
        match code {
            0 => Some(Self::Math { cpu }),
            1 => Some(Self::Flash { cpu }),
            2 if !cpu => Some(Self::MemoryEfficient),
            _ => None,
        }
    }
}

/// Any length above 1: what is chosen does not depend on it.
const TOKENS: i64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_attends_by_its_flash_kernel_in_every_type_and_grouping() {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            for heads in [Heads::USUAL, Heads { queries: 14, keys: 2, width: 64 }, Heads { queries: 4, keys: 4, width: 6 }] {
                let chosen = AttentionKernel::chosen(Attention::Sdpa, Device::Cpu, kind, heads).unwrap();
                assert_eq!(chosen.to_string(), "cpu-flash", "{kind:?}, {heads:?}");
                let eager = AttentionKernel::chosen(Attention::Eager, Device::Cpu, kind, heads).unwrap();
                assert_eq!(eager.to_string(), "eager");
            }
        }
    }

    #[test]
    fn kernels_that_no_proof_is_made_with_are_none() {
        let cuda = Device::Cuda(0);
        let names = |device| [0, 1, 2].map(|code| AttentionKernel::of(code, device).map(|kernel| kernel.to_string()));
        assert_eq!(names(cuda), ["math", "flash", "mem-efficient"].map(|name| Some(name.to_owned())));
        assert_eq!(names(Device::Cpu), [Some("cpu-math".to_owned()), Some("cpu-flash".to_owned()), None]);
        assert!([-1, 3, 4].into_iter().all(|code| AttentionKernel::of(code, cuda).is_none()));
    }
}
