//! What a version will cost where it is served, told when it is published.

use crate::app::Gateway;
use serde::Serialize;
use utoipa::ToSchema;
use weft_proto::registry::v1 as pb;
use weft_proto::worker::v1::DescribeResponse;

/// What a version costs where it is served. Predictions are for workers like the one that described the base; null while there is none.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct CostBody {
    /// Of the canonical blob: what is stored, and moved to a worker that has it not.
    blob_bytes: u64,
    /// Elements of all low-rank factors.
    parameters: Option<u64>,
    /// What it takes of a worker's slots.
    slot_bytes: Option<u64>,
    /// The same as a share of all that a worker has for slots, 0 to 1; over 1: it never fits.
    slot_share: Option<f64>,
    /// How much longer a decode step of 8 rows takes than the base's alone, where each row has an adapter like this one of its own: the bytes that it
    /// reads more, over those of the base. A lower bound; 0.1 is 10 %.
    decode_tax_at_8: Option<f64>,
    /// The same with 32 rows.
    decode_tax_at_32: Option<f64>,
}

impl CostBody {
    pub(super) fn of(gateway: &Gateway, published: &pb::Published) -> Self {
        let base = gateway.mesh.pool.base().ok();
        Self::with(published, base.as_ref().map(|base| &*base.description))
    }

    fn with(published: &pb::Published, worker: Option<&DescribeResponse>) -> Self {
        let parameters = Some(published.parameters).filter(|parameters| *parameters > 0);
        // A worker that is older than these fields says 0.
        let element = worker.map(|worker| u64::from(worker.adapter_element_bytes)).filter(|bytes| *bytes > 0);
        let slot_bytes = parameters.zip(element).map(|(parameters, element)| parameters.saturating_mul(element));
        let share = |of: Option<u64>| Some(slot_bytes? as f64 / of.filter(|bytes| *bytes > 0)? as f64);
        let tax = share(worker.map(|worker| worker.weight_bytes));
        Self {
            blob_bytes: published.bytes,
            parameters,
            slot_bytes,
            slot_share: share(worker.map(|worker| worker.slot_bytes_max)),
            decode_tax_at_8: tax.map(|tax| 8.0 * tax),
            decode_tax_at_32: tax.map(|tax| 32.0 * tax),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_reads_every_adapter_beside_the_base() {
        let published = pb::Published { bytes: 5_000, parameters: 1_000, ..Default::default() };
        let worker = DescribeResponse {
            adapter_element_bytes: 2,
            weight_bytes: 100_000,
            slot_bytes_max: 8_000,
            ..Default::default()
        };
        let cost = CostBody::with(&published, Some(&worker));
        assert_eq!((cost.blob_bytes, cost.slot_bytes, cost.slot_share), (5_000, Some(2_000), Some(0.25)));
        assert_eq!((cost.decode_tax_at_8, cost.decode_tax_at_32), (Some(0.16), Some(0.64)));
    }

    #[test]
    fn what_nobody_knows_is_null() {
        let published = pb::Published { bytes: 5_000, parameters: 1_000, ..Default::default() };
        let cost = CostBody::with(&published, None);
        assert_eq!((cost.parameters, cost.slot_bytes, cost.decode_tax_at_8), (Some(1_000), None, None));
        let older =
            CostBody::with(&pb::Published { bytes: 1, ..Default::default() }, Some(&DescribeResponse::default()));
        assert_eq!((older.parameters, older.slot_bytes, older.slot_share), (None, None, None));
    }
}
