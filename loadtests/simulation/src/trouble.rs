//! Which faults were there when: what a rule may ask before it blames a service.

use crate::machine;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A fault.
struct Trouble {
    /// One host, or the two ends of a link.
    hosts: Vec<&'static str>,
    /// When it ended. None: it is still there.
    to: Option<Duration>,
}

/// All faults so far.
#[derive(Default)]
pub(crate) struct Troubles(Mutex<Vec<Trouble>>);

impl Troubles {
    /// A fault of a host, or of the link between two, begins; its number is for [`Troubles::end`].
    pub(crate) fn begin(&self, hosts: &[&'static str]) -> usize {
        let mut all = self.all();
        all.push(Trouble { hosts: hosts.to_vec(), to: None });
        all.len() - 1
    }

    /// It has ended.
    pub(crate) fn end(&self, number: usize) {
        if let Some(trouble) = self.all().get_mut(number) {
            trouble.to = Some(machine::elapsed());
        }
    }

    /// Whether any of these hosts, or a link between two of them, had a fault at any time since `from`.
    #[must_use]
    pub(crate) fn touched(&self, hosts: &[&str], from: Duration) -> bool {
        self.all().iter().any(|trouble| {
            let is_here = trouble.hosts.iter().all(|host| hosts.contains(host));
            is_here && trouble.to.is_none_or(|to| to >= from)
        })
    }

    fn all(&self) -> MutexGuard<'_, Vec<Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_touches_whoever_has_all_its_ends_until_it_has_ended() {
        let troubles = Troubles::default();
        let link = troubles.begin(&["a", "b"]);
        assert!(troubles.touched(&["a", "b", "c"], Duration::ZERO));
        assert!(!troubles.touched(&["a", "c"], Duration::ZERO));
        troubles.end(link);
        assert!(troubles.touched(&["a", "b"], Duration::ZERO));
        assert!(!troubles.touched(&["a", "b"], Duration::from_millis(1)));
        troubles.begin(&["c"]);
        assert!(troubles.touched(&["a", "c"], Duration::from_secs(1000)));
    }
}
