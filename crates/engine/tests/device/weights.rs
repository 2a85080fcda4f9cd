//! The base's linears as codes.

use super::rounded::{Codes, Rounding};
use super::*;
use safetensors::tensor::{Dtype, TensorView};
use weft_kernels::conformance::Random;

/// A format on a device, and what it should compute.
#[derive(Clone, Copy)]
struct Side {
    weights: WeightFormat,
    precision: Precision,
    capability: (i32, i32),
    rounding: Rounding,
    /// From logits in f32, of models whose weights were drawn at random: no loss that training has made small.
    loose: f64,
}

const INT8: Option<Codes> = Some(Codes::Int8(Some(32)));

fn sides() -> [Side; 6] {
    let int8_rows = Some(Codes::Int8(None));
    let e4m3 = Some(Codes::E4m3);
    let side = |weights, of_weights, inputs, loose| Side {
        weights,
        precision: Precision::Bf16,
        capability: (8, 0),
        rounding: Rounding { weights: of_weights, inputs, ..Rounding::BF16 },
        loose,
    };
    let int8 = side(WeightFormat::Int8, [INT8; 2], [INT8; 2], 0.06);
    let fp8 = side(WeightFormat::Fp8, [e4m3; 2], [None; 2], 0.2);
    [
        int8,
        Side { precision: Precision::F32, rounding: Rounding { in_bf16: false, ..int8.rounding }, ..int8 },
        side(WeightFormat::Int8Channels, [int8_rows; 2], [int8_rows; 2], 0.08),
        side(WeightFormat::Four, [Some(Codes::Four), INT8], [None, INT8], 0.5),
        fp8,
        Side { capability: (8, 9), rounding: Rounding { inputs: [e4m3; 2], ..fp8.rounding }, loose: 0.3, ..fp8 },
    ]
}

impl Side {
    fn options(&self, seed: u64) -> DeviceOptions {
        let device = device_of(shim::Options { seed, capability: self.capability, ..shim::Options::default() });
        let adapters = if self.precision == Precision::F32 { Format::F32 } else { Format::Bf16 };
        DeviceOptions { device, precision: self.precision, adapters, weights: self.weights, ..options(seed) }
    }

    fn name(&self) -> String {
        format!("{:?} in {:?} on {:?}", self.weights, self.precision, self.capability)
    }

    /// Numbers rounded alike, but for the weights of values in attention on tensor cores, and added up in another order. In f32 few inputs lie so near to the middle of two codes that they go to the other.
    fn same_rounding(&self) -> f64 {
        match self.precision {
            Precision::F32 => 3e-3,
            // Activations in bf16 that were added up in another order are a percent apart here, a fifth of what lies between two codes of e4m3: as
            // many inputs go to another one.
            Precision::Bf16 if self.rounding.inputs[0] == Some(Codes::E4m3) => 0.1,
            Precision::Bf16 => 0.04,
        }
    }

    /// Logits of a prompt: by the engine, and by the reference that rounds alike.
    fn both(&self, model: &BaseModel, case: &Case) -> [Vec<f32>; 2] {
        let mut engine = DeviceEngine::new(model, self.options(3)).unwrap();
        let slot = super::install(&mut engine, case, model);
        let batch = |slot| StepBatch { seqs: vec![prefill(&case.prompt, slot, 2, LogitsWanted::All)] };
        let found = engine.step(&batch(slot)).unwrap().seqs.remove(0).logits;
        let mut reference = rounded::engine(model, self.rounding, 16);
        let slot = common::install(&mut reference, case, &model.config);
        [found, reference.step(&batch(slot)).unwrap().seqs.remove(0).logits]
    }
}

#[test]
fn logits_are_those_of_weights_and_inputs_that_were_rounded_alike() {
    let (golden, expected) = (golden(), ExpectedLogits::load());
    for name in ["base/tiny/long", "all_linear", "base/tiny-linear-rope"] {
        let case = golden.case(name);
        let model = tiny(&case.model);
        for side in sides() {
            let [found, reference] = side.both(&model, case);
            let (same, loose) = (relative_error(&found, &reference), relative_error(&found, &expected.of(case)));
            println!("{name}, {}: {same:.5} from the same rounding, {loose:.4} from f32", side.name());
            assert!(same < side.same_rounding(), "{name}, {}: {same} from the same rounding", side.name());
            assert!(loose < side.loose, "{name}, {}: {loose} from f32", side.name());
        }
    }
}

