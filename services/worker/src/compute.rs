//! What a worker computes on, and in which formats: settings in words become the engine's.

use weft_base_model::BaseModel;
use weft_engine::device::{Format, KvFormat, Precision, WeightFormat};
use weft_engine::{AdapterDtype, Dtype};
use weft_kernels::Isa;

use crate::settings::Settings;

/// Checked choices of `device`, `dtype`, `kv_dtype`, `adapter_dtype` and `isa`.
#[derive(Clone, Debug)]
pub(crate) enum Compute {
    /// The processor's cores.
    Processor { isa: Isa, dtype: Dtype, adapters: AdapterDtype },
    /// A device with memory of its own.
    Device { which: Which, formats: Formats },
}

/// What things are stored in on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Formats {
    pub(crate) precision: Precision,
    pub(crate) weights: WeightFormat,
    pub(crate) kv: KvFormat,
    pub(crate) adapters: Format,
}

/// A device, or several that share the base, in the order of their ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// By CUDA's driver, counted from zero.
    Cuda(Vec<usize>),
    /// The shim on the processor, which tests have: so many of it; the last one fails at that operation, 0: never.
    Shim { count: usize, fails_at: u64 },
}

impl Which {
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Cuda(numbers) => numbers.len(),
            Self::Shim { count, .. } => *count,
        }
    }
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

    /// What `dtype = auto` is beside this base: where its linears are `Q4_1` in the file and `q4` gives those of the first layer
    /// back exactly, as far as its first rows show, `q4`, which is at least as fast as `int8`. Costs a read of that layer.
    pub(crate) fn beside(&self, base: &BaseModel, settings: &Settings) -> Self {
        match self {
            &Self::Processor { isa, dtype: Dtype::Int8, adapters }
                if settings.dtype == "auto" && four_bits_lose_nothing(base) =>
            {
                Self::Processor { isa, dtype: Dtype::Q4, adapters }
            }
            _ => self.clone(),
        }
    }

    /// Of the base, as it is written in settings and on the wire.
    pub(crate) fn dtype(&self) -> &'static str {
        match self {
            Self::Processor { dtype, .. } => dtype.as_str(),
            Self::Device { formats, .. } => match formats.weights {
                WeightFormat::Precision => formats.precision.as_str(),
                WeightFormat::Int8 | WeightFormat::Int8Channels => "int8",
                WeightFormat::Four => "q4",
                WeightFormat::Fp8 => "fp8",
            },
        }
    }

    /// What keys and values are told apart by: the base's, or their own.
    pub(crate) fn kv_dtype(&self) -> &'static str {
        match self {
            Self::Device { formats: Formats { kv: KvFormat::Fp8, .. }, .. } => "fp8",
            _ => self.dtype(),
        }
    }

    /// Bytes of an adapter's element in a slot.
    pub(crate) fn adapter_element_bytes(&self) -> u32 {
        match self {
            Self::Processor { adapters, .. } => adapters.element_bytes(),
            Self::Device { formats, .. } => formats.adapters.value_bytes() as u32,
        }
    }
}

/// Rows of a matrix that tell how it was quantised: some hundred to some thousand blocks.
const ROWS_LOOKED_AT: usize = 64;

/// Whether the file stores all matrices of all layers as `Q4_1`, and the first rows of those of the first layer come back from 4 bits as
/// they are: minima and scales are found again where a block of the file uses its first and its last code, which depends on who
/// quantised it.
fn four_bits_lose_nothing(base: &BaseModel) -> bool {
    let weights = &base.weights;
    let matrix = |name: &str| weights.shape(name).filter(|shape| name.contains(".layers.") && shape.len() == 2);
    let mut linears = weights.names().filter(|name| matrix(name).is_some()).peekable();
    let comes_back = |name: &str| {
        let (Some(&[outputs, inputs]), Ok(values)) = (matrix(name), weights.load_f32(name)) else { return false };
        let rows = outputs.min(ROWS_LOOKED_AT);
        let values = &values[..rows * inputs];
        let packed = weft_kernels::reference().pack_linear(values, rows, inputs, weft_kernels::WeightFormat::Q4);
        let mut row = vec![0.0; inputs];
        let is_row = |(index, values): (usize, &[f32])| packed.read_row(index, 0, &mut row) && row == values;
        values.chunks_exact(inputs.max(1)).enumerate().all(is_row)
    };
    linears.peek().is_some()
        && linears
            .all(|name| weights.stored_as(name) == Some("Q4_1") && (!name.contains(".layers.0.") || comes_back(name)))
}

