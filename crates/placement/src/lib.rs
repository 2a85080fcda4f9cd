//! Where adapters should be, and where requests go: decisions as plain functions.
//!
//! Nothing here does IO, reads a clock or draws a random number: time comes in as milliseconds of the caller's own
//! monotonic clock, chance as a `u64` that the caller drew. Equal inputs give equal answers. `docs/placement.md` tells the
//! algorithm, its bounds and its sources.
//!
//! This room must not know NATS, S3, gRPC, tenants' keys or how a load is done.
//!
//! 1. [`Demand`]: what is asked for, as decayed rates.
//!    [`Speeds`] turn tokens into the worker's time that they cost.
//! 2. [`plan`]: demand, tenants' hours, budgets, pins and floors turned into desired residency. [`hold`] keeps what an authority
//!    that has listened for a short time only cannot judge; [`by_worker`] tells workers what is wanted of them.
//! 3. [`Epoch`] and [`Document`]: a numbered placement as bytes, and strict reading of such bytes.
//! 4. [`Map`]: a document and the workers that are there, ready for routing: the replica set and the spill set of an
//!    adapter in constant time, over a [`Table`].
//! 5. [`choose`]: the worker for one request, by predicted time to first token.
//! 6. [`Breaker`]: who is left alone after failures.

mod assign;
mod breaker;
mod copies;
mod demand;
mod desired;
mod document;
mod hash;
mod hold;
mod map;
mod plan;
mod route;
mod speeds;
mod table;
mod trend;

pub use breaker::{Breaker, BreakerSettings, Permit};
pub use demand::{Demand, DemandSettings, RECENT_HALF_LIFE_MS, Rates};
pub use desired::{Desired, by_worker};
pub use document::{
    ADAPTERS_MAX, COPIES_MAX, DOCUMENT_BYTES_MAX, Document, DocumentError, Epoch, Host, Placed, WORKER_NAME_BYTES_MAX,
    WORKERS_MAX,
};
pub use hold::hold;
pub use map::{Map, ORDER_PROBES_MAX, Sets};
pub use plan::{Adapter, Observed, Plan, PlanSettings, Tenant, Worker, plan};
pub use route::{
    Availability, Bandwidth, COMPARED_MAX, Choice, INSIDE_PROBES_MAX, LOAD_BYTES_MORE, NoWorker, Place, Prediction,
    Request, RouteSettings, SPILL_PROBES_MAX, Tier, View, WorkerLoad, choose, predict,
};
pub use speeds::Speeds;
pub use table::{TABLE_SLOTS, Table};
