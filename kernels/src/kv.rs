//! Keys and values of one layer, in pages.
//!
//! | part | logical | stored | why |
//! |---|---|---|---|
//! | keys | `[block][kv_head][slot][head_dim]` | `[block][kv_head][head_dim/P][slot16][P]` | the scores of 16 neighbouring positions are the lanes of one vector |
//! | values | `[block][kv_head][slot][head_dim]` | `[block][kv_head][slot/P][dim16][P]` | the output's features are the lanes |
//!
//! `slot16` and `dim16` are padded to a multiple of 16. `P` is 2 where a dot product takes pairs of bf16 (`vdpbf16ps`), else 1;
//! then odd features and slots are filled up. A block of 16 positions and a head of 64 pad nothing.

use crate::aligned::AlignedBuf;
use crate::packed::{PANEL, round_bf16, widen_bf16};
use std::any::Any;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// 4 bytes per value.
    F32,
    /// 2 bytes per value, rounded to nearest even. An implementation may round queries and the weights of positions as well;
    /// sums stay `f32`.
    Bf16,
}

pub(crate) enum KvData {
    F32 {
        k: AlignedBuf<f32>,
        v: AlignedBuf<f32>,
    },
    Bf16 {
        k: AlignedBuf<u16>,
        v: AlignedBuf<u16>,
    },
    /// Pages that lie elsewhere, on a device perhaps.
    Elsewhere {
        pages: Box<dyn Any + Send + Sync>,
        format: KvFormat,
        bytes: usize,
    },
}

/// The pages of one layer, from [`crate::Kernels::new_kv`]. Which block belongs to whom is the caller's business.
pub struct KvLayer {
    pub(crate) shape: KvShape,
    pub(crate) data: KvData,
}

/// Where things are in a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvShape {
    pub(crate) blocks: usize,
    pub(crate) block_size: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Neighbours side by side: features of a key, positions of a value. 1 or 2.
    pub(crate) pair: usize,
}

impl KvShape {
    /// Distance of two features of a key, in values, where features are not in pairs.
    pub(crate) fn slot_stride(&self) -> usize {
        self.block_size.next_multiple_of(PANEL)
    }

    /// Distance of two positions of a value, in values, where positions are not in pairs.
    pub(crate) fn dim_stride(&self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }

    /// Values that the keys of a block and head take.
    pub(crate) fn k_len(&self) -> usize {
        self.head_dim.next_multiple_of(self.pair) * self.slot_stride()
    }

    /// Values that the values of a block and head take.
    pub(crate) fn v_len(&self) -> usize {
        self.block_size.next_multiple_of(self.pair) * self.dim_stride()
    }

    /// Where the keys of a block and head begin.
    pub(crate) fn k_start(&self, block: usize, kv_head: usize) -> usize {
        (block * self.kv_heads + kv_head) * self.k_len()
    }

    /// Where the values of a block and head begin.
    pub(crate) fn v_start(&self, block: usize, kv_head: usize) -> usize {
        (block * self.kv_heads + kv_head) * self.v_len()
    }

    /// Where one feature of a key is.
    fn key(&self, block: usize, kv_head: usize, slot: usize, dim: usize) -> usize {
        let pair = dim / self.pair * self.slot_stride() + slot;
        self.k_start(block, kv_head) + pair * self.pair + dim % self.pair
    }

    /// Where one feature of a value is.
    fn value(&self, block: usize, kv_head: usize, slot: usize, dim: usize) -> usize {
        let pair = slot / self.pair * self.dim_stride() + dim;
        self.v_start(block, kv_head) + pair * self.pair + slot % self.pair
    }
}

impl KvLayer {
    /// `blocks` pages of `block_size` positions each. Memory is mapped when first written. `pair`: neighbours side by side in
    /// bf16.
    pub(crate) fn new(
        blocks: usize,
        [block_size, kv_heads, head_dim]: [usize; 3],
        format: KvFormat,
        pair: usize,
    ) -> Self {
        assert!(
            block_size > 0 && kv_heads > 0 && head_dim > 0,
            "kv layer: block_size {block_size}, kv_heads {kv_heads} and head_dim {head_dim} must be above 0"
        );
        let padded = |a: usize, b: usize| {
            blocks
                .checked_mul(kv_heads)
                .and_then(|n| n.checked_mul(a))
                .and_then(|n| n.checked_mul(b.next_multiple_of(PANEL)))
                .expect("a kv layer fits the address space")
        };
        let pair = if format == KvFormat::Bf16 { pair } else { 1 };
        let k_len = padded(head_dim.next_multiple_of(pair), block_size);
        let v_len = padded(block_size.next_multiple_of(pair), head_dim);
        let data = match format {
            KvFormat::F32 => KvData::F32 { k: AlignedBuf::zeroed(k_len), v: AlignedBuf::zeroed(v_len) },
            KvFormat::Bf16 => KvData::Bf16 { k: AlignedBuf::zeroed(k_len), v: AlignedBuf::zeroed(v_len) },
        };
        Self { shape: KvShape { blocks, block_size, kv_heads, head_dim, pair }, data }
    }

