//! What this machine can do at most: reading memory, and multiplying in registers.

use crate::Timer;
use std::hint::black_box;
use weft_kernels::WeightFormat;

/// Bytes read per thread: more than any last-level cache share.
const READ_BYTES: usize = 192 << 20;
const ROUNDS: usize = 2_000_000;

pub(crate) struct Ceiling {
    pub(crate) gb_s: f64,
    pub(crate) gflop_s: f64,
}

impl Ceiling {
    pub(crate) fn measure(timer: Timer, format: WeightFormat, isa: &str) -> Self {
        let threads = timer.threads;
        let buffers: Vec<Vec<u64>> = (0..threads).map(|i| vec![i as u64 + 1; READ_BYTES / 8]).collect();
        let read = timer.fastest(|| {
            on_all(threads, &|i| {
                black_box(read(&buffers[i]));
            });
        });
        let flop = multiply(0, format, isa);
        let multiplied = timer.fastest(|| {
            on_all(threads, &|_| {
                multiply(ROUNDS, format, isa);
            });
        });
        Self {
            gb_s: (threads * READ_BYTES) as f64 / read.as_secs_f64() / 1e9,
            gflop_s: (threads * ROUNDS * flop) as f64 / multiplied.as_secs_f64() / 1e9,
        }
    }
}

/// Runs `body` in this thread and `threads - 1` others.
fn on_all(threads: usize, body: &(dyn Fn(usize) + Sync)) {
    std::thread::scope(|scope| {
        for i in 1..threads {
            scope.spawn(move || body(i));
        }
        body(0);
    });
}

/// Eight streams, as a tile of panels has.
fn read(buffer: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    let part = buffer.len() / 8;
    for i in (0..part).step_by(8) {
        for (stream, sum) in sums.iter_mut().enumerate() {
            *sum ^= buffer[stream * part + i];
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

/// Runs `rounds` of independent multiply-adds; returns the floating point operations of one round.
fn multiply(rounds: usize, format: WeightFormat, isa: &str) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the kernels chose this instruction set because the processor has it.
        unsafe {
            match (isa, format) {
                ("avx512-bf16", WeightFormat::Bf16) => return x86::bf16(rounds),
                ("avx512-bf16" | "avx512-vnni", WeightFormat::Int8 | WeightFormat::Q4) => return x86::vnni(rounds),
                ("avx2" | "avx512", WeightFormat::Int8) => return x86::bytes(rounds),
                ("avx2" | "avx512", WeightFormat::Q4) => return x86::half_bytes(rounds),
                ("avx512" | "avx512-bf16" | "avx512-vnni", _) => return x86::avx512(rounds),
                ("avx2", _) => return x86::avx2(rounds),
                _ => {}
            }
        }
    }
    let _ = (format, isa);
    let mut sums = [1.0f32; 64];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * 0.999 + 0.001;
        }
    }
    black_box(sums);
    2 * 64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(crate) unsafe fn bf16(rounds: usize) -> usize {
        let mut sums = [_mm512_setzero_ps(); 16];
        // SAFETY: 64 plain bytes.
        let x: __m512bh = unsafe { std::mem::transmute(black_box([0x3f80_3f80u32; 16])) };
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
        16 * 64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(crate) unsafe fn vnni(rounds: usize) -> usize {
        let mut sums = [_mm512_setzero_si512(); 16];
        let x = _mm512_set1_epi32(black_box(0x0101_0101));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
        16 * 128
    }

    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn avx512(rounds: usize) -> usize {
        let mut sums = [_mm512_setzero_ps(); 16];
        let x = _mm512_set1_ps(black_box(0.5));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, x, x);
            }
        }
        black_box(sums);
        16 * 32
    }

    /// Defines products of bytes without a dot product of their own. Assembler: the compiler would see that all are the same.
    macro_rules! products {
        ($name:ident, $($step:literal),+) => {
            #[target_feature(enable = "avx2")]
            pub(crate) unsafe fn $name(rounds: usize) -> usize {
                let mut sums = [_mm256_setzero_si256(); 12];
                let x = _mm256_set1_epi8(black_box(1));
                for _ in 0..rounds {
                    for sum in &mut sums {
                        // SAFETY: register arithmetic.
                        unsafe {
                            std::arch::asm!($($step),+, x = in(ymm_reg) x, sum = inout(ymm_reg) *sum, pairs = out(ymm_reg) _,
                                options(nomem, nostack));
                        }
                    }
                }
                black_box(sums);
                12 * 64
            }
        };
    }
    // Two products of 8 bits fill 16, so each is widened; sixteen of 4 bits fit, so they are added first.
    products!(bytes, "vpmaddubsw {pairs}, {x}, {x}", "vpmaddwd {pairs}, {pairs}, {x}", "vpaddd {sum}, {sum}, {pairs}");
    products!(half_bytes, "vpmaddubsw {pairs}, {x}, {x}", "vpaddw {sum}, {sum}, {pairs}");

    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn avx2(rounds: usize) -> usize {
        let mut sums = [_mm256_setzero_ps(); 12];
        let x = _mm256_set1_ps(black_box(0.5));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, x, x);
            }
        }
        black_box(sums);
        12 * 16
    }
}
