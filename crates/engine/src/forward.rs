//! The Llama forward pass: in which order a step's operations come. How each is done, a [`Backend`] knows: a processor's over candle tensors
//! (`processor`), a device's by launches.

use crate::Error;
use crate::shape::Site;

/// Weights of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    /// Before a layer's attention.
    Input(usize),
    /// Before a layer's gate and up.
    Post(usize),
    /// Before the output matrix.
    Final,
}

/// The operations of one step on one kind of machine. Each belongs to the step that the backend was made for; `Rows` are the activations of its rows,
/// or of those among them whose logits are wanted.
pub(crate) trait Backend {
    /// Activations: residual stream, its norm, and what goes in and out of each site.
    type Rows;

    /// Room for all rows of the step.
    fn rows(&mut self) -> Result<Self::Rows, Error>;

    /// The residual stream becomes the tokens' embeddings.
    fn embed(&mut self, x: &Self::Rows) -> Result<(), Error>;

    /// The norm of the residual stream.
    fn norm(&mut self, norm: Norm, x: &Self::Rows) -> Result<(), Error>;

    /// Adds the last site's output to the residual stream, then takes its norm.
    fn add_norm(&mut self, norm: Norm, x: &Self::Rows) -> Result<(), Error>;

    /// A fused linear with its adapters, from the site's input to its output.
    fn linear(&mut self, layer: usize, site: Site, x: &Self::Rows) -> Result<(), Error>;

    /// Rotary embedding, and keys and values to where they stay.
    fn store(&mut self, layer: usize, x: &Self::Rows) -> Result<(), Error>;

    /// Attention, after [`Backend::store`] of the same layer.
    fn attend(&mut self, layer: usize, x: &Self::Rows) -> Result<(), Error>;

    /// `silu(gate) * up`.
    fn silu_mul(&mut self, x: &Self::Rows) -> Result<(), Error>;

    /// The wanted rows alone, where those are fewer: their residual stream and attention.
    fn wanted(&mut self, x: Self::Rows) -> Result<Self::Rows, Error>;

    /// Logits of wanted rows, from their norm.
    fn head(&mut self, x: &Self::Rows) -> Result<(), Error>;
}

/// Runs a step through `layers` layers, one or more. Unless logits are wanted it ends with the last layer's keys and values.
pub(crate) fn forward<B: Backend>(backend: &mut B, layers: usize, wants_logits: bool) -> Result<(), Error> {
    let x = backend.rows()?;
    backend.embed(&x)?;
    backend.norm(Norm::Input(0), &x)?;
    let last = layers - 1;
    for layer in 0..last {
        backend.linear(layer, Site::Qkv, &x)?;
        backend.store(layer, &x)?;
        backend.attend(layer, &x)?;
        finish_layer(backend, layer, &x)?;
        backend.add_norm(Norm::Input(layer + 1), &x)?;
    }

    // In the last layer every row leaves its key and value, but only wanted rows go on.
    backend.linear(last, Site::Qkv, &x)?;
    backend.store(last, &x)?;
    if !wants_logits {
        return Ok(());
    }
    backend.attend(last, &x)?;
    let rest = backend.wanted(x)?;
    finish_layer(backend, last, &rest)?;
    backend.add_norm(Norm::Final, &rest)?;
    backend.head(&rest)
}

/// From the heads' output to what the layer's second half adds.
fn finish_layer<B: Backend>(backend: &mut B, layer: usize, x: &B::Rows) -> Result<(), Error> {
    backend.linear(layer, Site::Output, x)?;
    backend.add_norm(Norm::Post(layer), x)?;
    backend.linear(layer, Site::GateUp, x)?;
    backend.silu_mul(x)?;
    backend.linear(layer, Site::Down, x)
}
