//! Which part of a model one of several devices has.
//!
//! Heads, and what lies between the two halves of an MLP, are divided: at q, k, v, gate and up a rank has some *outputs*, at o and down the *inputs*
//! that go with them. So what a rank computes from a layer's input needs nothing of the others until the end of o and of down, where their outputs
//! are added up. Of the output matrix a rank has some ids of the vocabulary.

use super::linear::WeightFormat;
use crate::Error;
use crate::shape::{Shape, Site};
use std::borrow::Cow;
use std::ops::Range;
use weft_cuda_kernels::columns::JOINED_MULTIPLE;
use weft_cuda_kernels::gemm::STEP;

/// One of the equal parts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
}

impl Shard {
    /// Of a device that has all of it.
    pub(crate) const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// The sizes of this part: as a whole model's, but for heads and the width of the MLP. The vocabulary stays whole.
    ///
    /// # Errors
    /// [`Error::Shard`] for what does not divide evenly, codes of weights included; [`Error::Option`] for a vocabulary that is too small.
    pub(crate) fn shape(self, whole: &Shape, weights: WeightFormat) -> Result<Shape, Error> {
        let Self { ranks, .. } = self;
        // Groups of inputs that share a scale are not taken apart.
        let group = if weights == WeightFormat::Precision { 1 } else { STEP };
        for (what, value, group) in [
            ("heads", whole.heads, 1),
            ("kv_heads", whole.kv_heads, 1),
            ("intermediate_size", whole.intermediate, group),
            ("width of all heads", whole.q_width(), group),
        ] {
            let multiple = ranks * group;
            if ranks > 1 && !value.is_multiple_of(multiple) {
                return Err(Error::Shard { what, value, ranks, multiple });
            }
        }
        if (ranks - 1) * self.columns(whole.vocabulary) >= whole.vocabulary {
            let allowed = "so many ids that each rank has some";
            return Err(Error::Option { option: "vocabulary", value: whole.vocabulary, allowed });
        }
        let [heads, kv_heads, intermediate] =
            [whole.heads, whole.kv_heads, whole.intermediate].map(|size| size / ranks);
        Ok(Shape { heads, kv_heads, intermediate, ..whole.clone() })
    }

    /// This rank's part of what all have in equal parts.
    fn part(self, size: usize) -> Range<usize> {
        let each = size / self.ranks;
        self.rank * each..(self.rank + 1) * each
    }

    /// Whether ranks have parts of the outputs of a site's linears; else of their inputs.
    pub(crate) fn is_by_outputs(site: Site) -> bool {
        matches!(site, Site::Qkv | Site::GateUp)
    }

    /// Of the inputs of a site.
    pub(crate) fn inputs(self, site: Site, inputs: usize) -> Range<usize> {
        if Self::is_by_outputs(site) { 0..inputs } else { self.part(inputs) }
    }

    /// Of the outputs of one linear of a site.
    pub(crate) fn outputs(self, site: Site, outputs: usize) -> Range<usize> {
        if Self::is_by_outputs(site) { self.part(outputs) } else { 0..outputs }
    }

    /// Of the rows of a site's linears, one after the other, as the whole has them: `[outputs, inputs]`.
    pub(crate) fn rows<'a>(self, values: &'a [f32], site: Site, whole: &Shape) -> Cow<'a, [f32]> {
        if self == Self::WHOLE || !Self::is_by_outputs(site) {
            return Cow::Borrowed(values);
        }
        let linears: &[usize] = match site {
            Site::Qkv => &[whole.q_width(), whole.kv_width(), whole.kv_width()],
            _ => &[whole.intermediate, whole.intermediate],
        };
        let (outputs, inputs) = whole.site(site);
        let mut rows = Vec::with_capacity(outputs / self.ranks * inputs);
        let mut first = 0;
        for &outputs in linears {
            let part = self.part(outputs);
            rows.extend_from_slice(&values[(first + part.start) * inputs..(first + part.end) * inputs]);
            first += outputs;
        }
        Cow::Owned(rows)
    }

    /// Columns of the output matrix that each rank computes, those beyond the vocabulary included.
    pub(crate) fn columns(self, vocabulary: usize) -> usize {
        if self.ranks == 1 { vocabulary } else { vocabulary.div_ceil(self.ranks).next_multiple_of(JOINED_MULTIPLE) }
    }

    /// Of the output matrix `[vocabulary, hidden]`: as many rows as [`Self::columns`]; those beyond the vocabulary are zero.
    pub(crate) fn head<'a>(self, values: &'a [f32], vocabulary: usize, hidden: usize) -> Cow<'a, [f32]> {
        let each = self.columns(vocabulary);
        let part = self.rank * each..vocabulary.min((self.rank + 1) * each);
        let values = &values[part.start * hidden..part.end * hidden];
        if part.len() == each {
            return Cow::Borrowed(values);
        }
        let mut filled_up = values.to_vec();
        filled_up.resize(each * hidden, 0.0);
        Cow::Owned(filled_up)
    }
}