    /// Pages that an implementation outside of this crate keeps, `bytes` of them, in a layout of its own. Those in this crate refuse
    /// them.
    #[must_use]
    pub fn elsewhere(
        blocks: usize,
        [block_size, kv_heads, head_dim]: [usize; 3],
        format: KvFormat,
        bytes: usize,
        pages: Box<dyn Any + Send + Sync>,
    ) -> Self {
        let data = KvData::Elsewhere { pages, format, bytes };
        Self { shape: KvShape { blocks, block_size, kv_heads, head_dim, pair: 1 }, data }
    }

    /// What [`Self::elsewhere`] was given, if it was a `T`.
    #[must_use]
    pub fn pages<T: Any>(&self) -> Option<&T> {
        match &self.data {
            KvData::Elsewhere { pages, .. } => pages.downcast_ref(),
            _ => None,
        }
    }

    /// [`Self::pages`], to write.
    #[must_use]
    pub fn pages_mut<T: Any>(&mut self) -> Option<&mut T> {
        match &mut self.data {
            KvData::Elsewhere { pages, .. } => pages.downcast_mut(),
            _ => None,
        }
    }

    /// Stops an implementation of this crate.
    pub(crate) fn refuse_elsewhere(shape: KvShape) -> ! {
        panic!("kv layer: its {} blocks lie elsewhere: made by another implementation", shape.blocks)
    }

    /// Number of pages.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.shape.blocks
    }

    /// Positions per page.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.shape.block_size
    }

    /// Key and value heads.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        self.shape.kv_heads
    }

    /// Width of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    /// How keys and values are stored.
    #[must_use]
    pub fn format(&self) -> KvFormat {
        match self.data {
            KvData::F32 { .. } => KvFormat::F32,
            KvData::Bf16 { .. } => KvFormat::Bf16,
            KvData::Elsewhere { format, .. } => format,
        }
    }

    /// Memory held by all pages, padding included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.data {
            KvData::F32 { k, v } => k.bytes() + v.bytes(),
            KvData::Bf16 { k, v } => k.bytes() + v.bytes(),
            KvData::Elsewhere { bytes, .. } => *bytes,
        }
    }

    /// One feature of a stored key.
    pub(crate) fn key(&self, block: usize, kv_head: usize, slot: usize, dim: usize) -> f32 {
        let index = self.shape.key(block, kv_head, slot, dim);
        match &self.data {
            KvData::F32 { k, .. } => k[index],
            KvData::Bf16 { k, .. } => widen_bf16(k[index]),
            KvData::Elsewhere { .. } => Self::refuse_elsewhere(self.shape),
        }
    }

    /// One feature of a stored value.
    pub(crate) fn value(&self, block: usize, kv_head: usize, slot: usize, dim: usize) -> f32 {
        let index = self.shape.value(block, kv_head, slot, dim);
        match &self.data {
            KvData::F32 { v, .. } => v[index],
            KvData::Bf16 { v, .. } => widen_bf16(v[index]),
            KvData::Elsewhere { .. } => Self::refuse_elsewhere(self.shape),
        }
    }

    /// Stores the key and the value of one position and head, both `[head_dim]`.
    pub(crate) fn store(&mut self, block: usize, kv_head: usize, slot: usize, key: &[f32], value: &[f32]) {
        let shape = self.shape;
        for (dim, (&key, &value)) in key.iter().zip(value).enumerate() {
            let (at_key, at_value) = (shape.key(block, kv_head, slot, dim), shape.value(block, kv_head, slot, dim));
            match &mut self.data {
                KvData::F32 { k, v } => (k[at_key], v[at_value]) = (key, value),
                KvData::Bf16 { k, v } => (k[at_key], v[at_value]) = (round_bf16(key), round_bf16(value)),
                KvData::Elsewhere { .. } => Self::refuse_elsewhere(shape),
            }
        }
    }
}

impl std::fmt::Debug for KvLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let KvShape { blocks, block_size, kv_heads, head_dim, .. } = self.shape;
        let format = self.format();
        write!(f, "KvLayer({blocks} x [{kv_heads}, {block_size}, {head_dim}], {format:?})")
    }
}
