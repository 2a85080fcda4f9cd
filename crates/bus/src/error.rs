//! What can go wrong on the sender's side. A subscriber has no errors, only [`crate::Heard::Missed`].

/// Why a message was not sent, or a bus not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sender must cut it.
    #[error("a message on {subject} has {bytes} bytes, allowed are less than {max}")]
    TooLarge {
        /// Where it was to go.
        subject: &'static str,
        /// Its size.
        bytes: usize,
        /// What it must stay below.
        max: usize,
    },
    /// Dropped: there is no connection.
    #[error("the bus is away: {0}")]
    Away(String),
    /// Dropped: more is waiting to be sent than may wait.
    #[error("{max} messages wait to be sent")]
    Full {
        /// How many may wait.
        max: usize,
    },
    /// A setting has a value that cannot be used.
    #[error("setting {name}: {problem}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The metrics are registered already.
    #[error("metrics cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}
