use super::*;
use proptest::prelude::*;
use prost::Message;

fn digest(number: u32) -> Digest {
    Digest::of(&number.to_le_bytes())
}

fn held(numbers: impl IntoIterator<Item = u32>) -> Held {
    numbers.into_iter().map(|number| (digest(number), Tier::Slot)).collect()
}

#[test]
fn a_follower_from_the_start_has_what_was_told() {
    let (mut teller, mut follower) = (Teller::default(), Follower::default());
    for (generation, state) in [(3, held(0..5)), (4, held(2..9)), (4, held(2..9)), (9, held([]))] {
        for piece in teller.tell(state.clone(), generation) {
            assert_eq!(follower.hear("a", &piece), Heard::Current);
        }
        assert_eq!((follower.held(), follower.generation()), (&state, generation));
    }
}

#[test]
fn a_missed_generation_is_a_gap_until_the_list_is_had() {
    let (mut teller, mut follower) = (Teller::default(), Follower::default());
    teller.tell(held(0..5), 1);
    let second = teller.tell(held(0..6), 2);
    assert_eq!(follower.hear("a", &second[0]), Heard::Gap);
    // Also once nothing changes any more.
    let idle = teller.tell(held(0..6), 2);
    assert_eq!(follower.hear("a", &idle[0]), Heard::Gap);
    follower.list("a", 2, held(0..6));
    assert_eq!(follower.hear("a", &idle[0]), Heard::Current);
    assert_eq!(follower.held(), &held(0..6));
}

#[test]
fn a_restarted_process_starts_over() {
    let mut follower = Follower::default();
    follower.list("a", 7, held(0..6));
    let delta = Teller::default().tell(held(3..4), 1);
    assert_eq!(follower.hear("b", &delta[0]), Heard::Current);
    assert_eq!((follower.held(), follower.generation()), (&held(3..4), 1));
    // And one whose first messages were missed is asked.
    follower.list("a", 7, held(0..6));
    let mut teller = Teller::default();
    teller.tell(held(0..1), 1);
    assert_eq!(follower.hear("b", &teller.tell(held(0..2), 2)[0]), Heard::Gap);
    assert!(follower.held().is_empty(), "nothing of the dead process is left");
}

#[test]
fn pieces_stay_below_the_limit_and_a_lost_one_is_a_gap() {
    let many = held(0..5 * CHANGES_MAX as u32 / 2);
    let pieces = Teller::default().tell(many.clone(), 1);
    assert_eq!(pieces.len(), 3);
    let carrier = |delta: &pb::ResidencyDelta| pb::WorkerHeartbeat {
        worker: "w".repeat(256),
        address: "a".repeat(256),
        incarnation: "i".repeat(64),
        residency: Some(delta.clone()),
        ..Default::default()
    };
    assert!(pieces.iter().all(|piece| carrier(piece).encoded_len() < crate::MESSAGE_BYTES_MAX));
    let mut whole = Follower::default();
    assert!(pieces.iter().all(|piece| whole.hear("a", piece) == Heard::Current));
    assert_eq!((whole.held(), whole.generation()), (&many, 1));
    let mut torn = Follower::default();
    let heard: Vec<_> = [0, 2].map(|at| torn.hear("a", &pieces[at])).into();
    assert_eq!((heard, torn.generation()), (vec![Heard::Current, Heard::Gap], 0));
}

#[test]
fn what_is_malformed_or_too_much_is_left_out() {
    let mut follower = Follower::default();
    let change = |digest: Vec<u8>| pb::ResidencyChange { digest: digest.into(), tier: 99 };
    let delta =
        pb::ResidencyDelta { generation: 1, changes: vec![change(vec![1]), change(vec![])], ..Default::default() };
    assert_eq!(follower.hear("a", &delta), Heard::Current);
    assert!(follower.held().is_empty());
    follower.list("a", 1, held(0..HELD_MAX as u32 + 10));
    assert_eq!(follower.held().len(), HELD_MAX);
    let last = pb::ResidencyDelta { piece: u32::MAX - 1, pieces: u32::MAX, generation: 9, ..Default::default() };
    assert_eq!(follower.hear("a", &last), Heard::Gap);
}

proptest! {
    /// Whatever is lost, doubled or listed meanwhile: a follower that lists at each gap ends up with the truth once things are quiet and
    /// it has listed once more.
    #[test]
    fn a_follower_that_lists_at_gaps_is_right_after_the_next_list(
        states in proptest::collection::vec((proptest::collection::vec(0u32..12, 0..8), 0u8..4), 1..30),
    ) {
        let (mut teller, mut follower) = (Teller::default(), Follower::default());
        let mut truth = Held::default();
        for (numbers, fate) in states {
            truth = held(numbers);
            let pieces = teller.tell_next(truth.clone());
            let times = usize::from(fate).min(2);
            for piece in pieces.iter().flat_map(|piece| std::iter::repeat_n(piece, times)) {
                if follower.hear("a", piece) == Heard::Gap {
                    follower.list("a", teller.generation(), truth.clone());
                }
                prop_assert_eq!(follower.held(), &truth);
                prop_assert_eq!(follower.generation(), teller.generation());
            }
        }
        follower.list("a", teller.generation(), truth.clone());
        prop_assert_eq!(follower.held(), &truth);
    }
}

#[test]
fn a_teller_that_starts_over_heals_a_gap_without_being_asked() {
    let (mut teller, mut follower) = (Teller::default(), Follower::default());
    follower.hear("a", &teller.tell(held(0..5), 1)[0]);
    teller.tell(held(3..8), 2);
    assert_eq!(follower.hear("a", &teller.tell(held(3..9), 3)[0]), Heard::Gap);
    teller.start_over();
    for piece in teller.tell(held(3..9), 3) {
        assert_eq!(follower.hear("a", &piece), Heard::Current);
    }
    assert_eq!((follower.held(), follower.generation()), (&held(3..9), 3), "what went meanwhile is gone here too");
}
