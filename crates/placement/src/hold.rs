//! What an authority that has not listened for long leaves as it is.

use crate::document::Placed;
use crate::plan::{Adapter, Observed};
use std::collections::HashMap;
use weft_types::Digest;

/// Pins every copy of the last placement, as far as its adapters are known: who has listened for a few seconds only does not know what
/// is rarely asked for, and would take its places away. `known` gives an adapter that nobody was heard asking for. Cost: linear in
/// adapters.
pub fn hold(observed: &mut Observed, last: &[Placed], mut known: impl FnMut(&Digest) -> Option<Adapter>) {
    let heard: HashMap<Digest, usize> =
        observed.adapters.iter().enumerate().map(|(at, adapter)| (adapter.digest, at)).collect();
    for Placed(digest, on) in last {
        let copies = u32::try_from(on.len()).unwrap_or(u32::MAX);
        let adapter = match heard.get(digest) {
            Some(at) => &mut observed.adapters[*at],
            None => {
                let Some(adapter) = known(digest) else { continue };
                observed.adapters.push(adapter);
                let Some(adapter) = observed.adapters.last_mut() else { continue };
                adapter
            }
        };
        adapter.pinned_copies = adapter.pinned_copies.max(copies);
    }
}
