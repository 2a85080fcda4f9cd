//! How an adapter gets from its digest into a slot, beside the step loop.
//!
//! 1. [`lease`]: a right to the bytes, from the cache daemon of this node.
//! 2. [`load`]: the file is mapped, packed and hashed on a blocking thread.
//! 3. [`slots`]: the loop puts it into a slot, and evicts idle ones for it.

pub(crate) mod lease;
pub(crate) mod load;
pub(crate) mod slots;