/// A model whose `down_proj` has so many inputs that its products are cut: sums of several blocks, which another launch adds up.
fn deep() -> (tempfile::TempDir, BaseModel) {
    const INTERMEDIATE: usize = 1056;
    let (from, folder) = (golden_dir().join("tiny"), tempfile::tempdir().unwrap());
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let config = config.replace("\"intermediate_size\": 96", &format!("\"intermediate_size\": {INTERMEDIATE}"));
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    for entry in std::fs::read_dir(&from).unwrap().flatten() {
        let name = entry.file_name();
        if name != "config.json" && name != "model.safetensors" {
            std::fs::copy(entry.path(), folder.path().join(name)).unwrap();
        }
    }
    let stored = std::fs::read(from.join("model.safetensors")).unwrap();
    let mut random = Random::new(9);
    let mut tensors = Vec::new();
    let mut found = safetensors::SafeTensors::deserialize(&stored).unwrap().tensors();
    // They come in any order, and each is to have the same numbers in every run.
    found.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, tensor) in found {
        if name.contains(".mlp.") {
            let shape: Vec<usize> =
                tensor.shape().iter().map(|&size| if size == 96 { INTERMEDIATE } else { size }).collect();
            let inputs = shape[1] as f32;
            let values = random.normals(shape.iter().product());
            let bytes = values.iter().flat_map(|value| (value / inputs.sqrt()).to_le_bytes()).collect();
            tensors.push((name, Dtype::F32, shape, bytes));
        } else {
            tensors.push((name, tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes): &(String, Dtype, Vec<usize>, Vec<u8>)| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        })
        .collect::<Vec<_>>();
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let model = common::open(folder.path());
    (folder, model)
}

#[test]
fn sums_that_were_cut_are_added_up() {
    let golden = golden();
    let (_folder, model) = deep();
    let case = golden.case("base/tiny");
    for side in sides() {
        let [found, reference] = side.both(&model, case);
        let same = relative_error(&found, &reference);
        println!("{}: {same:.5} from the same rounding", side.name());
        assert!(same < side.same_rounding(), "{}: {same} from the same rounding", side.name());

        let options = side.options(4);
        let device = options.device.clone();
        let mut with = DeviceEngine::new(&model, options).unwrap();
        let mut without = DeviceEngine::new(&model, DeviceOptions { graphs: false, ..side.options(5) }).unwrap();
        let seqs = [(5, 0, None), (9, 0, None), (11, 0, None)];
        let launched = decode(&mut with, &seqs);
        device.start_records();
        assert_eq!(decode(&mut with, &seqs), launched, "{}: replayed", side.name());
        let records = device.stop_records();
        assert_eq!(decode(&mut without, &seqs), launched, "{}: by launches", side.name());
        let count = |begin: &str| {
            let is_one = |kind: &Kind| matches!(kind, Kind::Launch { kernel, .. } if kernel.starts_with(begin));
            records.iter().filter(|record| record.in_graph && is_one(&record.kind)).count()
        };
        let products = 4 * model.config.layers + 1;
        let codes_of_inputs = match side.rounding.inputs {
            [Some(_), _] => products,
            [None, Some(_)] => 1,
            [None, None] => 0,
        };
        assert_eq!(count("weft_gemm_finish"), model.config.layers, "{}", side.name());
        assert_eq!(count("weft_gemm"), products + model.config.layers, "{}", side.name());
        assert_eq!(count("weft_quantise"), codes_of_inputs, "{}", side.name());
        assert!(!records.iter().any(|record| matches!(record.kind, Kind::Matmul { .. })));
    }
}

