//! Tenants keep hours: what is asked for now, for each tenant, against what it asked for over a longer time.
//!
//! One adapter is asked for too seldom to say at what hour of its day it is; all adapters of its tenant together say it within half a
//! minute. So an adapter's demand is its own share over a long time times what its tenant does now.

use crate::demand::RECENT_HALF_LIFE_MS;
use crate::plan::{Adapter, sound};
use std::collections::HashMap;
use weft_types::TenantName;

/// So many requests as expected are added to what was counted: a tenant that asks for little has next to no trend.
const PRIOR_REQUESTS: f64 = 10.0;
/// A trend is within these: the demand of a tenant that has just begun is not known better than that.
const RANGE: (f64, f64) = (0.1, 3.0);

/// For each tenant its requests lately over those expected from the longer time; 1 is as always. Cost: linear in adapters.
pub(crate) fn trends(adapters: &[Adapter]) -> HashMap<&TenantName, f64> {
    let mut sums: HashMap<&TenantName, (f64, f64)> = HashMap::new();
    for adapter in adapters {
        let (recent, expected) = sums.entry(&adapter.tenant).or_default();
        *recent += sound(adapter.recent_requests_per_s);
        *expected += sound(adapter.requests_per_s);
    }
    let mean_life_s = RECENT_HALF_LIFE_MS as f64 / 1000.0 / std::f64::consts::LN_2;
    let trend = |(recent, expected): (f64, f64)| {
        let ratio = (recent * mean_life_s + PRIOR_REQUESTS) / (expected * mean_life_s + PRIOR_REQUESTS);
        ratio.clamp(RANGE.0, RANGE.1)
    };
    sums.into_iter().map(|(tenant, sums)| (tenant, trend(sums))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_types::Digest;

    fn adapter(n: u64, tenant: &str, requests_per_s: f64, recent_requests_per_s: f64) -> Adapter {
        Adapter {
            digest: Digest::of(&n.to_le_bytes()),
            tenant: tenant.parse().unwrap(),
            rank: 8,
            bytes: 1,
            requests_per_s,
            recent_requests_per_s,
            work_ms_per_s: 0.0,
            pinned_copies: 0,
        }
    }

    fn of(adapters: &[Adapter], tenant: &str) -> f64 {
        trends(adapters)[&tenant.parse::<TenantName>().unwrap()]
    }

    #[test]
    fn a_tenant_s_adapters_rise_and_fall_together() {
        let adapters = [
            adapter(1, "day", 10.0, 25.0),
            adapter(2, "day", 10.0, 15.0),
            adapter(3, "night", 20.0, 2.0),
            adapter(4, "even", 20.0, 20.0),
        ];
        let (day, night, even) = (of(&adapters, "day"), of(&adapters, "night"), of(&adapters, "even"));
        assert!((1.9..2.0).contains(&day), "{day}");
        assert!((0.1..0.13).contains(&night), "{night}");
        assert_eq!(even, 1.0);
    }

    #[test]
    fn one_request_makes_no_trend_and_nothing_leaves_the_range() {
        let one_request = 1.0 / 28.85;
        let seldom = of(&[adapter(1, "a", 0.01, one_request)], "a");
        assert!((1.0..1.1).contains(&seldom), "{seldom}");
        assert_eq!(of(&[adapter(1, "a", 0.0, 1e9)], "a"), RANGE.1);
        assert_eq!(of(&[adapter(1, "a", 1e9, 0.0)], "a"), RANGE.0);
        assert_eq!(of(&[adapter(1, "a", f64::NAN, f64::INFINITY)], "a"), 1.0);
    }
}
