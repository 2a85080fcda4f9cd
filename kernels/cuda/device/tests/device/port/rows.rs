//! Norms, rotary embedding and SiLU.

use super::{Port, reads, writes};
use weft_cuda_device::Argument;

impl Port {
    /// All `[rows, weight.len()]`.
    pub(super) fn rms_norm(&self, residual: Option<&mut [f32]>, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        if x.is_empty() {
            return;
        }
        let shape = ([(x.len() / weight.len()) as u32, 1, 1], 256, 0);
        let (x_at, weight_at, out_at) = (self.put(x), self.put(weight), self.room(size_of_val(out)));
        let rest =
            [reads(&x_at), reads(&weight_at), Argument::F32(eps), writes(&out_at), Argument::I32(weight.len() as i32)];
        match residual {
            None => self.run("weft_rms_norm_f32", shape, &rest, &[]),
            Some(residual) => {
                let residual_at = self.put(residual);
                let arguments = [&[writes(&residual_at)], &rest[..]].concat();
                self.run("weft_add_rms_norm_f32", shape, &arguments, &[]);
                residual.copy_from_slice(&self.get::<f32>(&residual_at));
            }
        }
        out.copy_from_slice(&self.get::<f32>(&out_at));
    }

    /// `x [rows, heads, head_dim]`.
    pub(super) fn rope(
        &self,
        x: &mut [f32],
        [heads, head_dim]: [usize; 2],
        positions: &[u32],
        inv_freq: &[f32],
        attention_factor: f32,
    ) {
        if x.is_empty() {
            return;
        }
        let (x_at, positions_at, inv_freq_at) = (self.put(x), self.put(positions), self.put(inv_freq));
        let [heads, head_dim, stride] = [heads, head_dim, heads * head_dim].map(|size| Argument::I32(size as i32));
        let arguments = [
            writes(&x_at),
            heads,
            head_dim,
            stride,
            reads(&positions_at),
            reads(&inv_freq_at),
            Argument::F32(attention_factor),
        ];
        self.run("weft_rope_f32", ([positions.len() as u32, 1, 1], 128, 0), &arguments, &[]);
        x.copy_from_slice(&self.get::<f32>(&x_at));
    }

    /// `gate_up [rows, 2 * inter]`, `out [rows, inter]`.
    pub(super) fn silu_mul(&self, gate_up: &[f32], inter: usize, out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        let (gate_up_at, out_at) = (self.put(gate_up), self.room(size_of_val(out)));
        let grid = [inter.div_ceil(2048) as u32, (out.len() / inter) as u32, 1];
        let arguments = [reads(&gate_up_at), writes(&out_at), Argument::I32(inter as i32)];
        self.run("weft_silu_mul_f32", (grid, 256, 0), &arguments, &[]);
        out.copy_from_slice(&self.get::<f32>(&out_at));
    }
}
