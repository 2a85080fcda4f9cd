//! Norms, rotary embedding and SiLU.

use super::{Port, reads, writes};
use weft_cuda_device::Argument;
use weft_cuda_kernels::on_host::Element;

impl Port {
    /// All `[rows, weight.len()]`.
    pub(crate) fn rms_norm<X: Element + bytemuck::Pod>(
        &self,
        residual: Option<&mut [X]>,
        x: &[X],
        weight: &[X],
        eps: f32,
        out: &mut [X],
    ) {
        if x.is_empty() {
            return;
        }
        let shape = ([(x.len() / weight.len()) as u32, 1, 1], 256, 0);
        let (x_at, weight_at, out_at) = (self.put(x), self.put(weight), self.room(size_of_val(out)));
        let rest =
            [reads(&x_at), reads(&weight_at), Argument::F32(eps), writes(&out_at), Argument::I32(weight.len() as i32)];
        match residual {
            None => self.run(&format!("weft_rms_norm_{}", X::SUFFIX), shape, &rest, &[]),
            Some(residual) => {
                let residual_at = self.put(residual);
                let arguments = [&[writes(&residual_at)], &rest[..]].concat();
                self.run(&format!("weft_add_rms_norm_{}", X::SUFFIX), shape, &arguments, &[]);
                residual.copy_from_slice(&self.get::<X>(&residual_at));
            }
        }
        out.copy_from_slice(&self.get::<X>(&out_at));
    }

    /// `x [rows, heads, head_dim]`.
    pub(crate) fn rope<X: Element + bytemuck::Pod>(
        &self,
        x: &mut [X],
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
        self.run(&format!("weft_rope_{}", X::SUFFIX), ([positions.len() as u32, 1, 1], 128, 0), &arguments, &[]);
        x.copy_from_slice(&self.get::<X>(&x_at));
    }

    /// `gate_up [rows, 2 * inter]`, `out [rows, inter]`.
    pub(crate) fn silu_mul<X: Element + bytemuck::Pod>(&self, gate_up: &[X], inter: usize, out: &mut [X]) {
        if out.is_empty() {
            return;
        }
        let (gate_up_at, out_at) = (self.put(gate_up), self.room(size_of_val(out)));
        let grid = [inter.div_ceil(2048) as u32, (out.len() / inter) as u32, 1];
        let arguments = [reads(&gate_up_at), writes(&out_at), Argument::I32(inter as i32)];
        self.run(&format!("weft_silu_mul_{}", X::SUFFIX), (grid, 256, 0), &arguments, &[]);
        out.copy_from_slice(&self.get::<X>(&out_at));
    }
}