/// Adapters of other ranks in every row, none in some; and no product has other bits because of what shares the step.
#[test]
fn graphs_give_the_bits_of_launches_and_rows_those_that_they_have_alone() {
    let golden = golden();
    let model = tiny("tiny");
    for side in sides() {
        let options = |graphs| DeviceOptions { graphs, batch_invariant: true, ..side.options(u64::from(graphs)) };
        let mut sides = [true, false].map(|graphs| DeviceEngine::new(&model, options(graphs)).unwrap());
        let slots = ["rank4", "rank64", "all_linear"].map(|name| {
            let [with, without] = &mut sides;
            [with, without].map(|engine| super::install(engine, golden.case(name), &model))
        });
        let rows = |turn: usize, of: usize| -> Vec<(u32, usize, Option<SlotId>)> {
            let slot = |row: usize| slots.get((row + turn) % 4).and_then(|slot| slot[of]);
            (0..5).map(|row| ((row * 31 + turn * 7) as u32, 0, slot(row))).collect()
        };
        for turn in 0..3 {
            let [with, without] = &mut sides;
            let (together, launched) = (decode(with, &rows(turn, 0)), decode(without, &rows(turn, 1)));
            assert_eq!(together, launched, "{}, turn {turn}", side.name());
            for (row, together) in rows(turn, 0).into_iter().zip(&together) {
                assert_eq!(&decode(with, &[row])[0], together, "{}, turn {turn}: {row:?} alone", side.name());
            }
        }
        assert!(sides[0].graphs() > 0 && sides[1].graphs() == 0);
    }
}

#[test]
fn weights_take_the_bytes_of_their_codes() {
    let model = tiny("tiny");
    // [outputs, inputs] of the sites of a layer; outputs are filled up to 32 in memory.
    let of_layers: usize =
        [[128, 64], [64, 64], [192, 64], [64, 96]].map(|[outputs, inputs]| outputs * inputs).iter().sum();
    let columns: usize = [128, 64, 192, 64].iter().sum();
    let (layers, head) = (model.config.layers, 288 * 64);
    let int8 = |weights: usize| weights + weights / 32 * 4;
    let expected = |side: &Side| match side.weights {
        WeightFormat::Precision => layers * of_layers * 2 + 260 * 64 * 2,
        WeightFormat::Int8 => int8(layers * of_layers + head),
        WeightFormat::Int8Channels | WeightFormat::Fp8 => layers * (of_layers + 4 * columns) + head + 4 * 264,
        WeightFormat::Four => layers * (of_layers / 2 + of_layers / 32 * 4) + int8(head),
    };
    let plain = Side { weights: WeightFormat::Precision, ..sides()[0] };
    for side in sides().into_iter().chain([plain]) {
        let engine = DeviceEngine::new(&model, side.options(0)).unwrap();
        assert_eq!(engine.weight_bytes(), expected(&side) as u64, "{}", side.name());
        let meaningless = DeviceEngine::without_meaning(&model.config, side.options(1)).unwrap();
        assert_eq!(meaningless.weight_bytes(), engine.weight_bytes(), "{}", side.name());
        assert_eq!(meaningless.product_workspace_bytes(), engine.product_workspace_bytes(), "{}", side.name());
        // Of 96 rows: codes and scales of as many inputs as `down_proj` has. Nothing is cut.
        let workspace = match side.rounding.inputs {
            _ if side.weights == WeightFormat::Precision => 0,
            [Some(Codes::Int8(Some(32))), _] => 96 * 96 + 3 * 96 * 4,
            [None, Some(_)] => 96 * 64 + 2 * 96 * 4,
            [Some(_), _] => 96 * 96 + 96 * 4,
            [None, None] => 0,
        };
        assert_eq!(engine.product_workspace_bytes(), workspace, "{}", side.name());
        let mut meaningless = meaningless;
        assert!(decode(&mut meaningless, &[(1, 0, None)])[0].iter().all(|logit| logit.is_finite()), "{}", side.name());
    }
}

#[test]
fn shapes_without_a_product_are_refused_at_load() {
    let untied = tiny("tiny-untied");
    for side in sides() {
        let error = DeviceEngine::new(&untied, side.options(0)).err().unwrap();
        assert!(matches!(error, weft_engine::Error::Products(_)), "{}: {error}", side.name());
        assert_eq!(error.kind(), weft_fault::Kind::Invalid);
        let meaningless = DeviceEngine::without_meaning(&untied.config, side.options(0)).err().unwrap();
        assert_eq!(meaningless.to_string(), error.to_string());
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "gemm: depth is 48, must be a multiple of 32 up to 1048576");
    }
    for weights in [WeightFormat::Four, WeightFormat::Fp8] {
        let error = DeviceEngine::new(&tiny("tiny"), DeviceOptions { weights, ..options(0) }).err().unwrap();
        assert!(error.to_string().starts_with("weights is "), "{error}");
    }
}
