//! Memory for weights under way, bounded over all uploads together.
//!
//! What is large lies in a region of its own, which is used again by the next upload: memory that is new each time (to be found, emptied and mapped)
//! costs as much as everything else that is done with its bytes, the hashes excepted. An idle region is the system's to take back whenever it is
//! short of memory (`MADV_FREE`), and keeps its room meanwhile, until an upload needs room that there is not otherwise.

use memmap2::{MmapMut, MmapOptions};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What the bound is counted in; the first of each upload is free.
pub(super) const UNIT_BYTES: usize = 64 << 10;
/// More bytes than this are in a region. A huge page, so that what one wastes at its end is not much.
const HEAP_BYTES_MAX: usize = 2 << 20;

/// What all uploads together may have in memory. Cheap to clone.
#[derive(Clone)]
pub(super) struct Room(Arc<Shared>);

struct Shared {
    /// Units that nobody holds.
    units: Arc<Semaphore>,
    /// Regions of uploads that are gone: at most as many as there were uploads at once.
    idle: Mutex<Vec<Region>>,
    /// Addresses of a region: no upload has more in memory.
    region_bytes: usize,
}

/// Memory that was mapped once, and the room of all its pages that were ever written.
struct Region {
    map: MmapMut,
    units: OwnedSemaphorePermit,
}

/// The bytes of one upload.
pub(super) struct Held {
    room: Room,
    memory: Memory,
}

enum Memory {
    Heap(Vec<u8>, Option<OwnedSemaphorePermit>),
    /// So many bytes are the upload's; what is behind them is anybody's.
    Region(Region, usize),
    /// Given back.
    Nothing,
}

