//! Who may call whom, in one table.

use super::Service;

/// What a caller may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    Everything,
    /// These methods: `/package.Service/Method`.
    Only(&'static [&'static str]),
}

/// Caller, whom it calls, and what. Who is not here is refused.
const TABLE: &[(Service, Service, Calls)] = &[
    (Service::Gateway, Service::Worker, Calls::Everything),
    (Service::Gateway, Service::Registry, Calls::Everything),
    // It runs the models of strangers: tenants and keys are none of its business.
    (
        Service::Worker,
        Service::Registry,
        Calls::Only(&[
            "/weft.registry.v1.Registry/AnnounceBase",
            "/weft.registry.v1.Registry/KeepResidency",
            "/weft.registry.v1.Registry/WatchDesired",
        ]),
    ),
    (
        Service::Worker,
        Service::CacheDaemon,
        Calls::Only(&["/weft.cache.v1.CacheDaemon/Lease", "/weft.cache.v1.CacheDaemon/Prefetch"]),
    ),
    // A neighbour reads what is there: what is brought there, and kept, is for that node's workers to say.
    (
        Service::CacheDaemon,
        Service::CacheDaemon,
        Calls::Only(&["/weft.cache.v1.CacheDaemon/ReadBlob", "/weft.cache.v1.CacheDaemon/ListResidency"]),
    ),
];

/// Whoever has a certificate of the mesh may ask whether a service is well.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Whether `caller` may call the method at `path` of `callee`.
pub(super) fn may_call(caller: Service, callee: Service, path: &str) -> bool {
    let allowed = TABLE.iter().find(|(from, to, _)| (*from, *to) == (caller, callee)).map(|(.., calls)| *calls);
    path.starts_with(HEALTH)
        || match allowed {
            Some(Calls::Everything) => true,
            Some(Calls::Only(methods)) => methods.contains(&path),
            None => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATE: &str = "/weft.worker.v1.Worker/Generate";
    const LEASE: &str = "/weft.cache.v1.CacheDaemon/Lease";
    const PREFETCH: &str = "/weft.cache.v1.CacheDaemon/Prefetch";
    const READ_BLOB: &str = "/weft.cache.v1.CacheDaemon/ReadBlob";
    const LIST: &str = "/weft.cache.v1.CacheDaemon/ListResidency";
    const KEY: &str = "/weft.registry.v1.Registry/CreateKey";
    const ANNOUNCE: &str = "/weft.registry.v1.Registry/AnnounceBase";
    const DESIRED: &str = "/weft.registry.v1.Registry/WatchDesired";
    const RESIDENCY: &str = "/weft.registry.v1.Registry/KeepResidency";
    const USAGE: &str = "/weft.registry.v1.Registry/KeepUsage";
    const PLACEMENT: &str = "/weft.registry.v1.Registry/WatchPlacement";

    #[test]
    fn prompts_come_from_gateways_alone_leases_go_to_workers_and_blobs_to_neighbours() {
        let callers = |callee, path| -> Vec<Service> {
            Service::ALL.into_iter().filter(|caller| may_call(*caller, callee, path)).collect()
        };
        assert_eq!(callers(Service::Worker, GENERATE), [Service::Gateway]);
        assert_eq!(callers(Service::CacheDaemon, LEASE), [Service::Worker]);
        assert_eq!(callers(Service::CacheDaemon, PREFETCH), [Service::Worker]);
        assert_eq!(callers(Service::CacheDaemon, READ_BLOB), [Service::CacheDaemon]);
        assert_eq!(callers(Service::CacheDaemon, LIST), [Service::CacheDaemon]);
        assert_eq!(callers(Service::Registry, KEY), [Service::Gateway]);
        assert_eq!(callers(Service::Registry, ANNOUNCE), [Service::Gateway, Service::Worker]);
        assert_eq!(callers(Service::Registry, DESIRED), [Service::Gateway, Service::Worker]);
        assert_eq!(callers(Service::Registry, RESIDENCY), [Service::Gateway, Service::Worker]);
        assert_eq!(callers(Service::Registry, USAGE), [Service::Gateway]);
        assert_eq!(callers(Service::Registry, PLACEMENT), [Service::Gateway]);
        assert_eq!(callers(Service::Gateway, GENERATE), []);
    }

    #[test]
    fn everybody_of_the_mesh_may_ask_for_health_and_nothing_that_looks_like_it() {
        assert!(may_call(Service::Registry, Service::Worker, "/grpc.health.v1.Health/Check"));
        for path in ["/grpc.health.v1.Healthy/Check", "/x/grpc.health.v1.Health/Check", "", "/"] {
            assert!(!may_call(Service::Registry, Service::Worker, path), "{path}");
        }
        assert!(!may_call(Service::Worker, Service::Registry, "/weft.registry.v1.Registry/AnnounceBase/CreateKey"));
    }
}
