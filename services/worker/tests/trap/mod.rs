//! A trap for the step loop: what is done on its thread whenever it logs. For a whole process, and so for programs of their own.

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

struct Trap(fn());

impl Subscriber for Trap {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        if std::thread::current().name() == Some("weft-step-loop") {
            (self.0)();
        }
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Sets it, once in a process.
pub(crate) fn set(when_the_loop_logs: fn()) {
    tracing::subscriber::set_global_default(Trap(when_the_loop_logs)).unwrap();
}
