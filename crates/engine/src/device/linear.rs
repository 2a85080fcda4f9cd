//! Weights of linears in device memory: as floats, or as codes in the order in which the kernels of quantised products read them.

use super::precision::Precision;
use super::shard::cut;
use super::weights::{Loader, filled};
use crate::Error;
use half::bf16;
use std::ops::Range;
use std::thread;
use weft_cuda_device::{Buffer, Device, Stream};
use weft_cuda_kernels::e4m3;
use weft_cuda_kernels::gemm::codes;
use weft_cuda_kernels::gemm::pack::{self, Packed};
use weft_cuda_kernels::gemm::{self, Inputs, STEP, TILE, Weights};

/// Storage of the base's linears on a device. Embeddings and norms stay in the precision.
///
/// Codes ask for a width of every linear's input that is a multiple of 32. Each row of a step has the same bits whatever shares the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// That of everything else.
    Precision,
    /// 8 bits and a scale in f32 for each output and 32 inputs: 9 bits a weight. Inputs are rounded to 8 bits, 32 neighbours at a time; sums of
    /// those are exact. What processors compute as `int8`.
    Int8,
    /// 8 bits and a scale for each output. Inputs are rounded to 8 bits, a row at a time, and sums are exact: the least arithmetic, and less
    /// exact than [`WeightFormat::Int8`] where one input of a row is far larger than the others.
    Int8Channels,
    /// 4 bits, a scale and a minimum in f16 for each output and 32 inputs: 5 bits a weight. Inputs stay bf16. The output matrix, which decides between
    /// tokens, is as in [`WeightFormat::Int8`].
    Four,
    /// e4m3 and a scale for each output. From compute capability 8.9 on inputs are rounded to e4m3, a row at a time, for the device's own
    /// products; before, they stay bf16 and weights are widened.
    Fp8,
}

impl WeightFormat {
    /// As the kernels call it, with what inputs have to be; none for floats.
    fn codes(self, role: Role, device: &Device) -> Option<(Weights, Inputs)> {
        let format = if role == Role::Head && self == Self::Four { Self::Int8 } else { self };
        match format {
            Self::Precision => None,
            Self::Int8 => Some((Weights::Int8Groups, Inputs::Int8Groups)),
            Self::Int8Channels => Some((Weights::Int8Channels, Inputs::Int8Rows)),
            Self::Four => Some((Weights::Four { group: STEP }, Inputs::Bf16)),
            Self::Fp8 if device.properties().capability >= NATIVE_FP8 => Some((Weights::E4m3, Inputs::E4m3Rows)),
            Self::Fp8 => Some((Weights::E4m3, Inputs::Bf16)),
        }
    }

    /// # Errors
    /// [`Error::Option`] where the kernels have no product for activations of this precision.
    pub(crate) fn check(self, precision: Precision) -> Result<(), Error> {
        let is_any = matches!(self, Self::Precision | Self::Int8 | Self::Int8Channels);
        if is_any || precision == Precision::Bf16 {
            return Ok(());
        }
        let allowed = "that of the precision or int8, unless the precision is bf16";
        Err(Error::Option { option: "weights", value: self as usize, allowed })
    }
}

/// The first compute capability with products over e4m3.
const NATIVE_FP8: (i32, i32) = (8, 9);

/// Which linear a format is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Layer,
    /// The output matrix.
    Head,
}

/// Weights `[outputs, inputs]`.
#[derive(Clone)]
pub(crate) enum Linear {
    Plain(Buffer),
    Codes(Codes),
}

/// Codes in the order of `weft_cuda_kernels::gemm::pack`.
#[derive(Clone)]
pub(crate) struct Codes {
    pub(crate) weights: Weights,
    /// What activations become before they meet the codes.
    pub(crate) inputs: Inputs,
    pub(crate) outputs: usize,
    pub(crate) depth: usize,
    pub(crate) codes: Buffer,
    /// Of groups.
    pub(crate) scales: Option<Buffer>,
    /// Of outputs, as many as there are columns.
    pub(crate) column_scales: Option<Buffer>,
}

impl Codes {
    /// Outputs, filled up to what the kernels take; those that were filled up are never written.
    pub(crate) fn columns(&self) -> usize {
        columns(self.outputs)
    }

    /// Of codes and scales.
    pub(crate) fn bytes(&self) -> usize {
        let optional = [&self.scales, &self.column_scales].map(|scales| scales.as_ref().map_or(0, Buffer::bytes));
        self.codes.bytes() + optional.iter().sum::<usize>()
    }
}

impl Linear {
    /// What a product reads of it.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Plain(weights) => weights.bytes(),
            Self::Codes(codes) => codes.bytes(),
        }
    }
}

