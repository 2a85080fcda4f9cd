//! Adapters.

use super::{OnDevice, Port, reads, writes};
use weft_cuda_device::{Access, Argument, Buffer};
use weft_cuda_kernels::on_host::{self, Adapter, Element, LoraKind, LoraRows};
use weft_cuda_kernels::pack::Half;
use weft_cuda_kernels::table::{self, Choice, Path, Target};
use weft_kernels::{LoraSegment, LoraTarget};

impl Port {
    /// `x [rows, in_features]`, `out [rows, out_stride]`. Returns the kernel that was taken; none if there was nothing to do.
    pub(crate) fn lora<X: Element + bytemuck::Pod>(
        &self,
        x: &[X],
        in_features: usize,
        segments: &[LoraRows<'_>],
        out: &mut [X],
        out_stride: usize,
        LoraKind { format, batch_invariant }: LoraKind,
    ) -> Option<Path> {
        let (mut targets, mut slots, mut ranges): (Vec<Target>, Vec<[Buffer; 2]>, _) = (vec![], vec![], vec![]);
        for (rows, adapters) in segments {
            let first = targets.len();
            for adapter in adapters {
                let slot = [adapter.a, adapter.b].map(|half| self.put(half));
                targets.push(Target {
                    a: slot[0].address(),
                    b: slot[1].address(),
                    rank: adapter.rank as u32,
                    scale: adapter.scale,
                    out_offset: adapter.out_offset as u32,
                    out_features: adapter.out_features as u32,
                });
                slots.push(slot);
            }
            ranges.push((rows.clone(), first..targets.len()));
        }
        let rank_max = targets.iter().map(|target| target.rank as usize).max().unwrap_or(0);
        let activations = on_host::format_of::<X>();
        let (path, items) = table::items(&ranges, Choice { activations, batch_invariant, rank_max });
        if items.is_empty() {
            return None;
        }
        // One block more than there are items, as in a graph that was captured for a larger batch.
        let shape = table::shape(path, items.len() + 1, rank_max, out_stride, self.multiprocessors()).unwrap();
        let kernel = table::kernel(path, activations, format).unwrap();
        let (x_at, out_at) = (self.put(x), self.put(out));
        let (items_at, targets_at, count_at) = (self.put(&items), self.put(&targets), self.put(&[items.len() as u32]));
        let arguments = [
            reads(&x_at),
            Argument::I32(in_features as i32),
            writes(&out_at),
            Argument::I32(out_stride as i32),
            reads(&items_at),
            reads(&targets_at),
            reads(&count_at),
            Argument::I32(shape.shrunk_stride as i32),
            Argument::I32(shape.columns_per_block as i32),
        ];
        let reached: Vec<Access<'_>> = slots.iter().flatten().map(|half| half.all().reads()).collect();
        self.run(&kernel, (shape.grid, table::THREADS, shape.shared_bytes), &arguments, &reached);
        out.copy_from_slice(&self.get::<X>(&out_at));
        Some(path)
    }
}

impl OnDevice {
    pub(super) fn lora_in<X: Element + bytemuck::Pod>(
        &self,
        x: &[f32],
        in_features: usize,
        segments: &[LoraSegment<'_>],
        out: &mut [f32],
        out_stride: usize,
    ) {
        let Some(first) = segments.iter().flat_map(|segment| segment.targets).next() else { return };
        let kind = LoraKind { format: on_host::slot_format(&first.a), batch_invariant: self.batch_invariant };
        let halves = |target: &LoraTarget| {
            [(&target.a, Half::Shrink(in_features)), (&target.b, Half::Grow(target.out_features))]
                .map(|(matrix, half)| on_host::slot(matrix, half, target.rank))
        };
        let slots: Vec<Vec<[Vec<u8>; 2]>> =
            segments.iter().map(|segment| segment.targets.iter().map(halves).collect()).collect();
        let mut segments_of: Vec<LoraRows<'_>> = Vec::new();
        for (segment, slots) in segments.iter().zip(&slots) {
            let adapters = segment.targets.iter().zip(slots).map(|(target, [a, b])| Adapter {
                a,
                b,
                rank: target.rank,
                scale: target.scale,
                out_offset: target.out_offset,
                out_features: target.out_features,
            });
            segments_of.push((segment.rows.clone(), adapters.collect()));
        }
        let rounded = |values: &[f32]| -> Vec<X> { values.iter().copied().map(X::from_f32).collect() };
        let before = rounded(out);
        let mut after = before.clone();
        self.port.lora(&rounded(x), in_features, &segments_of, &mut after, out_stride, kind);
        // What the kernel leaves alone stays, unrounded.
        for ((to, after), before) in out.iter_mut().zip(after).zip(before) {
            if after.to_f32().to_bits() != before.to_f32().to_bits() {
                *to = after.to_f32();
            }
        }
    }
}
