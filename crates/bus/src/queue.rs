//! Messages that wait for one subscriber: bounded, the oldest go first, and what goes is told.

use crate::port::Heard;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Written by the bus, read by one subscriber.
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
    capacity: usize,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Bytes>,
    /// The subscription is in force: [`Queue::miss`] was called. Nothing is heard before.
    has_begun: bool,
    /// Something was missed that the subscriber has not been told; so many were dropped here.
    missed: Option<u64>,
}

impl Queue {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { waiting: Mutex::default(), wake: Notify::new(), capacity: capacity.max(1) }
    }

    /// Takes a message in. True if the oldest had to go for it.
    pub(crate) fn push(&self, message: Bytes) -> bool {
        let mut waiting = self.lock();
        let is_full = waiting.messages.len() >= self.capacity;
        if is_full {
            waiting.messages.pop_front();
            *waiting.missed.get_or_insert(0) += 1;
        }
        waiting.messages.push_back(message);
        drop(waiting);
        self.wake.notify_one();
        is_full
    }

    /// The subscription begins, or messages for it may have been lost, nobody knows how many.
    pub(crate) fn miss(&self) {
        let mut waiting = self.lock();
        waiting.has_begun = true;
        waiting.missed.get_or_insert(0);
        drop(waiting);
        self.wake.notify_one();
    }

    pub(crate) async fn next(&self) -> Heard {
        loop {
            if let Some(heard) = self.try_next() {
                return heard;
            }
            self.wake.notified().await;
        }
    }

    fn try_next(&self) -> Option<Heard> {
        let mut waiting = self.lock();
        if !waiting.has_begun {
            return None;
        }
        if let Some(dropped) = waiting.missed.take() {
            return Some(Heard::Missed { dropped });
        }
        waiting.messages.pop_front().map(Heard::Message)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Each change is whole, so a poisoned lock carries no torn state.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
