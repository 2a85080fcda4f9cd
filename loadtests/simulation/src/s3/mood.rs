//! How S3 misbehaves: what becomes of each request, drawn from the seed.

use crate::random::{between_ms, stream};
use rand::Rng;
use rand::rngs::SmallRng;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How the server is now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Mood {
    /// As it should be.
    #[default]
    Well,
    /// Most requests are refused.
    Storm,
    /// Answers come late.
    Slow,
    /// Some requests are carried out and their answers lost.
    Forgetful,
    /// Some requests are never answered.
    Hung,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Turn {
    Plain,
    Late(Duration),
    Refused,
    Lost,
    Never,
}

impl Turn {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "s3 request",
            Self::Late(_) => "s3 answer late",
            Self::Refused => "s3 request refused",
            Self::Lost => "s3 answer lost",
            Self::Never => "s3 request never answered",
        }
    }
}

/// The mood and its chance.
pub(crate) struct Moods(Mutex<(Mood, SmallRng)>);

impl Moods {
    /// A server that is well.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new((Mood::Well, stream(seed, "s3"))))
    }

    /// From now on it is like this.
    pub(crate) fn set(&self, mood: Mood) {
        self.state().0 = mood;
    }

    pub(super) fn turn(&self) -> Turn {
        let mut state = self.state();
        let (mood, random) = &mut *state;
        match mood {
            Mood::Well => Turn::Plain,
            Mood::Storm if random.random_bool(0.8) => Turn::Refused,
            Mood::Slow => Turn::Late(between_ms(random, 100, 4000)),
            Mood::Forgetful if random.random_bool(0.4) => Turn::Lost,
            Mood::Hung if random.random_bool(0.6) => Turn::Never,
            Mood::Storm | Mood::Forgetful | Mood::Hung => Turn::Plain,
        }
    }

    fn state(&self) -> MutexGuard<'_, (Mood, SmallRng)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