fn columns(outputs: usize) -> usize {
    outputs.next_multiple_of(8)
}

impl Loader<'_> {
    /// Copies weights `[outputs, inputs]` to the device, or those of some inputs, as codes if they shall be: those that the whole would have.
    /// Cost for codes: three passes over the weights on as many threads as there are processors, and beside the values as much memory as the codes
    /// take twice.
    ///
    /// # Errors
    /// [`Error::Products`] for a shape that the kernels do not take, [`Error::Device`].
    pub(crate) fn linear(
        &mut self,
        values: &[f32],
        [outputs, inputs]: [usize; 2],
        part: &Range<usize>,
        format: WeightFormat,
        role: Role,
    ) -> Result<Linear, Error> {
        let Some((weights, of_inputs)) = format.codes(role, self.device) else {
            return Ok(Linear::Plain(self.put(&cut(values, inputs, part))?));
        };
        let depth = part.len();
        check(weights, of_inputs, [outputs, depth])?;
        let parts = packed(values, inputs, part, weights)?;
        let pieces =
            |of: fn(&Packed) -> &[u8]| parts.iter().map(of).filter(|bytes| !bytes.is_empty()).collect::<Vec<_>>();
        let mut optional = |of: fn(&Packed) -> &[u8]| {
            let pieces = pieces(of);
            if pieces.is_empty() { Ok(None) } else { self.put_bytes(&pieces).map(Some) }
        };
        let scales = optional(|part| bytemuck::cast_slice(&part.scales))?;
        let column_scales = optional(|part| bytemuck::cast_slice(&part.column_scales))?;
        let codes = self.put_bytes(&pieces(|part| bytemuck::cast_slice(&part.codes)))?;
        Ok(Linear::Codes(Codes { weights, inputs: of_inputs, outputs, depth, codes, scales, column_scales }))
    }
}

/// The same sizes as [`Loader::linear`] gives, with one small number everywhere.
pub(crate) fn without_meaning(
    device: &Device,
    stream: &Stream,
    [outputs, inputs]: [usize; 2],
    format: WeightFormat,
    role: Role,
) -> Result<Option<Linear>, Error> {
    let Some((weights, of_inputs)) = format.codes(role, device) else { return Ok(None) };
    check(weights, of_inputs, [outputs, inputs])?;
    // 0x3c3c3c3c is 0.0115 in f32, 0x2424 is 0.016 in f16.
    let filled = |bytes, byte| filled(device, stream, bytes, byte);
    let tiles = outputs.div_ceil(TILE) * TILE;
    let (codes, scales, columns) = match weights {
        Weights::Four { group } => (tiles * inputs / 2, Some((tiles * inputs / group * 4, 0x24)), None),
        Weights::Int8Groups => (tiles * inputs, Some((tiles * inputs / STEP * 4, 0x3c)), None),
        Weights::Int8Channels | Weights::E4m3 => (tiles * inputs, None, Some(columns(outputs) * 4)),
    };
    Ok(Some(Linear::Codes(Codes {
        weights,
        inputs: of_inputs,
        outputs,
        depth: inputs,
        codes: filled(codes, 0x3c)?,
        scales: scales.map(|(bytes, byte)| filled(bytes, byte)).transpose()?,
        column_scales: columns.map(|bytes| filled(bytes, 0x3c)).transpose()?,
    })))
}

/// Before anything is packed: whether there is a product for it.
fn check(weights: Weights, inputs: Inputs, [outputs, depth]: [usize; 2]) -> Result<(), gemm::Error> {
    gemm::launch(weights, inputs, [1, columns(outputs), depth], 1).map(drop)
}

/// Packs whole tiles on each thread. The parts lie one after the other on the device, as the whole would.
fn packed(values: &[f32], depth: usize, inputs: &Range<usize>, weights: Weights) -> Result<Vec<Packed>, gemm::Error> {
    let outputs = values.len() / depth;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let each = outputs.div_ceil(threads).next_multiple_of(TILE);
    let pack = |part: &[f32]| pack(part, depth, inputs, weights);
    thread::scope(|scope| {
        let running: Vec<_> = values.chunks(each * depth).map(|part| scope.spawn(move || pack(part))).collect();
        let joined =
            running.into_iter().map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect()
    })
}