/// None: the processor.
fn which(device: &str) -> Result<Option<Which>, String> {
    let (kind, of_kind) = device.split_once(':').map_or((device, None), |(kind, of_kind)| (kind, Some(of_kind)));
    let numbers = of_kind.unwrap_or("0").split(',').map(str::parse::<usize>).collect::<Result<Vec<_>, _>>();
    let shims = kind.strip_prefix("shim").map(|count| count.strip_prefix('*').unwrap_or("1").parse::<usize>());
    match (kind, shims, numbers.as_deref()) {
        ("cpu", ..) if of_kind.is_none() => Ok(None),
        ("cuda", _, Ok(numbers)) if (1..numbers.len()).any(|at| numbers[..at].contains(&numbers[at])) => {
            Err(format!("device is {device:?}, which names a GPU twice"))
        }
        ("cuda", _, Ok(numbers)) if cfg!(feature = "cuda") => Ok(Some(Which::Cuda(numbers.to_vec()))),
        ("cuda", _, Ok(_)) => Err(format!("device is {device:?}, this build has no CUDA: build with --features cuda")),
        (_, Some(Ok(count @ 1..)), Ok(&[fails_at])) if cfg!(feature = "shim") => {
            Ok(Some(Which::Shim { count, fails_at: fails_at as u64 }))
        }
        _ => Err(format!("device is {device:?}, allowed is cpu, cuda, cuda:N or cuda:N,N for several")),
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
    let kv = match settings.kv_dtype.as_str() {
        "auto" => Ok(()),
        other => Err(format!("kv_dtype is {other:?}, allowed on a processor is auto")),
    };
    let ((dtype, adapters), ()) = both(both(dtype.map_err(one), adapters.map_err(one)), kv.map_err(one))?;
    Ok(Compute::Processor { isa, dtype, adapters })
}

fn on_device(settings: &Settings, which: Which) -> Result<Compute, Vec<String>> {
    let base = match settings.dtype.as_str() {
        "auto" | "bf16" | "bfloat16" => Ok((Precision::Bf16, WeightFormat::Precision)),
        "f32" | "float32" => Ok((Precision::F32, WeightFormat::Precision)),
        "int8" => Ok((Precision::Bf16, WeightFormat::Int8)),
        "q4" => Ok((Precision::Bf16, WeightFormat::Four)),
        "fp8" => Ok((Precision::Bf16, WeightFormat::Fp8)),
        other => Err(format!("dtype is {other:?}, allowed on a device is auto, f32, bf16, int8, q4 or fp8")),
    };
    let is_f32 = matches!(base, Ok((Precision::F32, _)));
    let kv = match settings.kv_dtype.as_str() {
        "auto" => Ok(KvFormat::Precision),
        "fp8" if !is_f32 => Ok(KvFormat::Fp8),
        other => Err(format!("kv_dtype is {other:?}, allowed on a device is auto, and fp8 unless dtype is f32")),
    };
    let adapters = match settings.adapter_dtype.as_str() {
        "auto" if is_f32 => Ok(Format::F32),
        "auto" | "bf16" | "bfloat16" => Ok(Format::Bf16),
        "f32" | "float32" if is_f32 => Ok(Format::F32),
        "int8" => Ok(Format::Int8),
        "fp8" => Ok(Format::Fp8),
        other => Err(format!(
            "adapter_dtype is {other:?}, allowed on a device is auto, bf16, int8 or fp8, and f32 beside a base in f32"
        )),
    };
    let base = match base {
        // cuBLAS chooses by the number of rows.
        Ok((_, WeightFormat::Precision)) if settings.batch_invariant => Err(format!(
            "batch_invariant is true, which holds on a device for a dtype of int8, q4 or fp8: dtype is {:?}",
            settings.dtype
        )),
        // A sum of two has one order; NCCL's of more depends on how many rows there are.
        Ok(_) if settings.batch_invariant && which.count() > 2 => {
            Err(format!("batch_invariant is true, which holds for one device or two: device is {:?}", settings.device))
        }
        base => base,
    };
    let ((precision, weights), (kv, adapters)) = both(base.map_err(one), both(kv.map_err(one), adapters.map_err(one)))?;
    Ok(Compute::Device { which, formats: Formats { precision, weights, kv, adapters } })
}

/// All that is wrong with either.
fn both<A, B>(a: Result<A, Vec<String>>, b: Result<B, Vec<String>>) -> Result<(A, B), Vec<String>> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (a, b) => Err([a.err(), b.err()].into_iter().flatten().flatten().collect()),
    }
}

fn one(problem: String) -> Vec<String> {
    vec![problem]
}

