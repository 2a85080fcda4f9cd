//! Whose text is read next: a few prompts at once, tenants one after another.
//!
//! Rendering and tokenizing cost time before the scheduler sees a request; without turns here a tenant that sends many
//! long prompts would keep everybody else's from even being queued.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use weft_batching::turns::{Tenant, TurnQueue};

use crate::Error;

/// Hands out a few turns. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Turns(Arc<Mutex<State>>);

struct State {
    free: usize,
    waiting_max: usize,
    queue: TurnQueue<u64>,
    waiting: HashMap<u64, Waiter>,
    by_tenant: HashMap<Tenant, usize>,
    next_ticket: u64,
}

struct Waiter {
    tenant: Tenant,
    /// Gets the turn. Dropped without one: pushed out.
    turn: oneshot::Sender<Turn>,
}

/// The right to read one prompt. Dropped: the next in turn gets it.
pub(crate) struct Turn(Option<Turns>);

/// A place in the queue, given up when dropped.
struct Place<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Turns {
    /// `at_once` turns, and room for `waiting_max` who wait for one.
    pub(crate) fn new(at_once: usize, waiting_max: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: at_once,
            waiting_max,
            queue: TurnQueue::default(),
            waiting: HashMap::new(),
            by_tenant: HashMap::new(),
            next_ticket: 0,
        })))
    }

    /// Waits for a turn. Cancel safe: who leaves gives up the place, and the turn if it came meanwhile.
    ///
    /// When all places are taken, the newest waiter of the tenant that has most of them makes room, if that tenant has
    /// at least two more than this one: a flood pushes out its own, as in the scheduler's queue.
    ///
    /// # Errors
    /// [`Error::QueueFull`]: no place, or pushed out of it.
    pub(crate) async fn turn(&self, tenant: &str) -> Result<Turn, Error> {
        let (place, turn, limit) = {
            let mut state = self.state();
            let limit = state.waiting_max;
            if state.free > 0 {
                // Somebody waits only while none is free.
                state.free -= 1;
                return Ok(Turn(Some(self.clone())));
            }
            if !state.make_room(tenant) {
                return Err(Error::QueueFull { queued: limit, limit });
            }
            let (sender, turn) = oneshot::channel();
            (Place { turns: self, ticket: state.push(tenant.into(), sender) }, turn, limit)
        };
        let turn = turn.await.map_err(|_| Error::QueueFull { queued: limit, limit });
        drop(place);
        turn
    }

    /// Gives a turn on to the next who still waits.
    fn pass_on(self) {
        loop {
            let waiter = {
                let mut state = self.state();
                match state.queue.pop().and_then(|ticket| state.leave(ticket)) {
                    Some(waiter) => waiter,
                    None => {
                        state.free += 1;
                        return;
                    }
                }
            };
            match waiter.turn.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // Left at this moment; this turn is ours to give again.
                Err(mut unwanted) => unwanted.0 = None,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, tenant: Tenant, turn: oneshot::Sender<Turn>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.push(&tenant, ticket);
        *self.by_tenant.entry(tenant.clone()).or_default() += 1;
        self.waiting.insert(ticket, Waiter { tenant, turn });
        ticket
    }

    /// Whether there is a place for one more of this tenant.
    fn make_room(&mut self, tenant: &str) -> bool {
        if self.waiting.len() < self.waiting_max {
            return true;
        }
        let own = self.by_tenant.get(tenant).copied().unwrap_or(0);
        let Some((flood, most)) = self.by_tenant.iter().max_by_key(|(_, count)| **count) else { return false };
        if *most < own + 2 {
            return false;
        }
        match self.queue.newest_of(flood) {
            // Dropping the waiter tells it.
            Some(ticket) => self.leave(ticket).is_some(),
            None => false,
        }
    }

    fn leave(&mut self, ticket: u64) -> Option<Waiter> {
        let waiter = self.waiting.remove(&ticket)?;
        // Gone already if it was popped.
        self.queue.remove(&waiter.tenant, ticket);
        if let Some(count) = self.by_tenant.get_mut(&waiter.tenant) {
            *count -= 1;
            if *count == 0 {
                self.by_tenant.remove(&waiter.tenant);
            }
        }
        Some(waiter)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let left = self.turns.state().leave(self.ticket);
        // Outside the lock: a turn that is on its way is passed on when its channel is dropped.
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Turn, Error>> + 'a>>;

    fn wait<'a>(turns: &'a Turns, tenant: &'a str) -> Waiting<'a> {
        let mut waiting: Waiting<'a> = Box::pin(turns.turn(tenant));
        assert!(poll(&mut waiting).is_none(), "no turn is free");
        waiting
    }

    fn poll(waiting: &mut Waiting<'_>) -> Option<Result<Turn, Error>> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn tenants_take_turns_however_many_wait_for_one() {
        let turns = Turns::new(1, 16);
        let first = turns.turn("flood").await.unwrap();
        let mut flood: Vec<_> = (0..4).map(|_| wait(&turns, "flood")).collect();
        let mut calm = wait(&turns, "calm");
        drop(first);
        let second = poll(&mut flood[0]).unwrap().unwrap();
        drop(second);
        assert!(poll(&mut flood[1]).is_none(), "it is the other tenant's turn");
        let third = poll(&mut calm).unwrap().unwrap();
        drop(third);
        assert!(poll(&mut flood[1]).unwrap().is_ok());
    }

    #[tokio::test]
    async fn who_leaves_costs_nobody_a_turn_and_keeps_no_place() {
        let turns = Turns::new(1, 2);
        let held = turns.turn("a").await.unwrap();
        for _ in 0..100 {
            drop(wait(&turns, "a"));
        }
        let mut left_too_late = wait(&turns, "a");
        let mut stays = wait(&turns, "a");
        drop(held);
        // The turn is on its way to one who leaves before taking it.
        drop(std::mem::replace(&mut left_too_late, Box::pin(std::future::pending())));
        let turn = poll(&mut stays).unwrap().unwrap();
        drop(turn);
        assert!(turns.turn("b").await.is_ok());
        let state = turns.state();
        assert_eq!((state.free, state.queue.len(), state.waiting.len(), state.by_tenant.len()), (1, 0, 0, 0));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_the_flood_and_makes_room_for_the_calm() {
        let turns = Turns::new(1, 3);
        let held = turns.turn("flood").await.unwrap();
        let mut flood: Vec<_> = (0..3).map(|_| wait(&turns, "flood")).collect();
        assert!(matches!(turns.turn("flood").await, Err(Error::QueueFull { queued: 3, limit: 3 })));
        let mut calm = wait(&turns, "calm");
        assert!(matches!(poll(&mut flood[2]), Some(Err(Error::QueueFull { .. }))), "the newest of the flood");
        assert!(matches!(turns.turn("calm").await, Err(Error::QueueFull { .. })), "1 and 2 are nearly even");
        drop(held);
        drop(poll(&mut flood[0]).unwrap().unwrap());
        assert!(poll(&mut calm).unwrap().is_ok());
    }
}
