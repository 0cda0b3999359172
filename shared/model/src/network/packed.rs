//! The forward pass over sequences laid end to end, without padding. It computes what [`Network::run`] computes, row by row;
//! what differs is how many rows share a kernel call, hence the last bits.

use tch::{TchError, Tensor};

use super::{Attend, Network};

impl Network {
    /// Final-norm hidden states `[T, hidden]` of packed token ids `[T]` at `positions` `[T]` (both i64). `attend` gets rotated
    /// queries `[1, heads, T, d]`, keys and values `[1, kv heads, T, d]` and gives `[1, T, heads * d]`.
    ///
    /// Everything but attention is computed in blocks of `block` rows, which stay in the processor's cache and keep the
    /// allocator from asking the system for new pages in every layer.
    pub(crate) fn hidden_packed(
        &self,
        ids: &Tensor,
        positions: &Tensor,
        block: i64,
        attend: &mut Attend,
    ) -> Result<Tensor, TchError> {
        let (cos, sin) = self.rotation(&positions.f_unsqueeze(0)?)?;
        let embed = |ids: Tensor| Tensor::f_embedding(&self.embedding, &ids, -1, false, false)?.f_unsqueeze(0);
        let mut x = blocks(ids, 0, block)?.into_iter().map(embed).collect::<Result<Vec<_>, _>>()?;
        let (cos, sin) = (blocks(&cos, 2, block)?, blocks(&sin, 2, block)?);
        for (index, layer) in self.layers.iter().enumerate() {
            let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
            for ((x, cos), sin) in x.iter().zip(&cos).zip(&sin) {
                let (queries, keys, values) = self.project(layer, x, cos, sin)?;
                q.push(queries);
                k.push(keys);
                v.push(values);
            }
            let attended = attend(index, &joined(q, 2)?, &joined(k, 2)?, &joined(v, 2)?)?;
            for (x, attended) in x.iter_mut().zip(blocks(&attended, 1, block)?) {
                let _ = x.f_add_(&layer.output.forward(&attended)?)?;
                let h = self.rms_norm(x, &layer.inner_norm)?;
                let inner = layer.gate.forward(&h)?.f_silu_()?.f_mul_(&layer.up.forward(&h)?)?;
                let _ = x.f_add_(&layer.down.forward(&inner)?)?;
            }
        }
        let normed = x.iter().map(|x| self.rms_norm(x, &self.norm)).collect::<Result<Vec<_>, _>>()?;
        joined(normed, 1)?.f_squeeze_dim(0)
    }
}

/// Views of `block` entries along a dimension; the last may be shorter.
fn blocks(x: &Tensor, dim: i64, block: i64) -> Result<Vec<Tensor>, TchError> {
    let all = x.size()[dim as usize];
    (0..all).step_by(block.max(1) as usize).map(|start| x.f_narrow(dim, start, block.min(all - start))).collect()
}

fn joined(mut parts: Vec<Tensor>, dim: i64) -> Result<Tensor, TchError> {
    match parts.len() {
        1 => Ok(parts.swap_remove(0)),
        _ => Tensor::f_cat(&parts, dim),
    }
}