/// The fastest that the set's kernels have for decode and prefill together of any base (docs/performance.md has the figures): integers
/// where there are dot products for them or no better ones for bf16; f32 where everything is slow. See also [`Compute::beside`].
fn auto(isa: Isa) -> Dtype {
    match isa {
        Isa::Avx2 | Isa::Avx512Vnni | Isa::Avx512Bf16 | Isa::NeonDot => Dtype::Int8,
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
        let formats = |dtype: &str, adapter_dtype: &str| match check("shim", dtype, adapter_dtype) {
            Ok(Compute::Device { which: Which::Shim { count: 1, fails_at: 0 }, formats }) => formats,
            other => panic!("{other:?}"),
        };
        let auto = formats("auto", "auto");
        assert_eq!((auto.precision, auto.weights), (Precision::Bf16, WeightFormat::Precision));
        assert_eq!((auto.kv, auto.adapters), (KvFormat::Precision, Format::Bf16));
        assert_eq!(formats("q4", "fp8").weights, WeightFormat::Four);
        for dtype in ["f32", "bf16", "int8", "q4", "fp8"] {
            assert_eq!(check("shim", dtype, "auto").unwrap().dtype(), dtype, "what is told is what was asked for");
        }
        assert_eq!(check("shim", "auto", "fp8").unwrap().adapter_element_bytes(), 1);
        assert_eq!(check("shim", "f32", "auto").unwrap().adapter_element_bytes(), 4);
        let both = check("shim", "q5", "f32").unwrap_err();
        assert!(both[0].starts_with("dtype is \"q5\"") && both[1].starts_with("adapter_dtype is \"f32\""), "{both:?}");
        assert!(check("cpu", "q4", "fp8").unwrap_err()[0].contains("allowed is auto, f32, bf16 or int8"));
    }

    #[test]
    fn keys_and_values_have_a_format_of_their_own_on_devices() {
        let check = |device: &str, dtype: &str, kv_dtype: &str| {
            let [device, dtype, kv_dtype] = [device, dtype, kv_dtype].map(str::to_owned);
            let mut problems = Vec::new();
            let settings = Settings { device, dtype, kv_dtype, ..Settings::default() };
            let compute = Compute::check(&settings, &mut problems);
            if problems.is_empty() { Ok(compute.kv_dtype()) } else { Err(problems) }
        };
        assert_eq!(check("shim", "q4", "fp8"), Ok("fp8"));
        assert_eq!(check("shim", "auto", "auto"), Ok("bf16"));
        assert!(check("shim", "f32", "fp8").unwrap_err()[0].contains("fp8 unless dtype is f32"));
        assert!(check("cpu", "f32", "fp8").unwrap_err()[0].contains("allowed on a processor is auto"));
    }

    #[test]
    fn nothing_is_promised_that_a_library_does_not_keep() {
        let problems = |device: &str, dtype: &str| {
            let [device, dtype] = [device, dtype].map(str::to_owned);
            let mut problems = Vec::new();
            Compute::check(&Settings { device, dtype, batch_invariant: true, ..Settings::default() }, &mut problems);
            problems
        };
        for dtype in ["auto", "f32", "bf16"] {
            assert!(problems("shim", dtype)[0].starts_with("batch_invariant is true"), "{dtype}");
            assert!(problems("cpu", dtype).is_empty());
        }
        for dtype in ["int8", "q4", "fp8"] {
            assert!(problems("shim", dtype).is_empty(), "{dtype}");
            assert!(problems("shim*2", dtype).is_empty(), "{dtype}");
            assert!(problems("shim*3", dtype)[0].contains("holds for one device or two"), "{dtype}");
        }
    }

    #[test]
    fn devices_are_named_with_their_numbers() {
        for odd in [
            "", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:0:0", "cuda:0,", "cuda*2", "shim*0", "shim*",
            "shim:1,2",
        ] {
            let problem = check(odd, "auto", "auto").unwrap_err();
            assert_eq!(problem, [format!("device is {odd:?}, allowed is cpu, cuda, cuda:N or cuda:N,N for several")]);
        }
        for (device, numbers) in [("cuda", vec![0]), ("cuda:3", vec![3]), ("cuda:2,0,1", vec![2, 0, 1])] {
            match check(device, "auto", "auto") {
                Ok(Compute::Device { which: Which::Cuda(found), .. }) => assert_eq!(found, numbers),
                Ok(other) => panic!("{other:?}"),
                Err(problem) => assert!(problem[0].contains("--features cuda"), "{problem:?}"),
            }
        }
        let twice = check("cuda:1,0,1", "auto", "auto").unwrap_err();
        assert_eq!(twice, ["device is \"cuda:1,0,1\", which names a GPU twice"]);
        match check("shim*2:7", "auto", "auto") {
            Ok(Compute::Device { which, .. }) => assert_eq!(which, Which::Shim { count: 2, fails_at: 7 }),
            other => panic!("{other:?}"),
        }
    }
}
