//! Stopping on purpose: one signal, seen by everybody, and a grace period.

use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A stop signal that many parts wait for. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A signal nobody has given yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A signal given by SIGTERM or SIGINT. A second one ends the process at once with status 130.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let shutdown = Self::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let given = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("stopping");
            given.trigger();
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            std::process::exit(130);
        });
        Ok(shutdown)
    }

    /// Gives the signal. Idempotent.
    pub fn trigger(&self) {
        self.0.cancel();
    }

    /// Whether it was given.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until it is given. Cancel safe.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }

    /// The same as a future that owns its handle, for `serve_with_shutdown`.
    pub fn wait_owned(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.clone().cancelled_owned()
    }

    /// A signal that is given `delay` after this one: readiness turns with the first, so that balancers turn away, and listeners
    /// close with the second. Must be called within a tokio runtime.
    #[must_use]
    pub fn delayed(&self, delay: Duration) -> Self {
        let (first, second) = (self.clone(), Self::new());
        let given = second.clone();
        tokio::spawn(async move {
            first.wait().await;
            tokio::time::sleep(delay).await;
            given.trigger();
        });
        second
    }

    /// A signal that is given with this one, or earlier on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}

/// Waits for the work, at most `grace` after the signal.
///
/// Returns `None` if the grace period ended first; the work is dropped then.
pub async fn within_grace<T>(work: impl Future<Output = T>, shutdown: &Shutdown, grace: Duration) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = async { shutdown.wait().await; tokio::time::sleep(grace).await } => None,
    }
}
