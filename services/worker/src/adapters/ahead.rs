//! What the last placement wants here before anybody asks for it: brought one after the other, while nothing else is.

use std::collections::VecDeque;

use weft_types::Digest;

#[derive(Default)]
pub(crate) struct Ahead {
    waiting: VecDeque<Digest>,
    loading: Option<Digest>,
}

impl Ahead {
    /// Forgets what was wanted before; what is on its way comes.
    pub(crate) fn desire(&mut self, digests: impl Iterator<Item = Digest>) {
        self.waiting = digests.collect();
    }

    /// The next one to be loaded, from now on on its way. None while one is. What is here is passed over.
    pub(crate) fn next(&mut self, is_here: impl Fn(&Digest) -> bool) -> Option<Digest> {
        if self.loading.is_some() {
            return None;
        }
        while let Some(digest) = self.waiting.pop_front() {
            if !is_here(&digest) {
                self.loading = Some(digest);
                return Some(digest);
            }
        }
        None
    }

    /// The one on its way.
    pub(crate) fn loading(&self) -> Option<Digest> {
        self.loading
    }

    /// It has come, or failed.
    pub(crate) fn ended(&mut self, digest: &Digest) {
        if self.loading.as_ref() == Some(digest) {
            self.loading = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_brought_at_a_time_and_what_is_here_is_passed_over() {
        let digest = |n: u8| Digest::of(&[n]);
        let mut ahead = Ahead::default();
        ahead.desire([1, 2, 3].into_iter().map(digest));
        let is_here = |known: &Digest| *known == digest(1);
        assert_eq!(ahead.next(is_here), Some(digest(2)));
        assert_eq!((ahead.next(is_here), ahead.loading()), (None, Some(digest(2))));
        ahead.ended(&digest(3));
        assert_eq!(ahead.next(is_here), None, "another one ended");
        ahead.ended(&digest(2));
        assert_eq!(ahead.next(is_here), Some(digest(3)));
        ahead.desire([4].into_iter().map(digest));
        ahead.ended(&digest(3));
        assert_eq!((ahead.next(is_here), ahead.next(is_here)), (Some(digest(4)), None));
    }
}
