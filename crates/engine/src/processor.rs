//! A step on processors: the hot operations as candle custom ops from `ops`, each of which calls [`weft_kernels::Kernels`].

use crate::Error;
use crate::adapter::Resident;
use crate::dora::ScaledRows;
use crate::forward::{Backend, Norm};
use crate::ops::{self, Adapters, Embed, EmbedTied, Gather, Linear, Split};
use crate::plan::{Plan, Run};
use crate::shape::{Shape, Site};
use crate::weights::Base;
use crate::workspace::{Activations, Workspace};
use candle_core::Tensor;
use std::cell::RefCell;
use weft_kernels::{Kernels, KvLayer, LoraSegment};

/// Buffers that a step uses and leaves behind for the next one.
pub(crate) struct Scratch {
    pub(crate) rows: Workspace,
    /// For the rows whose logits are wanted, where those are fewer.
    pub(crate) wanted: Workspace,
    pub(crate) split: RefCell<Split>,
}

/// One step.
pub(crate) struct Step<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) base: &'a Base,
    pub(crate) kernels: &'a dyn Kernels,
    pub(crate) plan: &'a Plan<'a, Box<Resident>>,
    pub(crate) kv: &'a mut [KvLayer],
    pub(crate) scratch: &'a mut Scratch,
    /// `[wanted rows, vocabulary]`; none if no row is wanted.
    pub(crate) logits: Option<&'a Tensor>,
}

/// Activations of rows, and the adapters' runs among them.
pub(crate) struct Rows<'a> {
    x: Activations,
    runs: &'a [Run<'a, Box<Resident>>],
}

impl<'a> Backend for Step<'a> {
    type Rows = Rows<'a>;

    fn rows(&mut self) -> Result<Rows<'a>, Error> {
        let x = self.scratch.rows.rows(self.plan.rows(), self.shape)?;
        Ok(Rows { x, runs: &self.plan.runs })
    }

    fn embed(&mut self, Rows { x, .. }: &Rows<'a>) -> Result<(), Error> {
        let tokens = &self.plan.tokens;
        match &self.base.embeddings {
            Some(table) => x.stream.inplace_op2(table, &Embed { tokens, hidden: self.shape.hidden })?,
            None => x.stream.inplace_op1(&EmbedTied { tokens, head: &self.base.lm_head })?,
        }
        Ok(())
    }

    fn norm(&mut self, norm: Norm, Rows { x, .. }: &Rows<'a>) -> Result<(), Error> {
        let op = ops::Norm { kernels: self.kernels, eps: self.shape.rms_eps };
        Ok(x.stream.inplace_op2(self.norm_weight(norm), &op)?)
    }

    fn add_norm(&mut self, norm: Norm, Rows { x, .. }: &Rows<'a>) -> Result<(), Error> {
        let op = ops::AddNorm { kernels: self.kernels, eps: self.shape.rms_eps };
        Ok(x.stream.inplace_op3(&x.delta, self.norm_weight(norm), &op)?)
    }

    fn linear(&mut self, layer: usize, site: Site, Rows { x, runs }: &Rows<'a>) -> Result<(), Error> {
        let (input, out) = match site {
            Site::Qkv => (&x.normed, &x.qkv),
            Site::Output => (&x.attention, &x.delta),
            Site::GateUp => (&x.normed, &x.gate_up),
            Site::Down => (&x.activated, &x.delta),
        };
        let adapters = adapters(runs, layer, site);
        let weight = self.base.linear(layer, site);
        Ok(out.inplace_op2(input, &Linear { kernels: self.kernels, weight, adapters })?)
    }

    fn store(&mut self, layer: usize, Rows { x, .. }: &Rows<'a>) -> Result<(), Error> {
        let store = ops::Store {
            kernels: self.kernels,
            shape: self.shape,
            positions: &self.plan.positions,
            seqs: &self.plan.seqs,
            kv: RefCell::new(&mut self.kv[layer]),
            split: &self.scratch.split,
        };
        Ok(x.qkv.inplace_op1(&store)?)
    }

    fn attend(&mut self, layer: usize, Rows { x, .. }: &Rows<'a>) -> Result<(), Error> {
        let attention = ops::Attention {
            kernels: self.kernels,
            shape: self.shape,
            positions: &self.plan.positions,
            seqs: &self.plan.seqs,
            kv: &self.kv[layer],
            split: &self.scratch.split,
        };
        Ok(x.attention.inplace_op1(&attention)?)
    }

    fn silu_mul(&mut self, Rows { x, .. }: &Rows<'a>) -> Result<(), Error> {
        let op = ops::SiluMul { kernels: self.kernels, intermediate: self.shape.intermediate };
        Ok(x.activated.inplace_op2(&x.gate_up, &op)?)
    }

    fn wanted(&mut self, rows: Rows<'a>) -> Result<Rows<'a>, Error> {
        let (plan, shape) = (self.plan, self.shape);
        if plan.wanted.len() == plan.rows() {
            return Ok(rows);
        }
        let x = self.scratch.wanted.rows(plan.wanted.len(), shape)?;
        x.stream.inplace_op2(&rows.x.stream, &Gather { rows: &plan.wanted, width: shape.hidden })?;
        x.attention.inplace_op2(&rows.x.attention, &Gather { rows: &plan.wanted, width: shape.q_width() })?;
        Ok(Rows { x, runs: &plan.wanted_runs })
    }

    fn head(&mut self, Rows { x, .. }: &Rows<'a>) -> Result<(), Error> {
        let Some(logits) = self.logits else { return Ok(()) };
        let head = Linear { kernels: self.kernels, weight: &self.base.lm_head, adapters: Adapters::default() };
        Ok(logits.inplace_op2(&x.normed, &head)?)
    }
}

impl Step<'_> {
    fn norm_weight(&self, norm: Norm) -> &Tensor {
        match norm {
            Norm::Input(layer) => &self.base.layers[layer].input_norm,
            Norm::Post(layer) => &self.base.layers[layer].post_norm,
            Norm::Final => &self.base.final_norm,
        }
    }
}

/// The adapters that touch this site, with their rows.
fn adapters<'a>(runs: &[Run<'a, Box<Resident>>], layer: usize, site: Site) -> Adapters<'a> {
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
