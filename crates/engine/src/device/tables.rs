//! What the kernels of a step read beside activations: one piece of memory, one copy.
//!
//! Where each table begins follows from [`Caps`] alone. A step that runs by itself has the caps that it needs; a captured graph has those of its size of
//! batch, and finds whatever step it is replayed for in the same places.

use super::draws::Draws;
use super::slots::Resident;
use crate::plan::{Plan, Run};
use crate::shape::{SITES, Site};
use std::ops::Range;
use weft_cuda_kernels::attention::{self, Item as AttentionItem};
use weft_cuda_kernels::table::{self, Choice, Item, Path, Target};
use weft_cuda_kernels::{columns, sampling};

/// How much room the tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caps {
    pub(crate) rows: usize,
    pub(crate) wanted: usize,
    pub(crate) prefill: usize,
    pub(crate) decode: usize,
    pub(crate) sequences: usize,
    /// Blocks of a sequence.
    pub(crate) table_stride: usize,
    /// Of one site of one layer; zero: no adapters.
    pub(crate) items: usize,
    pub(crate) targets: usize,
    /// Rows and columns with factors, of one site of one layer; zero: no DoRA.
    pub(crate) scaled: usize,
    /// Sites of all layers, and those that come once more for wanted rows alone.
    pub(crate) sites: usize,
    pub(crate) draws: usize,
    /// Draws that penalise.
    pub(crate) starts: usize,
    /// Of wanted rows.
    pub(crate) pieces: usize,
}

/// Where the tables begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) caps: Caps,
    tokens: usize,
    positions: usize,
    wanted: usize,
    prefill: usize,
    decode: usize,
    counts: usize,
    block_tables: usize,
    draws: usize,
    starts: usize,
    draw_counts: usize,
    lora: usize,
    lora_each: usize,
    scaled: usize,
    scaled_each: usize,
    pub(crate) bytes: usize,
}

/// Where each table begins: a multiple of this.
const ALIGNMENT: usize = 16;

impl Layout {
    pub(crate) fn new(caps: Caps) -> Self {
        let mut bytes = 0;
        let mut room = |each: usize, count: usize| {
            let at = bytes;
            bytes += (each * count).next_multiple_of(ALIGNMENT);
            at
        };
        let words = size_of::<u32>();
        let (tokens, positions, wanted) = (room(words, caps.rows), room(words, caps.rows), room(words, caps.wanted));
        let item = size_of::<AttentionItem>();
        let (prefill, decode) = (room(item, caps.prefill), room(item, caps.decode));
        let counts = room(words, 2);
        let block_tables = room(words, caps.sequences * caps.table_stride);
        let draws = room(size_of::<sampling::Row>(), caps.draws);
        let starts = room(size_of::<sampling::Start>(), caps.starts);
        let draw_counts = room(words, 1 + caps.pieces);
        let lora_each = ALIGNMENT + caps.items * size_of::<Item>() + caps.targets * size_of::<Target>();
        let lora = room(lora_each, if caps.items == 0 { 0 } else { caps.sites });
        let scaled_each = ALIGNMENT + (caps.scaled * size_of::<columns::Item>()).next_multiple_of(ALIGNMENT);
        let scaled = room(scaled_each, if caps.scaled == 0 { 0 } else { caps.sites });
        let bytes = bytes.max(ALIGNMENT);
        Self {
            caps,
            tokens,
            positions,
            wanted,
            prefill,
            decode,
            counts,
            block_tables,
            draws,
            starts,
            draw_counts,
            lora,
            lora_each,
            scaled,
            scaled_each,
            bytes,
        }
    }

    pub(crate) fn tokens(&self) -> Range<usize> {
        self.tokens..self.tokens + 4 * self.caps.rows
    }

    pub(crate) fn positions(&self) -> Range<usize> {
        self.positions..self.positions + 4 * self.caps.rows
    }

    pub(crate) fn wanted(&self) -> Range<usize> {
        self.wanted..self.wanted + 4 * self.caps.wanted
    }

    /// Items of attention, and how many there are.
    pub(crate) fn prefill(&self) -> [Range<usize>; 2] {
        let items = self.prefill..self.prefill + size_of::<AttentionItem>() * self.caps.prefill;
        [items, self.counts..self.counts + 4]
    }

