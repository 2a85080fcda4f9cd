//! How far a simulation is.

/// In this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Processes start, tenants and first versions are made; nothing fails.
    SettingUp,
    /// Faults come and go, everybody asks and writes.
    Faults,
    /// All faults have ended; clients finish what they began, then the mesh is looked at.
    Healed,
    /// There is nothing more to see.
    Over,
}
