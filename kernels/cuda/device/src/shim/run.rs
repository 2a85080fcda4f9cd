//! Runs one job of the shim: holds it against all that ran before, then does it.

use super::Measured;
use super::queue::Job;
use super::shadow::{Now, Shadow};
use crate::driver::{Launch, Matmul, Operation, Touch, Type};
use crate::error::Error;
use half::{bf16, f16};
use std::ops::Range;
use weft_cuda_kernels::host::{self, Order};
use weft_cuda_kernels::within::{self, Touched};

/// What messages call a job.
pub(super) fn name(job: &Job) -> String {
    match job {
        Job::Operation(Operation::Launch(launch)) => launch.kernel.name.clone(),
        Job::Operation(Operation::Copy(copy)) => format!("{:?} of {} bytes", copy.direction, copy.bytes).to_lowercase(),
        Job::Operation(Operation::Fill { bytes, .. }) => format!("fill of {bytes} bytes"),
        Job::Operation(Operation::Matmul(matmul)) => {
            format!("matmul {} x {} x {}", matmul.rows, matmul.inputs, matmul.outputs)
        }
        Job::Exchange(exchange) => exchange.name(),
    }
}

/// `order`: three bits, see [`Order`].
pub(super) fn run(
    job: Job,
    now: Now<'_>,
    order: u32,
    shadow: &mut Shadow,
    measured: Option<&mut Vec<Measured>>,
) -> Result<(), Error> {
    let mut hold = |touches: &[Touch]| hold(touches, now, shadow);
    match job {
        Job::Operation(Operation::Launch(launch)) => self::launch(launch, now, order, shadow, measured),
        Job::Operation(Operation::Copy(copy)) => {
            let range = |at: u64| at..at + copy.bytes as u64;
            hold(&[whole(range(copy.from), false), whole(range(copy.to), true)])?;
            // SAFETY: the addresses are those of this many bytes of memory of this driver, apart from each other: the caller of `enqueue` said so.
            unsafe { std::ptr::copy_nonoverlapping(pointer(copy.from), pointer(copy.to), copy.bytes) };
            Ok(())
        }
        Job::Operation(Operation::Fill { to, bytes, byte }) => {
            hold(&[whole(to..to + bytes as u64, true)])?;
            // SAFETY: as above.
            unsafe { std::ptr::write_bytes(pointer(to), byte, bytes) };
            Ok(())
        }
        Job::Operation(Operation::Matmul(matmul)) => {
            hold(&matmul.touches())?;
            self::matmul(&matmul);
            Ok(())
        }
        Job::Exchange(exchange) => {
            hold(&exchange.touches())?;
            exchange.run(&now.label.to_string())
        }
    }
}

pub(super) fn whole(at: Range<u64>, writes: bool) -> Touch {
    Touch { at, writes, parts: false }
}

pub(super) fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// Reads first: what an operation reads and writes itself is in order.
fn hold(touches: &[Touch], now: Now<'_>, shadow: &mut Shadow) -> Result<(), Error> {
    for writes in [false, true] {
        for touch in touches.iter().filter(|touch| touch.writes == writes && !touch.parts) {
            shadow.access(touch.at.clone(), writes, now)?;
        }
    }
    Ok(())
}

fn launch(
    mut launch: Launch,
    now: Now<'_>,
    order: u32,
    shadow: &mut Shadow,
    measured: Option<&mut Vec<Measured>>,
) -> Result<(), Error> {
    hold(&launch.touches, now, shadow)?;
    let bound = |touch: &Touch| {
        let is_kept = touch.parts || measured.is_some();
        within::Range::new(touch.at.start as usize..touch.at.end as usize, touch.writes, is_kept)
    };
    // Nothing at all is a range too: without any there would be no check.
    let ranges: Vec<_> = launch.touches.iter().map(bound).collect();
    let run = host::Launch {
        kernel: &launch.kernel.name,
        grid: launch.grid,
        threads: launch.threads,
        shared_bytes: launch.shared_bytes,
        order: Order {
            warps_backwards: order & 1 != 0,
            lanes_backwards: order & 2 != 0,
            blocks_backwards: order & 4 != 0,
        },
    };
    // SAFETY: there are as many values as parameters, of their sizes and kinds; the kernel touches memory of this driver alone, which the
    // ranges see to, or else the caller of `enqueue` vouched for.
    let (result, touched) = unsafe { run.run_within(&mut launch.values.pointers(), &ranges) };
    result.map_err(|error| Error::Kernel { operation: now.label.to_string(), reason: error.to_string() })?;
    for writes in [false, true] {
        for range in ranges_of(&touched, writes) {
            shadow.access(range, writes, now)?;
        }
    }
    if let Some(measured) = measured {
        let bytes = |of: fn(&Touched) -> u64| touched.iter().map(|line| u64::from(of(line).count_ones())).sum();
        let kernel = launch.kernel.name.clone();
        let (read_bytes, written_bytes) = (bytes(|line| line.read), bytes(|line| line.written));
        measured.push(Measured { kernel, read_bytes, written_bytes, touched });
    }
    Ok(())
}

