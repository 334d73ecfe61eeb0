//! Failovers, each the story of one historical way to lose committed records.

use std::future::{Future, poll_fn};
use std::task::Poll;

use corelog_engine::batch::BatchFields;
use corelog_engine::log::FlushPolicy::Commit;
use corelog_engine::{LeaderEpoch, Offset};
use corelog_replication::derived::SequenceError;
use corelog_replication::{
    Ack, ConnectionId, CurrentRole, FollowError, FollowRequest, FollowerError, LeaderError, ProduceError,
    ReplicaEnds, RoleError, WaitError,
};
use corelog_sim::{Crash, Executor};

use crate::by_hand::{INTERVAL, NOW, Node, Stream, batch, replica, settled, term};

fn told(records: &[(&str, u32)]) -> Vec<(String, u32)> {
    records.iter().map(|(text, epoch)| ((*text).to_owned(), *epoch)).collect()
}

/// R2, R7: durable on the leader alone is not committed.
#[test]
fn acks_all_waits_for_every_member_of_the_isr() {
    let executor = Executor::new(1);
    executor.run_until(async {
        let (a, b) = (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
        a.lead(1, &[1, 2]);
        let stream = Stream::follow(&b, &a, 1, 1).await;
        stream.report();
        let end = a.produce("a0").await.unwrap().end_offset;
        let acked = executor.spawn(a.partition.acked(Ack::All, end).unwrap());
        a.partition.acked(Ack::Leader, end).unwrap().await.unwrap();
        stream.copy().await;
        stream.report();
        assert_eq!(a.partition.high_watermark(), Offset(0), "copied, but not synced");
        assert!(!acked.is_finished());
        stream.catch_up().await;
        acked.await.unwrap();
        assert_eq!(b.partition.high_watermark(), Offset(0), "it has not been told");
        stream.send_marks().await;
        assert_eq!(b.partition.high_watermark(), end);
        assert_eq!(b.records().await, told(&[("a0", 1)]));
    });
}

/// KIP-101, first scenario: a follower that restarts does not know how far it is committed. Cutting at the high
/// watermark that it knows would lose what it has acked, if the leader dies before it has copied it again.
#[test]
fn a_follower_that_restarts_keeps_what_it_has_acked() {
    for crash in [Crash::Kill, Crash::PowerLoss] {
        let executor = Executor::new(2);
        executor.run_until(async {
            let (mut a, mut b) =
                (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
            a.lead(1, &[1, 2]);
            let stream = Stream::follow(&b, &a, 1, 1).await;
            let end = a.produce("a0").await.unwrap().end_offset;
            let acked = a.partition.acked(Ack::All, end).unwrap();
            stream.catch_up().await;
            acked.await.unwrap();
            assert_eq!(b.partition.high_watermark(), Offset(0), "it was not told before it died");
            b.restart(crash).await;
            let again = Stream::follow(&b, &a, 1, 2).await;
            assert_eq!(again.cuts, 0);
            assert_eq!(b.end(), end, "R14: nothing was cut");
            a.restart(crash).await;
            b.lead(2, &[1, 2]);
            let back = Stream::follow(&a, &b, 2, 1).await;
            back.catch_up().await;
            assert_eq!(b.partition.high_watermark(), end);
            assert_eq!(a.records().await, told(&[("a0", 1)]));
        });
    }
}

/// KIP-101, second scenario: both die, and the one that lacks the other's tail leads first. The tail goes, although
/// the logs are equally long by then.
#[test]
fn a_tail_that_no_later_leader_has_is_cut_even_if_the_logs_are_equally_long() {
    let executor = Executor::new(3);
    executor.run_until(async {
        let (mut a, b) = (Node::new(&executor, 1, INTERVAL).await, Node::new(&executor, 2, INTERVAL).await);
        a.lead(1, &[1, 2]);
        Stream::follow(&b, &a, 1, 1).await;
        a.produce("a0").await.unwrap();
        settled_written(&a).await;
        a.restart(Crash::Kill).await;
        b.lead(2, &[1, 2]);
        b.produce("b0").await.unwrap();
        assert_eq!((a.end(), b.end()), (Offset(1), Offset(1)));
        let stream = Stream::follow(&a, &b, 2, 1).await;
        assert_eq!(stream.cuts, 1);
        stream.catch_up().await;
        assert_eq!(a.records().await, told(&[("b0", 2)]));
        assert_eq!(b.records().await, a.records().await);
    });
}

/// KIP-279: after two quick changes of leader the first answer is not enough.
#[test]
fn a_log_that_parted_in_two_epochs_is_cut_twice() {
    let executor = Executor::new(4);
    executor.run_until(async {
        let a = Node::new(&executor, 1, INTERVAL).await;
        let b = Node::new(&executor, 2, INTERVAL).await;
        let c = Node::new(&executor, 3, INTERVAL).await;
        a.lead(1, &[1, 2, 3]);
        Stream::follow(&b, &a, 1, 1).await.copy_after(&a, "a0").await;
        Stream::follow(&c, &a, 1, 2).await.copy().await;
        // A's own tail, then B's, then A's again: nobody copies them.
        a.produce("a1").await.unwrap();
        b.lead(2, &[1, 2, 3]);
        b.produce("b1").await.unwrap();
        b.produce("b2").await.unwrap();
        c.lead(3, &[1, 2, 3]);
        c.produce("c1").await.unwrap();
        // B has epochs 1, 2; C has 1, 3. B led once more, in epoch 4, and copied nothing.
        b.lead(4, &[1, 2, 3]);
        b.produce("b3").await.unwrap();
        c.lead(5, &[1, 2, 3]);
        let stream = Stream::follow(&b, &c, 5, 3).await;
        assert_eq!(stream.cuts, 2, "it had epochs 2 and 4, of which C has nothing");
        stream.catch_up().await;
        let stream = Stream::follow(&a, &c, 5, 4).await;
        assert_eq!(stream.cuts, 1);
        stream.catch_up().await;
        let expected = told(&[("a0", 1), ("c1", 3)]);
        for node in [&a, &b, &c] {
            assert_eq!(node.records().await, expected);
        }
    });
}

/// A leader that is elected again at once, while the other one's records are on their way.
#[test]
fn a_leader_elected_again_goes_on_and_keeps_who_waits() {
    let executor = Executor::new(5);
    executor.run_until(async {
        let (a, b) = (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
        a.lead(1, &[1, 2]);
        let stream = Stream::follow(&b, &a, 1, 1).await;
        stream.report();
        let end = a.produce("a0").await.unwrap().end_offset;
        let acked = executor.spawn(a.partition.acked(Ack::All, end).unwrap());
        stream.copy().await;
        a.lead(3, &[1, 2]);
        b.flush().await;
        stream.report();
        settled(&a).await;
        assert!(!acked.is_finished(), "R3: that was said in epoch 1");
        let stream = Stream::follow(&b, &a, 3, 2).await;
        assert_eq!(stream.cuts, 0);
        stream.report();
        acked.await.unwrap();
        assert_eq!(a.produce("a1").await.unwrap().base_offset, end);
        stream.catch_up().await;
        assert_eq!(b.records().await, told(&[("a0", 1), ("a1", 3)]));
    });
}

/// R17: whoever has seen a newer epoch does not fall for an older one, in any role.
#[test]
fn orders_and_messages_of_an_older_epoch_are_refused() {
    let executor = Executor::new(6);
    executor.run_until(async {
        let (a, b) = (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
        a.lead(1, &[1, 2]);
        let old = Stream::follow(&b, &a, 1, 1).await;
        a.produce("a0").await.unwrap();
        old.copy().await;
        let late = a.partition.read_for_follower(old.epoch, Offset(0), limits()).await.unwrap();
        b.lead(2, &[2]);
        let (given, seen) = (LeaderEpoch(1), LeaderEpoch(2));
        let stale = RoleError::Stale { given, seen };
        assert_eq!(b.partition.become_follower(given, replica(1)), Err(stale.clone()));
        assert_eq!(b.partition.become_leader(term(1, &[2], 1), 0), Err(stale));
        b.partition.become_idle(given);
        assert_eq!(b.partition.role(), CurrentRole::Leading);
        let twice = RoleError::Stale { given: seen, seen };
        assert_eq!(b.partition.become_follower(seen, replica(1)), Err(twice), "R17: it leads in that epoch");
        // The deposed leader's batches, and its answer.
        let bytes: Vec<u8> = late.slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let marks = a.partition.marks();
        let refused = b.partition.append_from_leader(given, &bytes, marks, NOW).await;
        assert_eq!(refused, Err(FollowerError::NotFollower { epoch: seen }));
        // Who follows in epoch 2 is not let in by the leader of epoch 1, nor the other way round.
        let request = FollowRequest {
            replica: replica(3),
            epoch: seen,
            newest_epoch: None,
            log_start: Offset(0),
            log_end: Offset(0),
        };
        let connection = ConnectionId(9);
        let unknown = LeaderError::Unknown { requested: seen, current: given };
        assert_eq!(a.partition.follow(connection, &request), Err(FollowError::Leader(unknown)));
        let older = FollowRequest { epoch: given, ..request };
        let fenced = LeaderError::Fenced { requested: given, current: seen };
        assert_eq!(b.partition.follow(connection, &older), Err(FollowError::Leader(fenced)));
    });
}

/// D8: a deposed leader acks nothing, even if it never hears of its successor.
#[test]
fn a_deposed_leader_that_does_not_know_it_acks_nothing() {
    let executor = Executor::new(7);
    executor.run_until(async {
        let (a, b) = (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
        a.lead(1, &[1, 2]);
        let stream = Stream::follow(&b, &a, 1, 1).await;
        stream.report();
        b.lead(2, &[1, 2]);
        let end = a.produce("a0").await.unwrap().end_offset;
        let acked = executor.spawn(a.partition.acked(Ack::All, end).unwrap());
        settled(&a).await;
        let refused = stream.copy_one().await;
        assert_eq!(refused, Err(FollowerError::NotFollower { epoch: LeaderEpoch(2) }));
        assert!(!acked.is_finished());
        // It hears of it: who waits is told, and the record goes.
        Stream::follow(&a, &b, 2, 1).await;
        assert_eq!(acked.await, Err(WaitError::NotLeader));
        assert_eq!(a.end(), Offset(0));
    });
}

/// R18: a cut that a follower has begun ends before it leads.
#[test]
fn a_leadership_begins_only_after_a_cut_that_is_under_way() {
    let executor = Executor::new(8);
    executor.run_until(async {
        let (a, b) = (Node::new(&executor, 1, INTERVAL).await, Node::new(&executor, 2, INTERVAL).await);
        a.lead(1, &[1, 2]);
        a.produce("a0").await.unwrap();
        a.produce("a1").await.unwrap();
        b.lead(2, &[1, 2]);
        b.produce("b0").await.unwrap();
        let epoch = LeaderEpoch(2);
        a.partition.become_follower(epoch, replica(2)).unwrap();
        let request = a.partition.ask(epoch).await.unwrap();
        let connection = ConnectionId(1);
        let answer = b.partition.follow(connection, &request).unwrap();
        let mut cutting = Box::pin(a.partition.answered(epoch, &answer));
        let is_ready = poll_fn(|cx| Poll::Ready(cutting.as_mut().poll(cx).is_ready())).await;
        assert!(!is_ready, "a cut takes time");
        // The fetcher is gone, and the next order comes, before the cut has ended.
        drop(cutting);
        a.partition.become_leader(term(3, &[1, 2], 1), 0).unwrap();
        assert_eq!(a.partition.role(), CurrentRole::Idle);
        let refused = a.produce("x").await.unwrap_err();
        assert!(matches!(refused, ProduceError::Leader(LeaderError::NotLeader { .. })), "{refused}");
        while a.partition.role() != CurrentRole::Leading {
            executor.handle().sleep(std::time::Duration::from_micros(100)).await;
        }
        assert_eq!(a.end(), Offset(0), "the cut came first");
        a.produce("a2").await.unwrap();
        assert_eq!(a.records().await, told(&[("a2", 3)]));
    });
}

/// R10: a follower that has lost what it reported holds the mark until it has copied it again.
#[test]
fn a_member_that_lost_its_tail_counts_only_with_what_it_has() {
    let executor = Executor::new(9);
    executor.run_until(async {
        let (a, mut b) = (Node::new(&executor, 1, INTERVAL).await, Node::new(&executor, 2, INTERVAL).await);
        a.lead(1, &[1, 2]);
        let stream = Stream::follow(&b, &a, 1, 1).await;
        a.produce("a0").await.unwrap();
        stream.copy().await;
        settled_written(&b).await;
        stream.report();
        let reported = b.partition.replica_ends();
        b.restart(Crash::PowerLoss).await;
        let lost = b.end() == Offset(0);
        let again = Stream::follow(&b, &a, 1, 2).await;
        let end = a.produce("a1").await.unwrap().end_offset;
        let acked = executor.spawn(a.partition.acked(Ack::All, end).unwrap());
        settled_written(&a).await;
        let far = ReplicaEnds { written: end, ..reported };
        a.partition.follower_reported(ConnectionId(1), replica(2), LeaderEpoch(1), far);
        assert!(a.partition.high_watermark() < end, "the old connection says nothing of the new life");
        again.catch_up().await;
        acked.await.unwrap();
        assert_eq!(b.records().await, told(&[("a0", 1), ("a1", 1)]), "lost its tail: {lost}");
    });
}

/// Fault 24, R19: the ack was lost, the leader is another one, and the producer sends the batch again.
#[test]
fn a_batch_sent_again_to_the_next_leader_is_not_appended_twice() {
    let executor = Executor::new(10);
    executor.run_until(async {
        let (mut a, mut b) = (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
        a.lead(1, &[1, 2]);
        let stream = Stream::follow(&b, &a, 1, 1).await;
        for sequence in 0..3 {
            a.produce_batch(&of_producer(sequence), Ack::All).await.unwrap();
        }
        stream.catch_up().await;
        a.produce_batch(&of_producer(3), Ack::All).await.unwrap();
        b.lead(2, &[2]);
        let again = b.produce_batch(&of_producer(2), Ack::All).await.unwrap();
        assert!(again.is_duplicate);
        assert_eq!((again.base_offset, again.end_offset), (Offset(2), Offset(3)));
        b.partition.acked(Ack::All, again.end_offset).unwrap().await.unwrap();
        // The one that only A had comes again, and those behind it; none may jump the queue.
        let early = b.produce_batch(&of_producer(4), Ack::All).await.unwrap_err();
        let expected = SequenceError::OutOfOrder { producer_id: 77, expected: 3, found: 4 };
        assert_eq!(early, ProduceError::Sequence(expected));
        assert!(!b.produce_batch(&of_producer(3), Ack::All).await.unwrap().is_duplicate);
        assert!(!b.produce_batch(&of_producer(4), Ack::All).await.unwrap().is_duplicate);
        // A comes back: its own fourth batch goes, and B's is known to it.
        a.restart(Crash::Kill).await;
        let back = Stream::follow(&a, &b, 2, 1).await;
        back.catch_up().await;
        a.lead(3, &[1, 2]);
        assert!(a.produce_batch(&of_producer(4), Ack::All).await.unwrap().is_duplicate);
        // And B, which is started anew, reads it from its log.
        b.restart(Crash::Kill).await;
        b.lead(4, &[1, 2]);
        let again = b.produce_batch(&of_producer(0), Ack::All).await.unwrap();
        assert_eq!((again.is_duplicate, again.base_offset), (true, Offset(0)));
        assert_eq!(b.end(), Offset(5));
    });
}

/// A snapshot of the producers that reflects batches which are cut is thrown away, though the log is as long again.
#[test]
fn a_snapshot_of_producers_beyond_a_cut_is_not_believed() {
    let executor = Executor::new(11);
    executor.run_until(async {
        let (mut a, b) = (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
        a.lead(1, &[1, 2]);
        let stream = Stream::follow(&b, &a, 1, 1).await;
        a.produce_batch(&of_producer(0), Ack::All).await.unwrap();
        stream.catch_up().await;
        a.produce_batch(&of_producer(1), Ack::All).await.unwrap();
        a.produce_batch(&of_producer(2), Ack::All).await.unwrap();
        settled(&a).await;
        a.partition.store_producers(true).await.unwrap();
        // Its own life goes on with the snapshot.
        a.restart(Crash::PowerLoss).await;
        a.lead(2, &[1]);
        assert!(a.produce_batch(&of_producer(2), Ack::All).await.unwrap().is_duplicate);
        // The other one leads, and its log is soon as long.
        b.lead(3, &[2]);
        for text in ["b0", "b1", "b2"] {
            b.produce(text).await.unwrap();
        }
        a.restart(Crash::Kill).await;
        Stream::follow(&a, &b, 3, 1).await.catch_up().await;
        a.restart(Crash::Kill).await;
        a.lead(4, &[1]);
        assert!(a.produce_batch(&of_producer(0), Ack::All).await.unwrap().is_duplicate);
        let new = a.produce_batch(&of_producer(1), Ack::All).await.unwrap();
        assert_eq!((new.is_duplicate, new.base_offset), (false, Offset(4)));
    });
}

/// A batch of one record of an idempotent producer.
fn of_producer(sequence: i32) -> Vec<u8> {
    let fields =
        BatchFields { producer_id: 77, producer_epoch: 0, base_sequence: sequence, ..BatchFields::default() };
    batch(&format!("p{sequence}"), &fields)
}

fn limits() -> corelog_engine::log::ReadLimits {
    corelog_engine::log::ReadLimits::bytes(1 << 20)
}

async fn settled_written(node: &Node) {
    let end = node.end();
    node.partition.log().wait(corelog_engine::log::Stage::Written, end).await.unwrap();
}

impl Stream<'_> {
    /// Lets the leader append a record, and copies it.
    async fn copy_after(&self, leader: &Node, text: &str) {
        leader.produce(text).await.unwrap();
        self.copy().await;
    }
}
