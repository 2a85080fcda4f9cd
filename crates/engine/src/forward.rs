//! The Llama forward pass, written once over candle tensors.

use crate::dora::ScaledRows;
use crate::ops::{Adapters, AddNorm, Attention, Embed, EmbedTied, Gather, Linear, Norm, SiluMul, Split};
use crate::plan::{Plan, Run};
use crate::shape::{Shape, Site};
use crate::weights::{Base, Layer};
use crate::workspace::{Activations, Workspace};
use candle_core::{Result, Tensor};
use std::cell::RefCell;
use weft_kernels::{Kernels, KvLayer, LoraSegment};

/// Buffers that a step uses and leaves behind for the next one.
pub(crate) struct Scratch {
    pub(crate) rows: Workspace,
    /// For the rows whose logits are wanted, where those are fewer.
    pub(crate) wanted: Workspace,
    pub(crate) split: RefCell<Split>,
}

/// What a step reads.
pub(crate) struct Model<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) base: &'a Base,
    pub(crate) kernels: &'a dyn Kernels,
}

impl Model<'_> {
    /// Runs the plan and writes `logits [wanted rows, vocabulary]`, if any row is wanted.
    pub(crate) fn forward(
        &self,
        plan: &Plan<'_>,
        kv: &mut [KvLayer],
        scratch: &mut Scratch,
        logits: Option<&Tensor>,
    ) -> Result<()> {
        let shape = self.shape;
        let x = scratch.rows.rows(plan.rows(), shape)?;
        match &self.base.embeddings {
            Some(table) => x.stream.inplace_op2(table, &Embed { tokens: &plan.tokens, hidden: shape.hidden })?,
            None => x.stream.inplace_op1(&EmbedTied { tokens: &plan.tokens, head: &self.base.lm_head })?,
        }
        x.stream.inplace_op2(&self.base.layers[0].input_norm, &self.norm())?;

        let last = shape.layers - 1;
        for (index, layer) in self.base.layers[..last].iter().enumerate() {
            self.attend(index, plan, &mut kv[index], &x, &scratch.split, false)?;
            self.finish_layer(index, layer, &plan.runs, &x)?;
            x.stream.inplace_op3(&x.delta, &self.base.layers[index + 1].input_norm, &self.add_norm())?;
        }

        // In the last layer every row leaves its key and value, but only wanted rows go on.
        self.attend(last, plan, &mut kv[last], &x, &scratch.split, logits.is_none())?;
        let Some(logits) = logits else { return Ok(()) };
        let rest = if plan.wanted.len() == plan.rows() {
            x
        } else {
            let rest = scratch.wanted.rows(plan.wanted.len(), shape)?;
            rest.stream.inplace_op2(&x.stream, &Gather { rows: &plan.wanted, width: shape.hidden })?;
            rest.attention.inplace_op2(&x.attention, &Gather { rows: &plan.wanted, width: shape.q_width() })?;
            rest
        };
        self.finish_layer(last, &self.base.layers[last], &plan.wanted_runs, &rest)?;
        rest.stream.inplace_op3(&rest.delta, &self.base.final_norm, &self.add_norm())?;
        let head = Linear { kernels: self.kernels, weight: &self.base.lm_head, adapters: Adapters::default() };
        logits.inplace_op2(&rest.normed, &head)
    }

    /// From the normed stream to the heads' output.
    fn attend(
        &self,
        index: usize,
        plan: &Plan<'_>,
        kv: &mut KvLayer,
        x: &Activations,
        split: &RefCell<Split>,
        store_only: bool,
    ) -> Result<()> {
        let qkv = &self.base.layers[index].qkv;
        let adapters = adapters(&plan.runs, index, Site::Qkv);
        x.qkv.inplace_op2(&x.normed, &Linear { kernels: self.kernels, weight: qkv, adapters })?;
        let attention = Attention {
            kernels: self.kernels,
            shape: self.shape,
            positions: &plan.positions,
            seqs: &plan.seqs,
            kv: RefCell::new(kv),
            split,
            store_only,
        };
        x.attention.inplace_op2(&x.qkv, &attention)
    }

    /// From the heads' output to what the layer's second half adds (left in `delta`).
    fn finish_layer(&self, index: usize, layer: &Layer, runs: &[Run<'_>], x: &Activations) -> Result<()> {
        let linear = |out: &Tensor, input: &Tensor, weight, site| {
            let adapters = adapters(runs, index, site);
            out.inplace_op2(input, &Linear { kernels: self.kernels, weight, adapters })
        };
        linear(&x.delta, &x.attention, &layer.output, Site::Output)?;
        x.stream.inplace_op3(&x.delta, &layer.post_norm, &self.add_norm())?;
        linear(&x.gate_up, &x.normed, &layer.gate_up, Site::GateUp)?;
        x.activated
            .inplace_op2(&x.gate_up, &SiluMul { kernels: self.kernels, intermediate: self.shape.intermediate })?;
        linear(&x.delta, &x.activated, &layer.down, Site::Down)
    }

    fn norm(&self) -> Norm<'_> {
        Norm { kernels: self.kernels, eps: self.shape.rms_eps }
    }

    fn add_norm(&self) -> AddNorm<'_> {
        AddNorm { kernels: self.kernels, eps: self.shape.rms_eps }
    }
}

/// The adapters that touch this site, with their rows.
fn adapters<'a>(runs: &[Run<'a>], layer: usize, site: Site) -> Adapters<'a> {
    let mut adapters = Adapters::default();
    for run in runs {
        let change = run.adapter.change(layer, site);
        if !change.targets.is_empty() {
            adapters.deltas.push(LoraSegment { rows: run.rows.clone(), targets: &change.targets });
        }
        if !change.factors.is_empty() {
            adapters.scaled.push(ScaledRows { rows: run.rows.clone(), factors: &change.factors });
        }
    }
    adapters
}
