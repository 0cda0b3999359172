//! The forward pass, operation by operation as transformers' `sdpa` path does it: on the same libtorch the final hidden
//! states are equal to the bit, so do not reorder anything here.

mod packed;
mod rows;

use tch::{Device, Kind, TchError, Tensor};

use crate::config::ModelConfig;
use crate::numerics::Attention;
use crate::rotary;
use crate::weights::Weights;

/// Turns rotated queries `[B, heads, L, d]`, rotated keys and values `[B, kv heads, L, d]` of a layer (first argument) into
/// the attention's output `[B, L, heads * d]`.
pub(crate) type Attend<'a> = dyn FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor, TchError> + 'a;

/// Handles on the resident weights, in the order of use.
#[derive(Debug)]
pub(crate) struct Network {
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
    /// `[head_dim / 2]` in f32 whatever the model's type.
    inverse_frequencies: Tensor,
    /// Numbers of the arithmetic as tensors without dimensions, see [`number`].
    epsilon: Tensor,
    score_scale: Tensor,
    head_dim: i64,
    groups: i64,
    scale: f64,
    /// How [`Network::hidden`] attends; the generation engine has its own way.
    pub(crate) attention: Attention,
    /// Whether [`Attention::Sdpa`] attends row by row in [`crate::Model::hidden`], as it does on CUDA, and not under a mask.
    pub(crate) by_rows: bool,
}

#[derive(Debug)]
struct Layer {
    input_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    /// Norms of q and k over each head, in the families that have them.
    head_norms: Option<(Tensor, Tensor)>,
    /// How many positions back the layer sees, itself included; `None` is all.
    window: Option<i64>,
    inner_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_linear(&self.weight, self.bias.as_ref())
    }
}

impl Layer {
    fn share(weights: &Weights, config: &ModelConfig, index: usize) -> Result<Self, TchError> {
        let part = |name: &str| weights.share(&format!("model.layers.{index}.{name}"));
        let linear = |name: &str, bias: bool| {
            let bias = bias.then(|| part(&format!("{name}.bias"))).transpose()?;
            Ok::<_, TchError>(Linear { weight: part(&format!("{name}.weight"))?, bias })
        };
        let head_norms = || Ok::<_, TchError>((part("self_attn.q_norm.weight")?, part("self_attn.k_norm.weight")?));
        Ok(Self {
            input_norm: part("input_layernorm.weight")?,
            query: linear("self_attn.q_proj", config.attention_bias)?,
            key: linear("self_attn.k_proj", config.attention_bias)?,
            value: linear("self_attn.v_proj", config.attention_bias)?,
            output: linear("self_attn.o_proj", config.output_bias)?,
            head_norms: config.architecture.normalises_heads().then(head_norms).transpose()?,
            window: config.windows.get(index).copied().flatten(),
            inner_norm: part("post_attention_layernorm.weight")?,
            gate: linear("mlp.gate_proj", config.mlp_bias)?,
            up: linear("mlp.up_proj", config.mlp_bias)?,
            down: linear("mlp.down_proj", config.mlp_bias)?,
        })
    }
}

/// Who sees whom in a batch without a cache, `[1 or B, 1, L, L]`: bool for the fused kernels, numbers to be added for eager
/// attention; `None` where plain causal attention says the same, and then with other last bits.
#[derive(Debug)]
pub(crate) struct Masks {
    full: Option<Tensor>,
    sliding: Option<Tensor>,
}

impl Network {
    pub(crate) fn share(weights: &Weights, config: &ModelConfig) -> Result<Self, TchError> {
        let embedding = weights.share("model.embed_tokens.weight")?;
        let scale = (config.head_dim as f64).powf(-0.5);
        let head = if config.tie_word_embeddings { embedding.shallow_clone() } else { weights.share("lm_head.weight")? };
        Ok(Self {
            by_rows: embedding.device().is_cuda(),
            inverse_frequencies: rotary::inverse_frequencies(&config.rotary, config.head_dim)?.f_to(embedding.device())?,
            embedding,
            layers: (0..config.num_hidden_layers).map(|layer| Layer::share(weights, config, layer)).collect::<Result<_, _>>()?,
            norm: weights.share("model.norm.weight")?,
            head,
            epsilon: number(config.rms_norm_eps)?,
            score_scale: number(scale)?,
            head_dim: config.head_dim,
            groups: config.num_attention_heads / config.num_key_value_heads,
            scale,
            attention: Attention::default(),
        })
    }

    pub(crate) fn device(&self) -> Device {
        self.embedding.device()
    }

    pub(crate) fn kind(&self) -> Kind {
        self.embedding.kind()
    }

    pub(crate) fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// How many positions back a layer sees, itself included; `None` is all. Whoever attends for [`Network::run`] must ask.
    pub(crate) fn window(&self, layer: usize) -> Option<i64> {
        self.layers.get(layer).and_then(|layer| layer.window)
    }

    /// The window of the layers that slide, if any do; all have the same.
    pub(crate) fn sliding_window(&self) -> Option<i64> {
        self.layers.iter().find_map(|layer| layer.window)
    }

