//! Stories of the accumulator: what leaves when, and in which order.

use super::*;

const LIMITS: AccumulatorLimits = AccumulatorLimits {
    batch_bytes: 200,
    linger_ms: 10,
    partition_request_bytes_max: 500,
    partition_request_batches_max: 3,
    delivery_timeout_ms: 1_000,
    keep_tags: true,
};

fn key(partition: u32) -> PartitionKey {
    ("t".into(), partition)
}

/// Pushes a record with a value of `bytes` bytes, tagged `tag`.
fn push(accumulator: &mut Accumulator, partition: u32, tag: u64, bytes: usize, now_ms: u64) -> Pushed {
    let value = vec![b'v'; bytes];
    let record = NewRecord { value: Some(&value), ..NewRecord::default() };
    let entry = Entry { tag, reserved_bytes: bytes };
    accumulator.push(&key(partition), &record, entry, now_ms).expect("fits a batch")
}

/// The tags that leave now, per partition and batch.
fn drain(accumulator: &mut Accumulator, now_ms: u64) -> Vec<(u32, Vec<Vec<u64>>)> {
    sends(accumulator, now_ms).iter().map(tags).collect()
}

fn sends(accumulator: &mut Accumulator, now_ms: u64) -> Vec<PartitionSend> {
    accumulator.drain(now_ms, |_, _, _| true)
}

fn tags(send: &PartitionSend) -> (u32, Vec<Vec<u64>>) {
    (send.key.1, send.batches.iter().map(|batch| batch.tags.clone()).collect())
}

#[test]
fn an_open_batch_leaves_after_its_linger_and_a_full_one_at_once() {
    let mut accumulator = Accumulator::new(LIMITS);
    assert!(push(&mut accumulator, 0, 1, 50, 100).wake_sender, "a timer starts");
    assert_eq!(accumulator.next_wake_ms(), Some(110));
    assert_eq!(drain(&mut accumulator, 109), []);
    assert!(!push(&mut accumulator, 0, 2, 50, 105).wake_sender, "nothing changes for the sender");
    let third = push(&mut accumulator, 0, 3, 50, 106);
    assert!(third.closed_batch && third.wake_sender);
    assert_eq!(third.index, 0);
    assert_eq!(drain(&mut accumulator, 106), [(0, vec![vec![1, 2]])]);
    assert_eq!(drain(&mut accumulator, 500), [], "one request per partition is on its way");
    accumulator.completed(&key(0));
    assert_eq!(drain(&mut accumulator, 116), [(0, vec![vec![3]])]);
    accumulator.completed(&key(0));
    assert!(accumulator.is_empty());
    assert_eq!(accumulator.next_wake_ms(), None);
}

#[test]
fn closed_batches_travel_together_up_to_the_limit_of_a_request() {
    let mut accumulator = Accumulator::new(LIMITS);
    for tag in 0..8 {
        push(&mut accumulator, 0, tag, 100, 0); // 1 record of 107 bytes a batch of 168
    }
    assert_eq!(drain(&mut accumulator, 1), [(0, vec![vec![0], vec![1]])]);
    accumulator.completed(&key(0));
    assert_eq!(drain(&mut accumulator, 1).len(), 1);
}

#[test]
fn a_request_is_repeated_as_it_was_and_has_few_batches() {
    let mut accumulator =
        Accumulator::new(AccumulatorLimits { partition_request_bytes_max: 5_000, ..LIMITS });
    for tag in 0..6 {
        push(&mut accumulator, 0, tag, 100, 0);
    }
    let first = sends(&mut accumulator, 1).pop().expect("one partition");
    assert_eq!(tags(&first), (0, vec![vec![0], vec![1], vec![2]]));
    accumulator.give_back(&key(0), first.batches, 2);
    let second = sends(&mut accumulator, 2).pop().expect("one partition");
    assert_eq!(tags(&second), (0, vec![vec![0], vec![1], vec![2]]));
    accumulator.completed(&key(0));
    assert_eq!(drain(&mut accumulator, 50), [(0, vec![vec![3], vec![4], vec![5]])]);
}

#[test]
fn a_huge_record_leaves_alone() {
    let mut accumulator = Accumulator::new(LIMITS);
    push(&mut accumulator, 0, 1, 20, 0);
    push(&mut accumulator, 0, 2, 300, 0);
    push(&mut accumulator, 0, 3, 20, 0);
    assert_eq!(drain(&mut accumulator, 50), [(0, vec![vec![1]])]);
    accumulator.completed(&key(0));
    assert_eq!(drain(&mut accumulator, 50), [(0, vec![vec![2]])]);
    accumulator.completed(&key(0));
    assert_eq!(drain(&mut accumulator, 50), [(0, vec![vec![3]])]);
}

