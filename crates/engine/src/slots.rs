//! The slot table: which adapter is resident where.

use crate::adapter::Resident;
use std::fmt;
use weft_types::Digest;

/// Names one filling of one slot. A slot that is emptied and filled again gets another id, so that an id kept too long
/// is refused instead of meaning somebody else's adapter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SlotId {
    index: u32,
    generation: u32,
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    adapter: Option<Box<Resident>>,
}

/// All slots of an engine. Every operation is O(1).
#[derive(Default)]
pub(crate) struct SlotTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl SlotTable {
    pub(crate) fn install(&mut self, adapter: Box<Resident>) -> SlotId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.adapter = Some(adapter);
        SlotId { index, generation: slot.generation }
    }

    pub(crate) fn remove(&mut self, id: SlotId) -> Option<Box<Resident>> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        let adapter = slot.adapter.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(adapter)
    }

    pub(crate) fn get(&self, id: SlotId) -> Option<&Resident> {
        let slot = self.slots.get(id.index as usize)?;
        if slot.generation == id.generation { slot.adapter.as_deref() } else { None }
    }

    pub(crate) fn digest(&self, id: SlotId) -> Option<Digest> {
        self.get(id).map(|adapter| adapter.digest)
    }
}
