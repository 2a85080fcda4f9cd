//! `/admin/v1/placement`: what the authority has published last, as this gateway has it. And what operators set of it for a tenant.

use super::body::given;
use super::errors::OpenAiBody;
use crate::app::Gateway;
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::time::Instant;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_placement::Placed;
use weft_proto::registry::v1 as pb;

/// Largest floor and ceiling: as many copies as a placement has.
const COPIES_MAX: u32 = 100_000;

/// Which worker should hold which adapter.
#[derive(Serialize, ToSchema)]
pub(crate) struct PlacementBody {
    /// Larger is newer; 0: nothing was published yet, and adapters are where hashing puts them.
    epoch: u64,
    /// Grows with each election.
    term: u64,
    /// The registry process that published it. Null before the first.
    holder: Option<String>,
    workers: Vec<PlacedWorker>,
    adapters: Vec<PlacedAdapter>,
}

/// A worker of the placement.
#[derive(Serialize, ToSchema)]
pub(crate) struct PlacedWorker {
    address: String,
    /// Whether this gateway would send requests there now.
    up: bool,
    /// Copies that it should hold.
    copies: usize,
}

/// An adapter of the placement.
#[derive(Serialize, ToSchema)]
pub(crate) struct PlacedAdapter {
    digest: String,
    /// `tenant/name@version`; null if this gateway's directory does not show it.
    adapter: Option<String>,
    /// Addresses; its home first.
    workers: Vec<String>,
}

/// The last placement that this gateway has, which it routes by.
#[utoipa::path(get, path = "/admin/v1/placement", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "Epoch, holder, workers, and the copies of each adapter", body = PlacementBody),
        (status = 401, description = "No admin key", body = OpenAiBody)))]
pub(crate) async fn placement(State(gateway): State<Arc<Gateway>>) -> Json<PlacementBody> {
    let pool = &gateway.mesh.pool;
    let Some(placement) = pool.placement() else {
        let (workers, adapters) = (Vec::new(), Vec::new());
        return Json(PlacementBody { epoch: 0, term: 0, holder: None, workers, adapters });
    };
    let now = Instant::now();
    let known = pool.workers();
    let is_up = |address: &str| {
        let worker = known.iter().find(|worker| worker.placed_as() == address);
        worker.is_some_and(|worker| worker.read(|view| view.is_up(now, &pool.pace) && !view.load.draining))
    };
    let mut copies = vec![0; placement.workers.len()];
    for at in placement.adapters.iter().flat_map(|placed| &placed.1) {
        // A document's positions are checked when it is read.
        copies[usize::from(*at)] += 1;
    }
    let workers = placement.workers.iter().zip(copies).map(|(host, copies)| PlacedWorker {
        address: host.0.clone(),
        up: is_up(&host.0),
        copies,
    });
    let labels = gateway.directory.last().map(|snapshot| snapshot.labels()).unwrap_or_default();
    let adapters = placement.adapters.iter().map(|Placed(digest, on)| PlacedAdapter {
        digest: digest.to_string(),
        adapter: labels.get(digest).cloned(),
        workers: on.iter().map(|at| placement.workers[usize::from(*at)].0.clone()).collect(),
    });
    Json(PlacementBody {
        epoch: placement.epoch.number(),
        term: placement.epoch.term(),
        holder: Some(placement.holder.clone()),
        workers: workers.collect(),
        adapters: adapters.collect(),
    })
}

/// What placement promises a tenant and denies it.
#[derive(Serialize, ToSchema)]
pub(crate) struct PlacesBody {
    /// So many of its adapters, the most asked for, have a place whatever others ask for.
    floor: u32,
    /// At most so many copies of all its adapters, beyond pins; null: no such limit.
    ceiling: Option<u32>,
    pins: Vec<PinBody>,
}

/// A pinned version.
#[derive(Serialize, ToSchema)]
pub(crate) struct PinBody {
    digest: Option<String>,
    /// So many workers hold it in a slot; null: all of them.
    copies: Option<u32>,
}

impl From<Option<pb::Places>> for PlacesBody {
    fn from(places: Option<pb::Places>) -> Self {
        let places = places.unwrap_or_default();
        let pins = places.pins.iter().map(|pin| PinBody {
            digest: super::admin::digest(&pin.digest).map(|digest| digest.to_string()),
            copies: Some(pin.copies).filter(|copies| *copies > 0),
        });
        Self { floor: places.floor, ceiling: places.ceiling, pins: pins.collect() }
    }
}

/// Places to set: up to 100,000. What is absent stays as it is, null takes a ceiling away. Pins are set with `…/pin`.
#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlacesAsked {
    #[schema(maximum = 100_000)]
    floor: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 100_000)]
    ceiling: Option<Option<u32>>,
}

impl PlacesAsked {
    /// For the registry, which checks it too; here the answer names the field without a call.
    pub(super) fn change(&self) -> Result<pb::PlacesChange, Fault> {
        if let Some(floor) = self.floor.filter(|floor| *floor > COPIES_MAX) {
            return Err(Fault::invalid("places.floor", format!("{floor} is not from 0 to {COPIES_MAX}")));
        }
        if let Some(Some(ceiling)) = self.ceiling.filter(|asked| asked.is_some_and(|c| !(1..=COPIES_MAX).contains(&c)))
        {
            return Err(Fault::invalid("places.ceiling", format!("{ceiling} is not from 1 to {COPIES_MAX}")));
        }
        let ceiling = self.ceiling.map(|ceiling| ceiling.unwrap_or(0));
        Ok(pb::PlacesChange { floor: self.floor, ceiling, ..pb::PlacesChange::default() })
    }
}