#[test]
fn a_retried_batch_goes_before_everything_that_came_later() {
    let mut accumulator = Accumulator::new(LIMITS);
    push(&mut accumulator, 0, 1, 100, 0);
    push(&mut accumulator, 0, 2, 100, 0);
    let mut first = sends(&mut accumulator, 0);
    assert_eq!(first.len(), 1);
    let first = first.pop().expect("one partition");
    assert_eq!(tags(&first), (0, vec![vec![1]]));
    push(&mut accumulator, 0, 3, 100, 5);
    accumulator.give_back(&key(0), first.batches, 50);
    assert_eq!(accumulator.next_wake_ms(), Some(50));
    assert_eq!(drain(&mut accumulator, 49), []);
    let again = sends(&mut accumulator, 50);
    assert_eq!(tags(&again[0]), (0, vec![vec![1]]), "as it was, and nothing with it");
    assert_eq!(again[0].batches[0].attempts, 2);
    accumulator.completed(&key(0));
    assert_eq!(drain(&mut accumulator, 50), [(0, vec![vec![2], vec![3]])]);
}

#[test]
fn batches_expire_oldest_first_but_not_on_their_way() {
    let mut accumulator = Accumulator::new(LIMITS);
    push(&mut accumulator, 0, 1, 100, 0);
    push(&mut accumulator, 0, 2, 100, 400);
    push(&mut accumulator, 1, 9, 100, 0);
    let sent = sends(&mut accumulator, 401);
    assert_eq!(sent.len(), 2);
    let (zero, one): (Vec<_>, Vec<_>) = sent.into_iter().partition(|send| send.key.1 == 0);
    assert!(accumulator.expire(1_200).is_empty(), "a request has a timeout of its own");
    assert_eq!(one.len(), 1);
    for send in zero {
        accumulator.give_back(&send.key, send.batches, 5_000);
    }
    let expired = accumulator.expire(1_200);
    assert_eq!(expired.iter().map(tags).collect::<Vec<_>>(), [(0, vec![vec![1]])]);
    assert_eq!(accumulator.next_wake_ms(), Some(1_400));
    assert_eq!(accumulator.expire(1_400).iter().map(tags).collect::<Vec<_>>(), [(0, vec![vec![2]])]);
    assert!(!accumulator.is_empty(), "partition 1 is still on its way");
    accumulator.completed(&key(1));
    assert!(accumulator.is_empty());
}

#[test]
fn flush_closes_what_is_open_and_lists_all_that_is_under_way() {
    let mut accumulator = Accumulator::new(LIMITS);
    push(&mut accumulator, 0, 1, 100, 0);
    assert_eq!(sends(&mut accumulator, 10).len(), 1);
    push(&mut accumulator, 0, 2, 100, 11);
    push(&mut accumulator, 1, 3, 10, 11);
    assert_eq!(accumulator.close_open_batches().len(), 3);
    assert_eq!(drain(&mut accumulator, 11), [(1, vec![vec![3]])]);
    accumulator.completed(&key(0));
    assert_eq!(drain(&mut accumulator, 11), [(0, vec![vec![2]])]);
}

#[test]
fn a_refused_partition_stays_and_the_oldest_is_asked_first() {
    let mut accumulator = Accumulator::new(LIMITS);
    push(&mut accumulator, 1, 1, 10, 0);
    push(&mut accumulator, 0, 2, 10, 5);
    let mut asked = Vec::new();
    let taken = accumulator.drain(20, |key, _, _| {
        asked.push(key.1);
        key.1 == 0
    });
    assert_eq!(asked, [1, 0]);
    assert_eq!(taken.iter().map(tags).collect::<Vec<_>>(), [(0, vec![vec![2]])]);
    accumulator.postpone(&key(1), 60);
    assert_eq!(drain(&mut accumulator, 59), []);
    assert_eq!(drain(&mut accumulator, 60), [(1, vec![vec![1]])]);
}

#[test]
fn abandoning_takes_everything_that_waits() {
    let mut accumulator = Accumulator::new(LIMITS);
    push(&mut accumulator, 0, 1, 100, 0);
    push(&mut accumulator, 0, 2, 100, 0);
    assert_eq!(accumulator.abandon().iter().map(tags).collect::<Vec<_>>(), [(0, vec![vec![1], vec![2]])]);
    assert!(accumulator.is_empty());
}
