//! The authority over a real S3 server: contenders, kills, pauses, lost replies, damage.

mod chaos;
mod election;
mod reading;
mod support;