    pub(crate) fn decode(&self) -> [Range<usize>; 2] {
        let items = self.decode..self.decode + size_of::<AttentionItem>() * self.caps.decode;
        [items, self.counts + 4..self.counts + 8]
    }

    pub(crate) fn block_tables(&self) -> Range<usize> {
        self.block_tables..self.block_tables + 4 * self.caps.sequences * self.caps.table_stride
    }

    /// Of these draws.
    pub(crate) fn draws(&self, draws: &Range<usize>) -> Range<usize> {
        let each = size_of::<sampling::Row>();
        self.draws + each * draws.start..self.draws + each * draws.end
    }

    /// How many of a piece's draws there are.
    pub(crate) fn draws_count(&self, piece: usize) -> Range<usize> {
        let at = self.draw_counts + 4 * (1 + piece);
        at..at + 4
    }

    pub(crate) fn starts(&self) -> Range<usize> {
        self.starts..self.starts + size_of::<sampling::Start>() * self.caps.starts
    }

    pub(crate) fn starts_count(&self) -> Range<usize> {
        self.draw_counts..self.draw_counts + 4
    }

    /// Items, targets and their count of one site.
    pub(crate) fn lora(&self, site: usize) -> [Range<usize>; 3] {
        let count = self.lora + site * self.lora_each;
        let items = count + ALIGNMENT;
        let targets = items + self.caps.items * size_of::<Item>();
        [items..targets, targets..self.lora + (site + 1) * self.lora_each, count..count + 4]
    }

    /// Rows and columns with factors of one site, and how many there are.
    pub(crate) fn scaled(&self, site: usize) -> [Range<usize>; 2] {
        let count = self.scaled + site * self.scaled_each;
        let items = count + ALIGNMENT;
        [items..items + self.caps.scaled * size_of::<columns::Item>(), count..count + 4]
    }
}

/// Which table of adapters a site of a layer uses.
pub(crate) fn site_number(layer: usize, site: Site, layers: usize, is_part: bool) -> usize {
    // Behind all others: the last layer's, for wanted rows alone.
    if is_part { layers * SITES + site as usize } else { layer * SITES + site as usize }
}

/// What the adapters of a step do to one site.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SiteTable {
    pub(crate) path: Option<Path>,
    pub(crate) items: Vec<Item>,
    pub(crate) targets: Vec<Target>,
    /// Of DoRA.
    pub(crate) scaled: Vec<columns::Item>,
}

impl SiteTable {
    /// Of these runs.
    pub(crate) fn new(runs: &[Run<'_, Resident>], layer: usize, site: Site, choice: Choice) -> Self {
        let mut targets: Vec<Target> = Vec::new();
        let segments: Vec<table::Segment> = runs
            .iter()
            .map(|run| {
                let first = targets.len();
                targets.extend_from_slice(&run.adapter.targets[layer][site as usize]);
                (run.rows.clone(), first..targets.len())
            })
            .collect();
        let rank_max = rank_max(&targets);
        let (path, items) = table::items(&segments, Choice { rank_max, ..choice });
        let path = (!items.is_empty()).then_some(path);
        let scaled =
            runs.iter().flat_map(|run| columns::items(run.rows.clone(), &run.adapter.factors[layer][site as usize]));
        Self { path, items, targets, scaled: scaled.collect() }
    }

    pub(crate) fn rank_max(&self) -> usize {
        rank_max(&self.targets)
    }
}

fn rank_max(targets: &[Target]) -> usize {
    targets.iter().map(|target| target.rank as usize).max().unwrap_or(0)
}

/// The tables of one step, before they are laid out.
pub(crate) struct StepTables {
    pub(crate) attention: attention::Step,
    /// As [`site_number`] counts; empty if the step has no adapters.
    pub(crate) sites: Vec<SiteTable>,
}

impl StepTables {
    pub(crate) fn new(plan: &Plan<'_, Resident>, attention: attention::Step, layers: usize, choice: Choice) -> Self {
        let mut sites = Vec::new();
        if !plan.runs.is_empty() {
            const ALL: [Site; SITES] = [Site::Qkv, Site::Output, Site::GateUp, Site::Down];
            let of = |runs: &[_], layer| ALL.map(|site| SiteTable::new(runs, layer, site, choice));
            sites.extend((0..layers).flat_map(|layer| of(&plan.runs, layer)));
            sites.extend(of(&plan.wanted_runs, layers - 1));
        }
        // Adapters that change nothing.
        if sites.iter().all(|site| site.items.is_empty()) {
            sites.clear();
        }
        Self { attention, sites }
    }

