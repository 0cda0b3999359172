//! Attention of a padded batch row by row: each row without its padding, causally, so that no mask decides which kernel is taken.
//!
//! On CUDA a mask of bools rules flash out, and flash is what validators have; FlashAttention-2's own way with a padded batch is
//! this one, too: padding is taken out, rows are attended, and zeros take its place. Everything else is computed over the batch as
//! it is.

use tch::{Kind, TchError, Tensor};

use super::{Masks, Network};

impl Network {
    /// As [`Network::hidden`], of a batch `[B, L]` whose rows are `lengths` long.
    pub(crate) fn hidden_by_rows(&self, ids: &Tensor, lengths: &[i64]) -> Result<Tensor, TchError> {
        let longest = ids.size2()?.1;
        let positions = Tensor::f_arange(longest, (Kind::Int64, self.device()))?.f_unsqueeze(0)?;
        let rows = self.rows(lengths)?;
        self.run(ids, &positions, &mut |layer, q, k, v| self.attend_by_rows(layer, q, k, v, &rows))
    }

    /// What each row of a batch is attended with: its length, and masks where a layer slides over it.
    fn rows(&self, lengths: &[i64]) -> Result<Vec<(i64, Masks)>, TchError> {
        lengths.iter().map(|&length| Ok((length, self.masks(length, None)?))).collect()
    }

    /// Attention of a layer: `[B, L, heads * d]`, zero at padding.
    fn attend_by_rows(
        &self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        rows: &[(i64, Masks)],
    ) -> Result<Tensor, TchError> {
        let (batch, heads, longest, width) = q.size4()?;
        let all = Tensor::f_zeros([batch, longest, heads * width], (q.kind(), q.device()))?;
        for (row, (length, masks)) in (0..).zip(rows) {
            let own = |x: &Tensor| x.f_narrow(0, row, 1)?.f_narrow(2, 0, *length);
            let attended = self.attend(layer, &own(q)?, &own(k)?, &own(v)?, masks)?;
            all.f_narrow(0, row, 1)?.f_narrow(1, 0, *length)?.f_copy_(&attended)?;
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::Dtype;
    use tch::Device;

    use super::*;
    use crate::config::Architecture;
    use crate::fixtures;
    use crate::model::{LoadOptions, Model, Precision};

    fn load(family: Architecture, precision: Precision) -> Model {
        let directory = fixtures::checkpoint_of(&fixtures::family(family), 21, Dtype::F32);
        Model::load(directory.path(), LoadOptions { device: Device::Cpu, precision }).unwrap()
    }

    fn bits(tensor: &Tensor) -> Vec<u8> {
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
        bytes
    }

    /// Random queries, keys and values of a batch, as [`Network::run`] lays them.
    fn projected(model: &Model, batch: i64, longest: i64, kind: Kind) -> [Tensor; 3] {
        let config = model.config();
        let heads = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads];
        heads.map(|heads| {
            Tensor::randn([batch, longest, heads, config.head_dim], (Kind::Float, Device::Cpu)).to_kind(kind).transpose(1, 2)
        })
    }

    #[test]
    fn by_rows_gives_what_the_masked_batch_gives_in_every_family() {
        for family in Architecture::ALL {
            let model = load(family, Precision::F32);
            let tokens: Vec<Vec<u32>> =
                [40, 1, 17, 23, 40].map(|length| (0..length).map(|p| (p * p + length) % 96).collect()).to_vec();
            let batch: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
            let masked = model.hidden(&batch).unwrap();
            let by_rows = model.attending_by_rows(true).hidden(&batch).unwrap();
            for (row, tokens) in (0..).zip(&tokens) {
                let real = |hidden: &Tensor| hidden.select(0, row).narrow(0, 0, tokens.len() as i64);
                let apart = (real(&masked) - real(&by_rows)).abs().max().double_value(&[]);
                assert!(apart < 2e-5, "{family:?}, row {row}: {apart:e}");
            }
            assert!(by_rows.isfinite().all().int64_value(&[]) == 1, "{family:?}: what is computed at padding is finite");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_row_is_attended_as_if_it_were_alone_whatever_is_beside_it(
            lengths in prop::collection::vec(1i64..60, 1..7),
            turn in 0usize..7,
            (family, kind) in prop::sample::select(vec![
                (Architecture::Qwen2, Kind::Float), (Architecture::Qwen3, Kind::BFloat16), (Architecture::Llama, Kind::Half),
            ]),
        ) {
            let precision = match kind { Kind::Float => Precision::F32, Kind::Half => Precision::F16, _ => Precision::Bf16 };
            let network = load(family, precision).network;
            let model = load(family, precision);
            let longest = lengths.iter().copied().max().unwrap_or(1);
            let [q, k, v] = projected(&model, lengths.len() as i64, longest, kind);
            for layer in 0..network.layer_count() {
                let rows = network.rows(&lengths).unwrap();
                let all = network.attend_by_rows(layer, &q, &k, &v, &rows).unwrap();
                // The same rows in another order, one of them first.
                let order: Vec<usize> = (0..lengths.len()).map(|row| (row + turn) % lengths.len()).collect();
                let turned = Tensor::from_slice(&order.iter().map(|&row| row as i64).collect::<Vec<_>>());
                let moved: Vec<i64> = order.iter().map(|&row| lengths[row]).collect();
                let [q2, k2, v2] = [&q, &k, &v].map(|x| x.index_select(0, &turned));
                let other = network.attend_by_rows(layer, &q2, &k2, &v2, &network.rows(&moved).unwrap()).unwrap();
                for (place, &row) in order.iter().enumerate() {
                    let length = lengths[row];
                    let part = |x: &Tensor| x.narrow(0, row as i64, 1).narrow(2, 0, length);
                    let masks = network.masks(length, None).unwrap();
                    let alone = network.attend(layer, &part(&q), &part(&k), &part(&v), &masks).unwrap();
                    for (found, at) in [(&all, row), (&other, place)] {
                        let found = found.select(0, at as i64);
                        prop_assert_eq!(bits(&found.narrow(0, 0, length)), bits(&alone), "row {} at {}", row, at);
                        let padding = found.narrow(0, length, longest - length);
                        prop_assert!(padding.numel() == 0 || padding.count_nonzero(None).int64_value(&[]) == 0);
                    }
                }
            }
        }
    }
}
