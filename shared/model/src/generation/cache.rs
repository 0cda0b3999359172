//! Keys and values of all running rows, one buffer pair per layer, each row left-aligned at its own length.

use tch::{Device, Kind, TchError, Tensor};

/// Positions are allocated in steps of this many, then by doubling.
const FIRST_POSITIONS: i64 = 128;

/// Keys and values of one sequence, per layer: `[1, kv heads, length, d]`.
pub(super) type Prefilled = Vec<(Tensor, Tensor)>;

/// The buffers `[rows, kv heads, positions, d]`; rows `0..lengths.len()` are in use. What lies behind a row's length is zero: it is
/// masked, but a masked NaN would still be a NaN, and overflowing weights leave some.
#[derive(Debug)]
pub(super) struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    lengths: Vec<i64>,
    shape: Shape,
}

/// What decides the size of the buffers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) heads: i64,
    pub(super) width: i64,
    pub(super) max_rows: i64,
    pub(super) max_positions: i64,
    /// The window of the layers that slide.
    pub(super) window: Option<i64>,
    pub(super) kind: Kind,
    pub(super) device: Device,
}

/// What one decoding step needs beside the buffers.
pub(super) struct StepPlan {
    rows: Tensor,
    /// `[B]`: where each row's new token goes.
    positions: Tensor,
    /// `[B, 1, 1, T]`: true where a key may be seen.
    mask: Tensor,
    /// The same within the window, for layers that slide.
    sliding: Option<Tensor>,
    longest: i64,
}

impl StepPlan {
    /// Positions as the forward pass wants them: `[B, 1]`.
    pub(super) fn positions(&self) -> Result<Tensor, TchError> {
        self.positions.f_unsqueeze(1)
    }

    /// `[B, 1, 1, T]`: which keys a layer with this window sees.
    pub(super) fn mask(&self, window: Option<i64>) -> &Tensor {
        window.and(self.sliding.as_ref()).unwrap_or(&self.mask)
    }
}

impl KvCache {
    pub(super) fn new(shape: Shape) -> Self {
        Self { layers: Vec::new(), lengths: Vec::new(), shape }
    }

    /// Adds a row with the keys and values of a prefilled sequence.
    pub(super) fn join(&mut self, prefilled: &Prefilled, length: i64) -> Result<(), TchError> {
        self.reserve(length + 1)?;
        let row = self.lengths.len() as i64;
        for ((keys, values), (k, v)) in self.layers.iter().zip(prefilled) {
            keys.f_narrow(0, row, 1)?.f_narrow(2, 0, length)?.f_copy_(k)?;
            values.f_narrow(0, row, 1)?.f_narrow(2, 0, length)?.f_copy_(v)?;
        }
        self.lengths.push(length);
        Ok(())
    }

    /// Removes a row; the last row takes its place.
    pub(super) fn swap_remove(&mut self, row: usize) -> Result<(), TchError> {
        let last = self.lengths.len() - 1;
        let (left, moved) = (self.lengths[row], self.lengths[last]);
        let part = |buffer: &Tensor, row: usize, from: i64, to: i64| {
            buffer.f_select(0, row as i64)?.f_narrow(1, from, (to - from).max(0))
        };
        for buffer in self.layers.iter().flat_map(|(keys, values)| [keys, values]) {
            if row != last {
                part(buffer, row, 0, moved)?.f_copy_(&part(buffer, last, 0, moved)?)?;
                let _ = part(buffer, row, moved, left)?.f_zero_()?;
            }
            let _ = part(buffer, last, 0, moved)?.f_zero_()?;
        }
        self.lengths.swap_remove(row);
        Ok(())
    }

    /// Removes all rows, and what they wrote.
    pub(super) fn clear(&mut self) {
        self.lengths.clear();
        self.layers.clear();
    }

    /// Makes room for one more token per row and says where it goes.
    pub(super) fn plan_step(&mut self) -> Result<StepPlan, TchError> {
        let longest = self.lengths.iter().max().map_or(0, |length| length + 1);
        self.reserve(longest)?;
        let device = self.shape.device;
        let batch = self.lengths.len() as i64;
        let positions = Tensor::f_from_slice(&self.lengths)?.f_to(device)?;
        let keys = Tensor::f_arange(longest, (Kind::Int64, device))?.f_view((1, 1, 1, longest))?;
        let queries = positions.f_view((batch, 1, 1, 1))?;
        let mask = keys.f_less_equal_tensor(&queries)?;
        let sliding = self.shape.window.map(|window| keys.f_greater_tensor(&queries.f_sub_scalar(window)?)?.f_logical_and(&mask));
        let sliding = sliding.transpose()?;
        let rows = Tensor::f_arange(batch, (Kind::Int64, device))?;
        self.lengths.iter_mut().for_each(|length| *length += 1);
        Ok(StepPlan { rows, positions, mask, sliding, longest })
    }

    /// Stores the new keys and values `[B, kv heads, 1, d]` of a layer and returns all of them, `[B, kv heads, T, d]`.
    pub(super) fn extend(&mut self, layer: usize, plan: &StepPlan, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let (keys, values) = &mut self.layers[layer];
        let place = [Some(&plan.rows), None, Some(&plan.positions)];
        let _ = keys.f_index_put_(&place, &k.f_squeeze_dim(2)?, false)?;
        let _ = values.f_index_put_(&place, &v.f_squeeze_dim(2)?, false)?;
        let batch = plan.rows.size()[0];
        let used = |buffer: &Tensor| buffer.f_narrow(0, 0, batch)?.f_narrow(2, 0, plan.longest);
        Ok((used(keys)?, used(values)?))
    }

    /// Grows the buffers to hold `positions` positions. They begin as zeros.
    fn reserve(&mut self, positions: i64) -> Result<(), TchError> {
        let have = self.layers.first().map_or(0, |(keys, _)| keys.size()[2]);
        if positions <= have {
            return Ok(());
        }
        let s = self.shape;
        let room = positions.max(have * 2).max(FIRST_POSITIONS).min(s.max_positions.max(positions));
        let blank = || Tensor::f_zeros([s.max_rows, s.heads, room, s.width], (s.kind, s.device));
        let mut grown = Vec::with_capacity(s.layers);
        for layer in 0..s.layers {
            let (keys, values) = (blank()?, blank()?);
            if let Some((old_keys, old_values)) = self.layers.get(layer) {
                keys.f_narrow(2, 0, have)?.f_copy_(old_keys)?;
                values.f_narrow(2, 0, have)?.f_copy_(old_values)?;
            }
            grown.push((keys, values));
        }
        self.layers = grown;
        Ok(())
    }
}