/// Some columns of rows of `width`.
pub(crate) fn cut<'a, T: Copy>(rows: &'a [T], width: usize, part: &Range<usize>) -> Cow<'a, [T]> {
    if part.len() == width {
        return Cow::Borrowed(rows);
    }
    let mut cut = Vec::with_capacity(rows.len() / width * part.len());
    for row in rows.chunks_exact(width) {
        cut.extend_from_slice(&row[part.clone()]);
    }
    Cow::Owned(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Shape {
        Shape {
            layers: 1,
            hidden: 3,
            heads: 8,
            kv_heads: 4,
            head_dim: 16,
            intermediate: 128,
            vocabulary: 100,
            context: 8,
            rms_eps: 1e-5,
            inv_freq: vec![1.0; 8],
            attention_factor: 1.0,
        }
    }

    /// Every row of every linear is some rank's, once; those of a head and of its group are of one rank.
    #[test]
    fn ranks_have_all_rows_between_them() {
        let whole = whole();
        for ranks in [1, 2, 4] {
            for site in [Site::Qkv, Site::GateUp] {
                let (outputs, inputs) = whole.site(site);
                let values: Vec<f32> = (0..outputs * inputs).map(|at| (at / inputs) as f32).collect();
                let mut seen = vec![0; outputs];
                for rank in 0..ranks {
                    let shard = Shard { rank, ranks };
                    let shape = shard.shape(&whole, WeightFormat::Int8).unwrap();
                    let rows = shard.rows(&values, site, &whole);
                    assert_eq!(rows.len(), shape.site(site).0 * inputs);
                    rows.chunks(inputs).for_each(|row| seen[row[0] as usize] += 1);
                    if site == Site::Qkv {
                        let first_key = rows[shape.q_width() * inputs] as usize - whole.q_width();
                        assert_eq!(rows[0] as usize / 2, first_key, "two query heads for each head of keys");
                    }
                }
                assert!(seen.iter().all(|count| *count == 1), "{ranks} ranks: {seen:?}");
            }
        }
    }

    #[test]
    fn the_vocabulary_is_filled_up_behind_its_end() {
        let (vocabulary, hidden) = (100, 3);
        let values: Vec<f32> = (0..vocabulary * hidden).map(|at| 1.0 + at as f32).collect();
        for ranks in [1, 2, 3, 4] {
            let each = Shard { rank: 0, ranks }.columns(vocabulary);
            let heads: Vec<f32> = (0..ranks)
                .flat_map(|rank| Shard { rank, ranks }.head(&values, vocabulary, hidden).into_owned())
                .collect();
            assert_eq!(heads.len(), ranks * each * hidden);
            assert_eq!(heads[..values.len()], values);
            assert!(heads[values.len()..].iter().all(|value| *value == 0.0));
        }
    }

    #[test]
    fn columns_are_cut_from_each_row() {
        assert_eq!(*cut(&[1, 2, 3, 4, 5, 6], 3, &(1..3)), [2, 3, 5, 6]);
        assert!(matches!(cut(&[1, 2, 3, 4], 2, &(0..2)), Cow::Borrowed([1, 2, 3, 4])));
    }

    #[test]
    fn what_does_not_divide_is_named() {
        let says =
            |ranks, weights, whole: Shape| Shard { rank: 0, ranks }.shape(&whole, weights).unwrap_err().to_string();
        let plain = WeightFormat::Precision;
        assert_eq!(says(3, plain, whole()), "heads is 8, allowed for 3 ranks is a multiple of 3");
        assert_eq!(says(8, plain, whole()), "kv_heads is 4, allowed for 8 ranks is a multiple of 8");
        let odd = || Shape { intermediate: 96, ..whole() };
        assert_eq!(
            says(2, WeightFormat::Int8, odd()),
            "intermediate_size is 96, allowed for 2 ranks is a multiple of 64"
        );
        assert!(Shard { rank: 0, ranks: 2 }.shape(&odd(), plain).is_ok());
        let few = says(4, plain, Shape { vocabulary: 24, ..whole() });
        assert_eq!(few, "vocabulary is 24, allowed is so many ids that each rank has some");
    }
}
