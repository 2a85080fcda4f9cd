//! What a worker computes on, and in which formats: settings in words become the engine's.

use weft_engine::device::{Format, Precision};
use weft_engine::{AdapterDtype, Dtype};
use weft_kernels::Isa;

use crate::settings::Settings;

/// Checked choices of `device`, `dtype`, `adapter_dtype` and `isa`.
#[derive(Clone, Debug)]
pub(crate) enum Compute {
    /// The processor's cores.
    Processor { isa: Isa, dtype: Dtype, adapters: AdapterDtype },
    /// A device with memory of its own.
    Device { which: Which, precision: Precision, adapters: Format },
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// By CUDA's driver, counted from zero.
    Cuda(usize),
    /// The shim on the processor, which tests have; fails at that operation, 0: never.
    Shim(u64),
}

impl Compute {
    /// All problems at once go to `problems`; what comes back then is of no use.
    pub(crate) fn check(settings: &Settings, problems: &mut Vec<String>) -> Self {
        let which = which(&settings.device).unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        let isa = isa(&settings.isa).unwrap_or_else(|problem| {
            problems.push(problem);
            Isa::Portable
        });
        let checked = match which {
            None => on_processor(settings, isa),
            Some(which) => on_device(settings, which),
        };
        checked.unwrap_or_else(|problem| {
            problems.extend(problem);
            Self::Processor { isa, dtype: Dtype::F32, adapters: AdapterDtype::F32 }
        })
    }

    /// Of base and KV, as it is written in settings and on the wire.
    pub(crate) fn dtype(&self) -> &'static str {
        match self {
            Self::Processor { dtype, .. } => dtype.as_str(),
            Self::Device { precision, .. } => precision.as_str(),
        }
    }

    /// Bytes of an adapter's element in a slot.
    pub(crate) fn adapter_element_bytes(&self) -> u32 {
        match self {
            Self::Processor { adapters, .. } => adapters.element_bytes(),
            Self::Device { adapters, .. } => adapters.value_bytes() as u32,
        }
    }
}

/// None: the processor.
fn which(device: &str) -> Result<Option<Which>, String> {
    let (kind, number) = device.split_once(':').unwrap_or((device, "0"));
    let number = number.parse::<usize>();
    match (kind, number) {
        ("cpu", Ok(0)) if device == "cpu" => Ok(None),
        ("cuda", Ok(number)) if cfg!(feature = "cuda") => Ok(Some(Which::Cuda(number))),
        ("cuda", Ok(_)) => Err(format!("device is {device:?}, this build has no CUDA: build with --features cuda")),
        ("shim", Ok(fails_at)) if cfg!(feature = "shim") => Ok(Some(Which::Shim(fails_at as u64))),
        _ => Err(format!("device is {device:?}, allowed is cpu, cuda or cuda:N")),
    }
}

fn isa(name: &str) -> Result<Isa, String> {
    if name == "auto" {
        return Ok(Isa::detect());
    }
    let isa: Isa = name.parse().map_err(|error: weft_kernels::ParseIsaError| error.to_string())?;
    if isa.is_available() { Ok(isa) } else { Err(format!("isa is {name}, this processor has no such instructions")) }
}

fn on_processor(settings: &Settings, isa: Isa) -> Result<Compute, Vec<String>> {
    let dtype = match settings.dtype.as_str() {
        "auto" => Ok(auto(isa)),
        "f32" | "float32" => Ok(Dtype::F32),
        "bf16" | "bfloat16" => Ok(Dtype::Bf16),
        "int8" => Ok(Dtype::Int8),
        "q4" => Ok(Dtype::Q4),
        other => Err(format!("dtype is {other:?}, allowed is auto, f32, bf16, int8 or q4")),
    };
    let adapters = match settings.adapter_dtype.as_str() {
        "auto" => Ok(dtype.as_ref().map_or(AdapterDtype::F32, |dtype| dtype.adapters())),
        "f32" | "float32" => Ok(AdapterDtype::F32),
        "bf16" | "bfloat16" => Ok(AdapterDtype::Bf16),
        "int8" => Ok(AdapterDtype::Int8),
        other => Err(format!("adapter_dtype is {other:?}, allowed is auto, f32, bf16 or int8")),
    };
    let (dtype, adapters) = both(dtype, adapters)?;
    Ok(Compute::Processor { isa, dtype, adapters })
}

