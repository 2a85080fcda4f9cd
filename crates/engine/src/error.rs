//! What can go wrong in the engine, and whose fault it is.

use crate::sampling::NoToken;
use weft_fault::{Fault, Kind};

/// A failed load, a failed preparation or a step that was refused.
///
/// A step checks its whole batch before it writes anything: after an error that names a sequence
/// ([`Error::sequence`]) the same batch without that sequence can be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base model's weights could not be read.
    #[error("base model cannot be loaded")]
    Model(#[from] weft_base_model::Error),
    /// A tensor has another size than the configuration says.
    #[error("tensor {name} has {found} values, expected {expected}")]
    TensorSize {
        /// Hugging Face name.
        name: String,
        /// Values in the file.
        found: usize,
        /// Values that the configuration asks for.
        expected: usize,
    },
    /// An engine option is out of range.
    #[error("{option} is {value}, allowed is {allowed}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        value: usize,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A size of the base that several devices cannot share evenly.
    #[error("{what} is {value}, allowed for {ranks} ranks is a multiple of {multiple}")]
    Shard {
        /// Name of the size, as in the model's configuration where it is there.
        what: &'static str,
        /// Of the base.
        value: usize,
        /// How many devices.
        ranks: usize,
        /// What it must be a multiple of.
        multiple: usize,
    },
    /// The adapter blob cannot be parsed.
    #[error("adapter blob cannot be read")]
    Adapter(#[from] weft_adapter_format::Error),
    /// The adapter does not fit the base: a shape differs, or the base's weights and DoRA's magnitudes give no factor.
    #[error("adapter module {module} of layer {layer} does not fit the base: {reason}")]
    AdapterShape {
        /// Decoder layer.
        layer: usize,
        /// Module name, e.g. `q_proj`.
        module: &'static str,
        /// Which number differs, and from what.
        reason: String,
    },
    /// A sequence of the batch cannot be computed.
    #[error("sequence {sequence} of the batch: {problem}")]
    Sequence {
        /// Position in the batch.
        sequence: usize,
        /// What is wrong with it.
        problem: Problem,
    },
    /// Logits hold NaN or positive infinity, or no finite value at all.
    #[error("logits are not finite")]
    Logits,
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// Blocks of the pool that an adapter cannot be put into: a fault of whoever gives them out.
    #[error("the adapter cannot lie in the blocks given: {reason}")]
    AdapterBlocks {
        /// Which block, or how many, and why not.
        reason: String,
    },
    /// An adapter that is more than a device engine was made for.
    #[error("the adapter's {what} is {value}, the device takes up to {limit}")]
    AdapterLimit {
        /// `rank`, or `size in blocks`.
        what: &'static str,
        /// Of the adapter.
        value: usize,
        /// Most of it.
        limit: usize,
    },
    /// An adapter that was prepared for an engine of the other kind.
    #[error("the adapter was prepared for another kind of engine")]
    OtherKind,
    /// A batch is larger than a device engine was made for.
    #[error("the batch has {value} {what}, the engine was made for {limit}")]
    Batch {
        /// `rows` or `sequences`.
        what: &'static str,
        /// How many.
        value: usize,
        /// Most of them.
        limit: usize,
    },
    /// Memory of a device ran out, or the device failed.
    #[error("the device failed")]
    Device(#[from] weft_cuda_device::Error),
    /// A batch that adapters on a device are not launched for.
    #[error("adapters cannot be launched")]
    Adapters(#[from] weft_cuda_kernels::table::Error),
    /// A batch that attention on a device is not launched for.
    #[error("attention cannot be launched")]
    Attention(#[from] weft_cuda_kernels::attention::Error),
    /// A vocabulary that the sampler on a device is not launched for.
    #[error("sampling cannot be launched")]
    Sampling(#[from] weft_cuda_kernels::sampling::Error),
    /// A size that products with quantised weights on a device are not made for.
    #[error("weights cannot be quantised for the device")]
    Products(#[from] weft_cuda_kernels::gemm::Error),
}

/// Why one sequence of a batch cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A sequence brings at least one token.
    #[error("no tokens")]
    Empty,
    /// The embedding table ends before this token.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    Token {
        /// Offending id.
        token: u32,
        /// Number of ids.
        vocabulary: usize,
    },
    /// The context ends before this position.
    #[error("position {position} is beyond the context of {context} tokens")]
    Position {
        /// Last position of the chunk.
        position: usize,
        /// Context length.
        context: usize,
    },
    /// The block list is shorter than the sequence.
    #[error("{blocks} KV blocks hold fewer than {tokens} tokens")]
    BlocksShort {
        /// Blocks given.
        blocks: usize,
        /// Tokens to hold, old and new.
        tokens: usize,
    },
    /// The pool ends before this block.
    #[error("KV block {block} is outside the pool of {pool}")]
    BlockRange {
        /// Physical block.
        block: u32,
        /// Blocks in the pool.
        pool: usize,
    },
    /// Another sequence of this step uses a block that this one writes.
    #[error("KV block {block} is written while sequence {other} uses it")]
    BlockShared {
        /// Physical block.
        block: u32,
        /// The other sequence's position in the batch.
        other: usize,
    },
    /// An adapter lies in the block.
    #[error("KV block {block} holds an adapter")]
    BlockTaken {
        /// Physical block.
        block: u32,
    },
    /// The slot is empty, or was emptied and filled again since.
    #[error("slot {slot} holds no such adapter")]
    Slot {
        /// The slot asked for.
        slot: crate::SlotId,
    },
    /// The adapter in the slot was prepared for another engine.
    #[error("slot {slot} holds an adapter that was prepared for another base")]
    ForeignAdapter {
        /// The slot asked for.
        slot: crate::SlotId,
    },
    /// The draw asks for more than a device engine has room for.
    #[error("its draw has {value} {what}, the engine has room for {limit}")]
    Draw {
        /// `top log-probabilities` or `occurrences of tokens`.
        what: &'static str,
        /// How many.
        value: usize,
        /// Most of them.
        limit: usize,
    },
}

impl From<NoToken> for Error {
    fn from(NoToken: NoToken) -> Self {
        Self::Logits
    }
}

impl Error {
    /// The sequence of the batch that is to blame, if a single one is.
    #[must_use]
    pub fn sequence(&self) -> Option<usize> {
        match self {
            Self::Sequence { sequence, .. } => Some(*sequence),
            _ => None,
        }
    }

    /// Whether less memory, or later, would do.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Device(error) if error.is_out_of_memory())
    }

    /// Whether every later step would fail as well: a device that failed serves nobody until it is opened anew.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Device(error) if error.is_fatal())
    }

    /// What the caller should do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            // The registry checked the package: a blob that cannot be read or does not fit is not what its name says.
            Self::Adapter(_) | Self::AdapterShape { .. } => Kind::Corrupt,
            Self::Sequence { problem: Problem::Token { .. } | Problem::Draw { .. }, .. } => Kind::Invalid,
            Self::Option { .. } | Self::Shard { .. } | Self::Batch { .. } | Self::Products(_) => Kind::Invalid,
            Self::AdapterLimit { .. } => Kind::Refused,
            _ if self.is_out_of_memory() || self.is_fatal() => Kind::Unavailable,
            Self::Model(_) | Self::TensorSize { .. } => Kind::Corrupt,
            Self::Sequence { .. }
            | Self::Logits
            | Self::OtherKind
            | Self::AdapterBlocks { .. }
            | Self::Tensor(_)
            | Self::Device(_)
            | Self::Adapters(_)
            | Self::Attention(_)
            | Self::Sampling(_) => Kind::Internal,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::new(error.kind(), describe(&error))
    }
}

/// The message with its causes: a fault keeps no source.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