impl Room {
    /// So many bytes in all, and at most `each_max` of one upload.
    pub(super) fn new(bytes_max: u64, each_max: u64) -> Self {
        let as_usize = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        let units = (as_usize(bytes_max) / UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        let region_bytes = (units + 1).saturating_mul(UNIT_BYTES).min(as_usize(each_max)).max(1);
        Self(Arc::new(Shared { units: Arc::new(Semaphore::new(units)), idle: Mutex::default(), region_bytes }))
    }

    pub(super) fn begin(&self) -> Held {
        Held { room: self.clone(), memory: Memory::Heap(Vec::new(), None) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Region>> {
        // A push or a pop leaves it whole.
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes units, if need be those of idle regions, which go: those first that are idle longest.
    fn take(&self, units: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(units).ok()?;
        loop {
            if let Ok(permit) = Arc::clone(&self.0.units).try_acquire_many_owned(units) {
                return Some(permit);
            }
            let mut idle = self.idle();
            let region = (!idle.is_empty()).then(|| idle.remove(0));
            // Giving it back to the system takes a while: outside of the lock.
            drop(idle);
            drop(region?);
        }
    }

    /// An idle region, or a new one with these units.
    fn region(&self, units: OwnedSemaphorePermit) -> Option<Region> {
        if let Some(region) = self.idle().pop() {
            return Some(region);
        }
        let map = MmapOptions::new().len(self.0.region_bytes).no_reserve_swap().map_anon().ok()?;
        // Without huge pages it is only slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Region { map, units })
    }

    /// Units that nobody holds, and those of idle regions.
    #[cfg(test)]
    pub(super) fn units_left(&self) -> usize {
        self.0.units.available_permits() + self.idle().iter().map(|region| region.units.num_permits()).sum::<usize>()
    }
}

impl Held {
    /// Takes the next bytes. False: there is no room for them, and what came before is as it was.
    pub(super) fn take(&mut self, chunk: &[u8]) -> bool {
        let before = self.as_ref().len();
        let bytes = before + chunk.len();
        if bytes > HEAP_BYTES_MAX && matches!(self.memory, Memory::Heap(..)) && !self.move_to_region() {
            return false;
        }
        let units = bytes.div_ceil(UNIT_BYTES).saturating_sub(1);
        match &mut self.memory {
            Memory::Heap(all, held) => {
                let more = units.saturating_sub(held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
                if more > 0 {
                    let Some(permit) = self.room.take(more) else { return false };
                    match held {
                        Some(held) => held.merge(permit),
                        None => *held = Some(permit),
                    }
                }
                all.extend_from_slice(chunk);
            }
            Memory::Region(region, length) => {
                let more = units.saturating_sub(region.units.num_permits());
                if more > 0 {
                    let Some(permit) = self.room.take(more) else { return false };
                    region.units.merge(permit);
                }
                let Some(room) = region.map.get_mut(before..bytes) else { return false };
                room.copy_from_slice(chunk);
                *length = bytes;
            }
            Memory::Nothing => return false,
        }
        true
    }

    /// False: the system has no addresses for one, or it is too small. Then nothing has changed but that the bytes have no room.
    fn move_to_region(&mut self) -> bool {
        let Memory::Heap(all, held) = &mut self.memory else { return false };
        // Nothing is held yet if the first bytes are this many.
        let Some(units) = held.take().or_else(|| self.room.take(0)) else { return false };
        let Some(mut region) = self.room.region(units) else { return false };
        let length = all.len();
        let Some(start) = region.map.get_mut(..length) else { return false };
        start.copy_from_slice(all);
        self.memory = Memory::Region(region, length);
        true
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(bytes, _) => bytes,
            Memory::Region(region, length) => &region.map[..*length],
            Memory::Nothing => &[],
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Memory::Region(region, _) = std::mem::replace(&mut self.memory, Memory::Nothing) else { return };
        // SAFETY: nobody has a reference into it any more, and whoever has it next reads only what it wrote itself.
        #[cfg(target_os = "linux")]
        let _ = unsafe { region.map.unchecked_advise(memmap2::UncheckedAdvice::Free) };
        self.room.idle().push(region);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many units, after the first, of this byte.
    fn held(room: &Room, units: usize, byte: u8) -> Option<Held> {
        let mut held = room.begin();
        (0..=units).all(|_| held.take(&[byte; UNIT_BYTES])).then_some(held)
    }

    #[test]
    fn what_is_idle_is_used_again_and_goes_when_others_need_its_room() {
        let room = Room::new(100 * UNIT_BYTES as u64, u64::MAX);
        let first = held(&room, 60, 1).unwrap();
        let at = first.as_ref().as_ptr();
        assert!(first.as_ref().iter().all(|byte| *byte == 1));
        assert!(held(&room, 60, 2).is_none());
        drop(first);
        let second = held(&room, 50, 2).unwrap();
        assert_eq!(second.as_ref().as_ptr(), at);
        assert_eq!(second.as_ref().len(), 51 * UNIT_BYTES);
        assert!(second.as_ref().iter().all(|byte| *byte == 2));
        // All pages that it ever had still count.
        let third = held(&room, 40, 3).unwrap();
        assert!(held(&room, 1, 4).is_none());
        drop(second);
        assert_eq!(room.units_left(), 60);
        // What fits on the heap finds the room of the region that is idle.
        let (fourth, fifth) = (held(&room, 30, 4).unwrap(), held(&room, 30, 5).unwrap());
        assert!(held(&room, 1, 6).is_none());
        for (held, byte) in [(&third, 3), (&fourth, 4), (&fifth, 5)] {
            assert!(held.as_ref().iter().all(|found| *found == byte));
        }
        drop((third, fourth, fifth));
        assert_eq!(room.units_left(), 100);
    }

    #[test]
    fn what_does_not_fit_leaves_what_was_there() {
        for (bytes_max, each_max) in
            [(0, u64::MAX), (40 * UNIT_BYTES as u64, u64::MAX), (u64::MAX, 40 * UNIT_BYTES as u64)]
        {
            let room = Room::new(bytes_max.min(1 << 30), each_max);
            let (mut held, mut taken) = (room.begin(), 0);
            while taken < 100 && held.take(&[7; UNIT_BYTES]) {
                taken += 1;
            }
            assert!(taken <= 41, "{taken}");
            assert_eq!(held.as_ref(), vec![7; taken * UNIT_BYTES]);
        }
    }

    #[test]
    fn a_first_piece_that_is_large_has_room_or_none() {
        let room = Room::new(100 * UNIT_BYTES as u64, u64::MAX);
        let large = vec![1; 90 * UNIT_BYTES];
        let (mut first, mut second) = (room.begin(), room.begin());
        assert!(first.take(&large) && !second.take(&large));
        assert_eq!((first.as_ref(), second.as_ref()), (&large[..], &[][..]));
    }
}