    /// Final-norm hidden states `[B, L, hidden]` in the model's type of token ids `[B, L]` (i64). `real` is `[B, L]` bool,
    /// false at padding, and given only if there is padding: without it the kernel is another one, with other last bits.
    pub(crate) fn hidden(&self, ids: &Tensor, real: Option<&Tensor>) -> Result<Tensor, TchError> {
        let length = ids.size2()?.1;
        let positions = Tensor::f_arange(length, (Kind::Int64, self.device()))?;
        let masks = self.masks(length, real)?;
        self.run(ids, &positions.f_unsqueeze(0)?, &mut |layer, q, k, v| self.attend(layer, q, k, v, &masks))
    }

    /// The masks of sequences of `length` tokens; `real` as for [`Network::hidden`].
    pub(crate) fn masks(&self, length: i64, real: Option<&Tensor>) -> Result<Masks, TchError> {
        let positions = Tensor::f_arange(length, (Kind::Int64, self.device()))?;
        let (keys, queries) = (positions.f_unsqueeze(0)?, positions.f_unsqueeze(1)?);
        let eager = self.attention == Attention::Eager;
        let finished = |mask: Tensor| {
            let mask = mask.f_view((1, 1, length, length))?;
            let mask = real.map_or(Ok(mask.shallow_clone()), |real| mask.f_logical_and(&real.f_view((-1, 1, 1, length))?))?;
            if eager { self.added(&mask) } else { Ok(mask) }
        };
        let causal = || keys.f_less_equal_tensor(&queries);
        let within = |window: i64| keys.f_greater_tensor(&queries.f_sub_scalar(window)?)?.f_logical_and(&causal()?);
        // The reference builds the mask of a window from the length on that equals it, although it hides nothing yet.
        let window = self.sliding_window().filter(|window| real.is_some() || eager || length >= *window);
        Ok(Masks {
            full: (real.is_some() || eager).then(|| finished(causal()?)).transpose()?,
            sliding: window.map(|window| finished(within(window)?)).transpose()?,
        })
    }

    /// Attention of a layer in a batch without a cache: `[B, L, heads * d]`.
    pub(crate) fn attend(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, masks: &Masks) -> Result<Tensor, TchError> {
        match (if self.window(layer).is_some() { &masks.sliding } else { &masks.full }, self.attention) {
            (None, _) => self.attend_causal(q, k, v),
            (Some(mask), Attention::Sdpa) => self.attend_masked(q, k, v, mask),
            (Some(added), Attention::Eager) => self.attend_eager(q, k, v, added),
        }
    }

