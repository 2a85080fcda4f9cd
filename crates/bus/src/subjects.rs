//! What is published, by whom, and as which message of `weft.mesh.v1`.

use crate::Subject;

/// `WorkerHeartbeat`, by every worker.
pub const WORKER_HEARTBEAT: Subject = Subject::new("worker.heartbeat");
/// `WorkerResidency`: what does not fit into a heartbeat.
pub const WORKER_RESIDENCY: Subject = Subject::new("worker.residency");
/// `CacheResidency`, by every cache daemon.
pub const CACHE_RESIDENCY: Subject = Subject::new("cache.residency");
/// `RegistryChange`, by every registry after a write.
pub const REGISTRY_CHANGE: Subject = Subject::new("registry.change");
/// `AliasMoved`, by a registry that moved one.
pub const ALIAS_MOVED: Subject = Subject::new("alias.moved");
/// `GatewayDemand`, by every gateway: what was asked of it.
pub const GATEWAY_DEMAND: Subject = Subject::new("gateway.demand");
/// `PlacementPublished`, by the authority after each epoch.
pub const PLACEMENT_EPOCH: Subject = Subject::new("placement.epoch");