/// The codes of some inputs of weights `[.., depth]`; scales of outputs are those of all inputs.
fn pack(values: &[f32], depth: usize, inputs: &Range<usize>, weights: Weights) -> Result<Packed, gemm::Error> {
    let columns = columns(values.len() / depth);
    let shape = [columns, inputs.len()];
    let filled_up;
    let values = if values.len() == columns * depth {
        values
    } else {
        filled_up = [values, &vec![0.0; columns * depth - values.len()]].concat();
        &filled_up
    };
    match weights {
        Weights::Four { group } => {
            let four = codes::four(&cut(values, depth, inputs));
            pack::four(shape, group, &four.codes, &four.scales, &four.mins)
        }
        Weights::Int8Groups => {
            let (codes, scales) = codes::int8(&cut(values, depth, inputs), STEP);
            pack::int8_groups(shape, &codes, &scales)
        }
        Weights::Int8Channels => {
            let (codes, scales) = codes::int8(values, depth);
            pack::int8_channels(shape, &cut(&codes, depth, inputs), &scales)
        }
        Weights::E4m3 => {
            let (codes, scales) = codes::e4m3(values, depth);
            pack::e4m3(shape, &cut(&codes, depth, inputs), &scales)
        }
    }
}

/// What the device has of weights `[.., depth]` of layers: they are rounded as at load.
pub(crate) fn rounded(mut values: Vec<f32>, depth: usize, format: WeightFormat, precision: Precision) -> Vec<f32> {
    match format {
        WeightFormat::Precision => match precision {
            Precision::F32 => {}
            Precision::Bf16 => values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
        },
        WeightFormat::Int8 | WeightFormat::Int8Channels => {
            let group = if format == WeightFormat::Int8 { STEP } else { depth };
            let (codes, scales) = codes::int8(&values, group);
            let groups = values.chunks_mut(group).zip(codes.chunks(group));
            for ((values, codes), scale) in groups.zip(scales) {
                values.iter_mut().zip(codes).for_each(|(value, &code)| *value = scale * f32::from(code));
            }
        }
        WeightFormat::Four => {
            let four = codes::four(&values);
            let groups = values.chunks_mut(STEP).zip(four.codes.chunks(STEP));
            for ((values, codes), (scale, min)) in groups.zip(four.scales.iter().zip(&four.mins)) {
                let (scale, min) = (scale.to_f32(), min.to_f32());
                values.iter_mut().zip(codes).for_each(|(value, &code)| *value = scale * f32::from(code) + min);
            }
        }
        WeightFormat::Fp8 => {
            let (codes, scales) = codes::e4m3(&values, depth);
            for ((values, codes), scale) in values.chunks_mut(depth).zip(codes.chunks(depth)).zip(scales) {
                values.iter_mut().zip(codes).for_each(|(value, &code)| *value = scale * e4m3::decode(code));
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernels::conformance::Random;

    /// Of some inputs there are the codes, and the scales of outputs, that the whole has.
    #[test]
    fn some_inputs_have_the_codes_of_the_whole() {
        let (outputs, depth, inputs) = (72, 160, 64..128);
        let values = Random::new(6).normals(outputs * depth);
        for weights in [Weights::Four { group: 32 }, Weights::Int8Groups, Weights::Int8Channels, Weights::E4m3] {
            let whole = pack(&values, depth, &(0..depth), weights).unwrap();
            let part = pack(&values, depth, &inputs, weights).unwrap();
            let steps = inputs.start / STEP..inputs.end / STEP;
            // In memory: tiles of outputs, in each the steps of depth.
            let of_steps = |pieces: &[_]| -> Vec<pack::Piece> {
                let each = pieces.len() / outputs.div_ceil(TILE) / (depth / STEP);
                let tiles = pieces.chunks(each.max(1) * depth / STEP);
                tiles.flat_map(|tile| tile[each * steps.start..each * steps.end].to_vec()).collect()
            };
            assert_eq!(part.codes, of_steps(&whole.codes), "{weights:?}");
            assert_eq!(part.scales, of_steps(&whole.scales), "{weights:?}");
            assert_eq!(part.column_scales, whole.column_scales, "{weights:?}");
        }
    }

    /// What threads pack of a matrix is, one after the other, what one packs of all of it.
    #[test]
    fn parts_are_the_whole() {
        let (outputs, depth) = (260, 96);
        let values = Random::new(5).normals(outputs * depth);
        for weights in [Weights::Four { group: 32 }, Weights::Int8Groups, Weights::Int8Channels, Weights::E4m3] {
            let whole = pack(&values, depth, &(0..depth), weights).unwrap();
            for tiles in [1, 2, 3, 8] {
                let parts =
                    values.chunks(tiles * TILE * depth).map(|part| pack(part, depth, &(0..depth), weights).unwrap());
                let mut joined = Packed { codes: vec![], scales: vec![], column_scales: vec![], ..whole.clone() };
                for part in parts {
                    joined.codes.extend(part.codes);
                    joined.scales.extend(part.scales);
                    joined.column_scales.extend(part.column_scales);
                }
                assert_eq!(joined, whole, "{weights:?} by {tiles} tiles");
            }
        }
    }
}