fn on_device(settings: &Settings, which: Which) -> Result<Compute, Vec<String>> {
    let precision = match settings.dtype.as_str() {
        "auto" | "bf16" | "bfloat16" => Ok(Precision::Bf16),
        "f32" | "float32" => Ok(Precision::F32),
        other => Err(format!("dtype is {other:?}, allowed on a device is auto, f32 or bf16")),
    };
    let adapters = match settings.adapter_dtype.as_str() {
        "auto" if precision == Ok(Precision::F32) => Ok(Format::F32),
        "auto" | "bf16" | "bfloat16" => Ok(Format::Bf16),
        "f32" | "float32" if precision == Ok(Precision::F32) => Ok(Format::F32),
        "int8" => Ok(Format::Int8),
        "fp8" => Ok(Format::Fp8),
        other => Err(format!(
            "adapter_dtype is {other:?}, allowed on a device is auto, bf16, int8 or fp8, and f32 beside a base in f32"
        )),
    };
    let (precision, adapters) = both(precision, adapters)?;
    Ok(Compute::Device { which, precision, adapters })
}

fn both<A, B>(a: Result<A, String>, b: Result<B, String>) -> Result<(A, B), Vec<String>> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (a, b) => Err([a.err(), b.err()].into_iter().flatten().collect()),
    }
}

/// The fastest that the set's kernels have for decode and prefill together (docs/performance.md has the figures): integers where there
/// are dot products for them or no better ones for bf16; f32 where everything is slow.
fn auto(isa: Isa) -> Dtype {
    match isa {
        Isa::Avx2 | Isa::Avx512Vnni | Isa::Avx512Bf16 => Dtype::Int8,
        Isa::Avx512 | Isa::Neon => Dtype::Bf16,
        Isa::Portable => Dtype::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(device: &str, dtype: &str, adapter_dtype: &str) -> Result<Compute, Vec<String>> {
        let [device, dtype, adapter_dtype] = [device, dtype, adapter_dtype].map(str::to_owned);
        let settings = Settings { device, dtype, adapter_dtype, ..Settings::default() };
        let mut problems = Vec::new();
        let compute = Compute::check(&settings, &mut problems);
        if problems.is_empty() { Ok(compute) } else { Err(problems) }
    }

    #[test]
    fn formats_of_a_device_are_its_own() {
        let on_device = check("shim", "auto", "auto");
        assert!(matches!(
            on_device,
            Ok(Compute::Device { which: Which::Shim(0), precision: Precision::Bf16, adapters: Format::Bf16 })
        ));
        assert_eq!(check("shim", "auto", "fp8").unwrap().adapter_element_bytes(), 1);
        assert_eq!(check("shim", "f32", "auto").unwrap().adapter_element_bytes(), 4);
        let both = check("shim", "q4", "f32").unwrap_err();
        assert!(both[0].starts_with("dtype is \"q4\"") && both[1].starts_with("adapter_dtype is \"f32\""), "{both:?}");
        assert!(check("cpu", "q4", "fp8").unwrap_err()[0].contains("allowed is auto, f32, bf16 or int8"));
    }

    #[test]
    fn a_device_is_named_with_its_number() {
        for odd in ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:0:0"] {
            let problem = check(odd, "auto", "auto").unwrap_err();
            assert_eq!(problem, [format!("device is {odd:?}, allowed is cpu, cuda or cuda:N")]);
        }
        match check("cuda:3", "auto", "auto") {
            Ok(compute) => assert!(matches!(compute, Compute::Device { which: Which::Cuda(3), .. })),
            Err(problem) => assert!(problem[0].contains("--features cuda"), "{problem:?}"),
        }
    }
}
