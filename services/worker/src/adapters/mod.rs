//! How an adapter gets from its digest into a slot, beside the step loop.
//!
//! 1. [`loads`]: which adapters are on their way, how far, and who goes next.
//! 2. [`lease`]: a right to the bytes, from the cache daemon of this node; [`prefetch`] asks it to bring more bytes near.
//! 3. [`load`]: the file is mapped, packed and hashed on a blocking thread.
//! 4. [`slots`]: the loop puts it into a slot, and idle ones out of theirs into [`prepared`], from where they come back by
//!    moving a pointer. [`rates`] says what it would cost to bring one back from the daemon.
//!    [`blocks`]: on a device they lie in blocks that keys and values have a use for, too; [`streams`]: those that find none
//!    run from main memory meanwhile.
//! 5. [`pins`]: which ones an operator, or a placement, wants to stay.
//! 6. [`ahead`]: which ones a placement wants here before anybody asks.
//! 7. [`starved`]: loads that found no memory to be packed into.

pub(crate) mod ahead;
mod blocks;
pub(crate) mod lease;
pub(crate) mod load;
pub(crate) mod loads;
pub(crate) mod pins;
pub(crate) mod prefetch;
pub(crate) mod prepared;
pub(crate) mod rates;
pub(crate) mod slots;
pub(crate) mod starved;
mod streams;