    /// The kernel that can do all sites: those for several rows take single ones, too, and the one without tensor cores takes every rank.
    pub(crate) fn path(&self) -> Option<Path> {
        let has = |wanted| self.sites.iter().any(|site| site.path == Some(wanted));
        let path = [Path::Prefill, Path::Mixed, Path::Decode].into_iter().find(|&path| has(path))?;
        let is_beyond = self.sites.iter().any(|site| site.rank_max() > path.rank_max());
        Some(if is_beyond { Path::Mixed } else { path })
    }

    /// Whether an adapter of the step has magnitudes.
    pub(crate) fn has_dora(&self) -> bool {
        self.sites.iter().any(|site| !site.scaled.is_empty())
    }

    /// What this step needs and no more.
    pub(crate) fn caps(&self, plan: &Plan<'_, Resident>, draws: &Draws) -> Caps {
        Caps {
            rows: plan.rows(),
            wanted: plan.wanted.len(),
            prefill: self.attention.prefill.len(),
            decode: self.attention.decode.len(),
            sequences: plan.seqs.len(),
            table_stride: self.attention.table_stride,
            items: self.sites.iter().map(|site| site.items.len()).max().unwrap_or(0),
            targets: self.sites.iter().map(|site| site.targets.len()).max().unwrap_or(0),
            scaled: self.sites.iter().map(|site| site.scaled.len()).max().unwrap_or(0),
            sites: self.sites.len(),
            draws: draws.rows.len(),
            starts: draws.starts.len(),
            pieces: draws.pieces.len(),
        }
    }

    /// Writes all of it as `layout` says. Rows beyond the step's are token 0 at position 0, and nobody's.
    pub(crate) fn write(&self, plan: &Plan<'_, Resident>, draws: &Draws, layout: &Layout, to: &mut Vec<u8>) {
        to.clear();
        to.resize(layout.bytes, 0);
        let mut put = |at: usize, bytes: &[u8]| to[at..at + bytes.len()].copy_from_slice(bytes);
        put(layout.tokens, bytemuck::cast_slice(&plan.tokens));
        put(layout.positions, bytemuck::cast_slice(&plan.positions));
        put(layout.wanted, bytemuck::cast_slice(&plan.wanted));
        put(layout.prefill, bytemuck::cast_slice(&self.attention.prefill));
        put(layout.decode, bytemuck::cast_slice(&self.attention.decode));
        let counts = [self.attention.prefill.len() as u32, self.attention.decode.len() as u32];
        put(layout.counts, bytemuck::cast_slice(&counts));
        let stride = self.attention.table_stride;
        if stride > 0 {
            for (sequence, blocks) in self.attention.block_tables.chunks_exact(stride).enumerate() {
                put(layout.block_tables + 4 * sequence * layout.caps.table_stride, bytemuck::cast_slice(blocks));
            }
        }
        put(layout.draws, bytemuck::cast_slice(&draws.rows));
        put(layout.starts, bytemuck::cast_slice(&draws.starts));
        put(layout.draw_counts, bytemuck::cast_slice(&draws.counts()));
        for (number, site) in self.sites.iter().enumerate() {
            let [items, targets, count] = layout.lora(number);
            put(count.start, &(site.items.len() as u32).to_ne_bytes());
            put(items.start, bytemuck::cast_slice(&site.items));
            put(targets.start, bytemuck::cast_slice(&site.targets));
            if layout.caps.scaled > 0 {
                let [items, count] = layout.scaled(number);
                put(count.start, &(site.scaled.len() as u32).to_ne_bytes());
                put(items.start, bytemuck::cast_slice(&site.scaled));
            }
        }
    }
}