    /// The layers around whatever attention the caller brings. `positions` is `[1 or B, L]` i64.
    pub(crate) fn run(&self, ids: &Tensor, positions: &Tensor, attend: &mut Attend) -> Result<Tensor, TchError> {
        let mut x = Tensor::f_embedding(&self.embedding, ids, -1, false, false)?;
        let (cos, sin) = self.rotation(positions)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let (q, k, v) = self.project(layer, &x, &cos, &sin)?;
            let attended = attend(index, &q, &k, &v)?;
            let _ = x.f_add_(&layer.output.forward(&attended)?)?;
            let h = self.rms_norm(&x, &layer.inner_norm)?;
            let inner = layer.gate.forward(&h)?.f_silu_()?.f_mul_(&layer.up.forward(&h)?)?;
            let _ = x.f_add_(&layer.down.forward(&inner)?)?;
        }
        self.rms_norm(&x, &self.norm)
    }

    /// Residuals `[B, L, hidden]`, normed here, to rotated queries `[B, heads, L, d]`, rotated keys and values `[B, kv heads, L, d]`.
    fn project(&self, layer: &Layer, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<(Tensor, Tensor, Tensor), TchError> {
        let (batch, length, _) = x.size3()?;
        let heads = |x: Tensor| x.f_view((batch, length, -1, self.head_dim));
        let h = self.rms_norm(x, &layer.input_norm)?;
        let (mut q, mut k) = (heads(layer.query.forward(&h)?)?, heads(layer.key.forward(&h)?)?);
        if let Some((query_norm, key_norm)) = &layer.head_norms {
            (q, k) = (self.rms_norm(&q, query_norm)?, self.rms_norm(&k, key_norm)?);
        }
        let q = rotate(&q.f_transpose(1, 2)?, cos, sin)?;
        let k = rotate(&k.f_transpose(1, 2)?, cos, sin)?;
        Ok((q, k, heads(layer.value.forward(&h)?)?.f_transpose(1, 2)?))
    }

    /// Logits `[.., vocabulary]` in the model's type of hidden states `[.., hidden]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        // On a view with gaps libtorch picks a batched kernel that is some hundred times slower.
        hidden.f_contiguous()?.f_linear(&self.head, None::<&Tensor>)
    }

    /// Logits `[R, vocabulary]` of hidden states `[R, hidden]`, written into a buffer of their shape.
    pub(crate) fn logits_into(&self, buffer: &Tensor, hidden: &Tensor) -> Result<Tensor, TchError> {
        hidden.f_mm_out(buffer, &self.head.f_transpose(0, 1)?)
    }

    pub(crate) fn attend_causal(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, TchError> {
        let causal = q.size()[2] > 1;
        let out = Tensor::f_scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, causal, self.scale, true)?;
        join_heads(&out)
    }

    fn attend_masked(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor, TchError> {
        let (k, v) = (repeat_heads(k, self.groups)?, repeat_heads(v, self.groups)?);
        let out = Tensor::f_scaled_dot_product_attention(q, &k, &v, Some(mask), 0.0, false, self.scale, false)?;
        join_heads(&out)
    }

    /// A mask as numbers to be added to the scores: 0 where it holds, else the type's lowest number, as transformers has it.
    fn added(&self, mask: &Tensor) -> Result<Tensor, TchError> {
        // A number that the type does not hold is an error, not an infinity.
        let lowest = match self.kind() {
            Kind::BFloat16 => half::bf16::MIN.to_f64(),
            Kind::Half => half::f16::MIN.to_f64(),
            _ => f64::from(f32::MIN),
        };
        Tensor::f_zeros(mask.size(), (self.kind(), self.device()))?.f_masked_fill_(&mask.f_logical_not()?, lowest)
    }

    /// transformers' `eager_attention_forward`: every product is a matmul of its own, and the softmax is in f32.
    fn attend_eager(&self, q: &Tensor, k: &Tensor, v: &Tensor, added: &Tensor) -> Result<Tensor, TchError> {
        let (k, v) = (repeat_heads(k, self.groups)?, repeat_heads(v, self.groups)?);
        // Not scaled in place: libtorch would then round the scale to the scores' type first.
        let scores = q.f_matmul(&k.f_transpose(2, 3)?)?.f_mul(&self.score_scale)?.f_add_(added)?;
        join_heads(&scores.f_softmax(-1, Kind::Float)?.f_to_kind(q.kind())?.f_matmul(&v)?)
    }

    /// One query per row over a cache `[B, kv heads, T, d]`; `mask` is `[B, 1, 1, T]`. The query heads that share a key head
    /// take the place of the query positions, so that the cache need not be repeated for each of them.
    pub(crate) fn attend_cached(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor, TchError> {
        let (batch, key_heads, ..) = k.size4()?;
        let q = q.f_reshape([batch, key_heads, self.groups, self.head_dim])?;
        let mask = mask.f_expand([batch, 1, self.groups, k.size()[2]], false)?;
        let out = Tensor::f_scaled_dot_product_attention(&q, k, v, Some(&mask), 0.0, false, self.scale, false)?;
        out.f_reshape([batch, 1, key_heads * self.groups * self.head_dim])
    }

    fn rotation(&self, positions: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let rows = positions.size2()?.0;
        let inverse = self.inverse_frequencies.f_view((1, -1, 1))?.f_expand([rows, -1, 1], false)?;
        let angles = inverse.f_matmul(&positions.f_unsqueeze(1)?.f_to_kind(Kind::Float)?)?.f_transpose(1, 2)?;
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?;
        let cast = |x: Tensor| x.f_to_kind(self.kind())?.f_unsqueeze(1);
        Ok((cast(angles.f_cos()?)?, cast(angles.f_sin()?)?))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
        let wide = x.f_to_kind(Kind::Float)?;
        let variance = wide.f_square()?.f_mean_dim(&[-1i64][..], true, None)?;
        let normed = wide.f_mul(&variance.f_add(&self.epsilon)?.f_rsqrt()?)?;
        // A tensor of its own in every type, so it may be written to.
        normed.f_to_kind(x.kind())?.f_mul_(weight)
    }
}

/// A number as libtorch takes one from Python. tch's own way (`f_mul_scalar` and its like) panics where it should say that memory
/// ran out: it frees the scalar before it looks for the error, and the freeing looks for it, too.
fn number(value: f64) -> Result<Tensor, TchError> {
    Tensor::f_from_slice(&[value])?.f_squeeze()
}

fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TchError> {
    let width = x.size()[3];
    let half = width / 2;
    let mut turned = Tensor::f_cat(&[x.f_slice(3, half, width, 1)?.f_neg()?, x.f_slice(3, 0, half, 1)?], -1)?;
    x.f_mul(cos)?.f_add_(&turned.f_mul_(sin)?)
}

fn repeat_heads(x: &Tensor, times: i64) -> Result<Tensor, TchError> {
    if times == 1 {
        return Ok(x.shallow_clone());
    }
    let (batch, heads, length, width) = x.size4()?;
    let repeated = x.f_unsqueeze(2)?.f_expand([batch, heads, times, length, width], false)?;
    repeated.f_reshape([batch, heads * times, length, width])
}

fn join_heads(x: &Tensor) -> Result<Tensor, TchError> {
    let (batch, _, length, _) = x.size4()?;
    x.f_transpose(1, 2)?.f_contiguous()?.f_reshape([batch, length, -1])
}
