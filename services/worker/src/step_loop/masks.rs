//! Where the loop meets the helpers that compute token masks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use weft_batching::RequestId;

use super::StepLoop;
use crate::Error;
use crate::masks::Masked;
use crate::request::Active;

impl StepLoop {
    /// Has the next mask computed, if there is a grammar.
    pub(super) fn follow_grammar(&mut self, id: RequestId) {
        let Some((matcher, token)) = self.active.get_mut(&id).and_then(Active::lend_matcher) else { return };
        if let Some(masked) = self.parts.masks.follow(id, matcher, token) {
            self.take_mask(masked);
        }
    }

    /// Takes what the helpers finished.
    pub(super) fn take_masks(&mut self) {
        for masked in self.parts.masks.done() {
            self.take_mask(masked);
        }
    }

    fn take_mask(&mut self, masked: Masked) {
        let Some(active) = self.active.get_mut(&masked.id) else { return };
        match masked.mask {
            Ok(mask) => active.take_mask(masked.matcher, mask),
            Err(error) => self.fail(masked.id, &error),
        }
    }

    /// Requests whose logits came before their mask go on. Between steps only: the scheduler must not have planned them.
    pub(super) fn advance_held(&mut self) {
        let model = Arc::clone(&self.parts.model);
        for id in std::mem::take(&mut self.held) {
            let Some(active) = self.active.get_mut(&id) else { continue };
            let advanced = catch_unwind(AssertUnwindSafe(|| active.advance_held(&model)));
            match advanced.unwrap_or(Some(Err(Error::Panic("sampling")))) {
                Some(progress) => self.note_progress(id, progress),
                None if active.is_held() => self.held.push(id),
                None => {}
            }
        }
    }
}