/// The bytes that were read or written, neighbours together.
fn ranges_of(touched: &[Touched], writes: bool) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for line in touched {
        let bits = if writes { line.written } else { line.read };
        let mut at = 0;
        while at < 64 {
            let zeros = (bits >> at).trailing_zeros().min(64 - at);
            let ones = (bits >> at >> zeros.min(63)).trailing_ones().min(64 - at - zeros);
            if ones > 0 {
                let begin = (line.at as u64) + u64::from(at + zeros);
                match ranges.last_mut().filter(|last| last.end == begin) {
                    Some(last) => last.end += u64::from(ones),
                    None => ranges.push(begin..begin + u64::from(ones)),
                }
            }
            at += zeros + ones;
        }
    }
    ranges
}

/// Reads `count` numbers.
///
/// # Safety
///
/// They are there.
pub(super) unsafe fn numbers(at: u64, count: usize, of: Type) -> Vec<f32> {
    let from = pointer(at);
    let number = |index: usize| {
        // SAFETY: the caller's promise, for each of them.
        unsafe {
            match of {
                Type::F32 => from.cast::<f32>().add(index).read_unaligned(),
                Type::Bf16 => from.cast::<bf16>().add(index).read_unaligned().to_f32(),
                Type::F16 => from.cast::<f16>().add(index).read_unaligned().to_f32(),
            }
        }
    };
    (0..count).map(number).collect()
}

/// Writes numbers, rounded to nearest even.
///
/// # Safety
///
/// There is room for them.
pub(super) unsafe fn put_numbers(at: u64, numbers: &[f32], of: Type) {
    let to = pointer(at);
    for (index, number) in numbers.iter().enumerate() {
        // SAFETY: the caller's promise, for each of them.
        unsafe {
            match of {
                Type::F32 => to.cast::<f32>().add(index).write_unaligned(*number),
                Type::Bf16 => to.cast::<bf16>().add(index).write_unaligned(bf16::from_f32(*number)),
                Type::F16 => to.cast::<f16>().add(index).write_unaligned(f16::from_f32(*number)),
            }
        }
    }
}

/// Sums in f32, from the first input to the last.
fn matmul(matmul: &Matmul) {
    let Matmul { rows, inputs, outputs, of, out_of, .. } = *matmul;
    let row_of = |at: u64, row: usize, stride: usize, of: Type| at + (row * stride * of.bytes()) as u64;
    // SAFETY: the matrices have these shapes: the caller of `enqueue` said so.
    let w = unsafe { numbers(matmul.w, outputs * inputs, of) };
    for row in 0..rows {
        let at = row_of(matmul.out, row, matmul.out_stride, out_of);
        // SAFETY: as above.
        let x = unsafe { numbers(row_of(matmul.x, row, matmul.x_stride, of), inputs, of) };
        let mut out = if matmul.adds {
            // SAFETY: as above.
            unsafe { numbers(at, outputs, out_of) }
        } else {
            vec![0.0; outputs]
        };
        for (out, w) in out.iter_mut().zip(w.chunks(inputs)) {
            *out += x.iter().zip(w).fold(0.0, |sum: f32, (x, w)| sum + x * w);
        }
        // SAFETY: as above.
        unsafe { put_numbers(at, &out, out_of) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_bits_become_ranges() {
        let line = |at, read, written| Touched { at, read, written };
        let touched = [line(64, u64::MAX, 1 << 63), line(128, 0b1101, 0), line(256, 1 << 63, 0b10)];
        assert_eq!(ranges_of(&touched, false), [64..129, 130..132, 319..320]);
        assert_eq!(ranges_of(&touched, true), [127..128, 257..258]);
    }
}
