//! What a replica serves and refuses in each role, and how its ISR moves.

use std::cell::RefCell;
use std::rc::Rc;

use corelog_engine::log::FlushPolicy::Commit;
use corelog_engine::log::{ReadError, ReadLimits};
use corelog_engine::{LeaderEpoch, Offset};
use corelog_replication::coordination::Version;
use corelog_replication::{
    Ack, ConnectionId, FetchError, FollowError, FollowRequest, IsrOptions, LeaderError, ListOffsetsError,
    ProduceError, RoleError, WaitError, Watcher,
};
use corelog_sim::{Crash, Executor};

use crate::by_hand::{INTERVAL, NOW, Node, Stream, assignment, batch, replica, replicas, settled, term};

fn told(records: &[(&str, u32)]) -> Vec<(String, u32)> {
    records.iter().map(|(text, epoch)| ((*text).to_owned(), *epoch)).collect()
}

/// Whoever does not lead says so, to everybody.
#[test]
fn a_replica_that_does_not_lead_serves_nobody() {
    let executor = Executor::new(20);
    executor.run_until(async {
        let (a, b) = (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
        a.lead(3, &[1, 2]);
        Stream::follow(&b, &a, 3, 1).await;
        let idle = Node::new(&executor, 3, Commit).await;
        for (node, epoch) in [(&b, 3), (&idle, 0)] {
            let not_leader = LeaderError::NotLeader { epoch: LeaderEpoch(epoch) };
            assert_eq!(node.produce("x").await, Err(ProduceError::Leader(not_leader)));
            let fetched = node.partition.fetch(Offset(0), 100, None).await.unwrap_err();
            assert_eq!(fetched, FetchError::Leader(not_leader));
            assert_eq!(node.partition.latest(None), Err(ListOffsetsError::Leader(not_leader)));
            assert_eq!(node.partition.earliest(None), Err(ListOffsetsError::Leader(not_leader)));
            let read = node.partition.read_for_follower(LeaderEpoch(epoch), Offset(0), ReadLimits::bytes(1));
            assert_eq!(read.await.unwrap_err(), FetchError::Leader(not_leader));
            assert_eq!(node.partition.readable(Offset(0)).await, Err(WaitError::NotLeader));
            assert_eq!(node.partition.tick_isr(60_000), None);
        }
    });
}

#[test]
fn the_end_of_a_leadership_ends_every_wait() {
    let executor = Executor::new(21);
    executor.run_until(async {
        let a = Node::new(&executor, 1, Commit).await;
        a.lead(1, &[1, 2]);
        let end = a.produce("a0").await.unwrap().end_offset;
        let waits = [
            a.partition.acked(Ack::All, end).unwrap(),
            a.partition.readable(Offset(0)),
            a.partition.committed_bytes_reached(1),
        ];
        let waits: Vec<_> = waits.into_iter().map(|wait| executor.spawn(wait)).collect();
        executor.handle().yield_now().await;
        a.partition.become_idle(LeaderEpoch(2));
        for wait in waits {
            assert_eq!(wait.await, Err(WaitError::NotLeader));
        }
        assert_eq!(a.partition.stats().waiting, 0);
    });
}

/// A leader that was deposed while an append waited for its turn appends nothing.
#[test]
fn an_append_that_waited_through_the_end_of_a_leadership_is_refused() {
    let executor = Executor::new(22);
    executor.run_until(async {
        let a = Node::new(&executor, 1, Commit).await;
        a.lead(1, &[1]);
        let turn = a.partition.log().admit(10, 1, NOW).await.unwrap();
        let waiting = a.partition.clone();
        let produced = executor.spawn(async move {
            let bytes = batch("a0", &corelog_engine::batch::BatchFields::default());
            waiting.produce(&bytes, corelog_replication::ProduceChecks::default(), || NOW).await
        });
        executor.handle().yield_now().await;
        a.partition.become_follower(LeaderEpoch(2), replica(2)).unwrap();
        drop(turn);
        let refused = produced.await.unwrap_err();
        assert!(matches!(refused, ProduceError::Leader(_) | ProduceError::Append(_)), "{refused}");
        assert_eq!(a.end(), Offset(0));
    });
}

#[test]
fn cut_off_from_coordination_a_leader_serves_only_what_needs_all_replicas() {
    let executor = Executor::new(23);
    executor.run_until(async {
        let a = Node::new(&executor, 1, Commit).await;
        a.lead(1, &[1]);
        let bytes = batch("a0", &corelog_engine::batch::BatchFields::default());
        let end = a.produce_batch(&bytes, Ack::Leader).await.unwrap().end_offset;
        a.partition.acked(Ack::All, end).unwrap().await.unwrap();
        let reader = executor.spawn(a.partition.readable(end));
        executor.handle().yield_now().await;
        a.partition.set_isolated(true);
        assert_eq!(reader.await, Err(WaitError::NotLeader), "who waits is sent elsewhere");
        for ack in [Ack::None, Ack::Leader] {
            let refused = a.produce_batch(&bytes, ack).await.unwrap_err();
            assert_eq!(refused, ProduceError::Leader(LeaderError::Isolated));
        }
        assert!(a.partition.fetch(Offset(0), 100, None).await.is_err());
        assert_eq!(a.partition.latest(None), Err(ListOffsetsError::Leader(LeaderError::Isolated)));
        let end = a.produce_batch(&bytes, Ack::All).await.unwrap().end_offset;
        a.partition.acked(Ack::All, end).unwrap().await.unwrap();
        a.partition.set_isolated(false);
        assert_eq!(a.partition.latest(None), Ok(end));
    });
}

#[test]
fn acks_all_needs_as_many_replicas_as_the_topic_says() {
    let executor = Executor::new(24);
    executor.run_until(async {
        let a = Node::new(&executor, 1, Commit).await;
        let two = corelog_replication::LeaderTerm { min_insync_replicas: 2, ..term(1, &[1, 2], 1) };
        a.partition.become_leader(two, 0).unwrap();
        let end = a.produce("a0").await.unwrap().end_offset;
        let acked = executor.spawn(a.partition.acked(Ack::All, end).unwrap());
        settled(&a).await;
        // The other one leaves before it has the record.
        a.partition.update(&assignment(1, 1, &[1], 2, 2), 0);
        let lacking = (1, 2);
        let (isr, min_insync_replicas) = lacking;
        assert_eq!(acked.await, Err(WaitError::NotEnoughReplicas { isr, min_insync_replicas }));
        let refused = a.produce("a1").await.unwrap_err();
        assert_eq!(refused, ProduceError::NotEnoughReplicas { isr, min_insync_replicas });
        assert_eq!(a.end(), end, "nothing was appended");
        let bytes = batch("a1", &corelog_engine::batch::BatchFields::default());
        let end = a.produce_batch(&bytes, Ack::Leader).await.unwrap().end_offset;
        a.partition.acked(Ack::Leader, end).unwrap().await.unwrap();
        // An older version changes nothing, a newer one lets it go on.
        a.partition.update(&assignment(1, 1, &[1, 2], 1, 1), 0);
        assert!(a.produce("a2").await.is_err());
        a.partition.update(&assignment(1, 1, &[1, 2], 3, 2), 0);
        a.produce("a2").await.unwrap();
        // The topic's option changes without the partition's version.
        a.partition.update(&assignment(1, 1, &[1, 2], 3, 3), 0);
        assert!(a.produce("a3").await.is_err());
    });
}

/// R8, KIP-207: a new leader does not say what is latest before it knows.
#[test]
fn a_new_leader_knows_the_latest_offset_once_its_isr_has_caught_up_with_it() {
    let executor = Executor::new(25);
    executor.run_until(async {
        let (a, b) = (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
        a.lead(1, &[1, 2]);
        let stream = Stream::follow(&b, &a, 1, 1).await;
        a.produce("a0").await.unwrap();
        stream.catch_up().await;
        settled(&a).await;
        assert_eq!(a.partition.latest(None), Ok(Offset(1)));
        b.lead(2, &[1, 2]);
        let unknown = ListOffsetsError::NotCaughtUp { high_watermark: Offset(0) };
        assert_eq!(b.partition.latest(None), Err(unknown));
        let fetched = b.partition.fetch(Offset(1), 100, None).await.expect("it waits, without an error");
        assert_eq!(fetched.batches.bytes, 0);
        let back = Stream::follow(&a, &b, 2, 1).await;
        back.report();
        assert_eq!(b.partition.latest(None), Ok(Offset(1)));
    });
}

#[test]
fn the_isr_grows_by_who_has_caught_up_and_shrinks_by_who_leaves() {
    let executor = Executor::new(26);
    executor.run_until(async {
        let a = Node::new(&executor, 1, Commit).await;
        let (b, c) = (Node::new(&executor, 2, Commit).await, Node::new(&executor, 3, Commit).await);
        a.partition.set_isr_options(IsrOptions { disconnect_max_ms: 200, ..IsrOptions::default() });
        a.lead(4, &[1, 2]);
        let to_b = Stream::follow(&b, &a, 4, 1).await;
        to_b.report();
        let to_c = Stream::follow(&c, &a, 4, 2).await;
        a.produce("a0").await.unwrap();
        to_b.catch_up().await;
        settled(&a).await;
        assert_eq!(a.partition.high_watermark(), Offset(1));
        assert_eq!(a.partition.tick_isr(100), None, "it has not caught up");
        to_c.catch_up().await;
        let proposal = a.partition.tick_isr(200).expect("it has");
        assert_eq!((proposal.leader_epoch, proposal.version), (LeaderEpoch(4), Version(1)));
        assert_eq!(proposal.isr, replicas(&[1, 2, 3]));
        // R5: it counts at once.
        a.produce("a1").await.unwrap();
        to_b.catch_up().await;
        settled(&a).await;
        assert_eq!(a.partition.high_watermark(), Offset(1));
        a.partition.update(&assignment(1, 4, &[1, 2, 3], 2, 1), 300);
        to_c.catch_up().await;
        assert_eq!(a.partition.high_watermark(), Offset(2));
        // One stops, the other's connection breaks.
        a.partition.follower_left(ConnectionId(1), replica(2));
        let proposal = a.partition.tick_isr(400).unwrap();
        assert_eq!((proposal.version, proposal.isr), (Version(2), replicas(&[1, 3])));
        a.produce("a2").await.unwrap();
        to_c.catch_up().await;
        settled(&a).await;
        assert_eq!(a.partition.high_watermark(), Offset(2), "R5: not before it is stored");
        a.partition.update(&assignment(1, 4, &[1, 3], 3, 1), 500);
        assert_eq!(a.partition.high_watermark(), Offset(3));
        a.partition.follower_disconnected(ConnectionId(2), replica(3), 600);
        assert_eq!(a.partition.tick_isr(700), None);
        assert_eq!(a.partition.tick_isr(800).unwrap().isr, replicas(&[1]));
    });
}

#[test]
fn an_unverified_replica_is_verified_once_it_has_caught_up_and_is_in_the_isr() {
    let executor = Executor::new(27);
    executor.run_until(async {
        let (a, b) = (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
        a.lead(1, &[1]);
        a.produce("a0").await.unwrap();
        let (inside, outside) = (assignment(2, 1, &[1, 2], 2, 1), assignment(2, 1, &[1], 1, 1));
        let stream = Stream::follow(&b, &a, 1, 1).await;
        assert!(!b.partition.is_verified_by(&inside), "it lacks what the leader had");
        stream.copy().await;
        b.flush().await;
        assert!(!b.partition.is_verified_by(&outside));
        assert!(b.partition.is_verified_by(&inside));
        assert!(!b.partition.is_verified_by(&assignment(2, 2, &[1, 2], 3, 1)), "another epoch");
    });
}

#[test]
fn who_is_no_replica_or_comes_on_an_old_connection_is_not_let_in() {
    let executor = Executor::new(28);
    executor.run_until(async {
        let a = Node::new(&executor, 1, Commit).await;
        a.lead(1, &[1, 2]);
        let request = |node| FollowRequest {
            replica: replica(node),
            epoch: LeaderEpoch(1),
            newest_epoch: None,
            log_start: Offset(0),
            log_end: Offset(0),
        };
        let stranger = a.partition.follow(ConnectionId(1), &request(9)).unwrap_err();
        assert_eq!(stranger, FollowError::NotReplica { replica: replica(9) });
        a.partition.follow(ConnectionId(5), &request(2)).unwrap();
        let old = a.partition.follow(ConnectionId(4), &request(2)).unwrap_err();
        assert_eq!(old, FollowError::OldConnection { replica: replica(2) });
        let outside = a.partition.become_leader(term(2, &[2], 1), 0).unwrap_err();
        assert_eq!(outside, RoleError::OutsideIsr { me: replica(1) });
    });
}

/// Fault 23, R16: what a follower needs is deleted. Its log begins where the leader's does, without a gap.
#[test]
fn a_follower_that_needs_what_is_deleted_begins_anew() {
    let executor = Executor::new(29);
    executor.run_until(async {
        let (a, mut b) = (Node::new(&executor, 1, Commit).await, Node::new(&executor, 2, Commit).await);
        a.lead(1, &[1]);
        Stream::follow(&b, &a, 1, 1).await;
        for text in ["a0", "a1", "a2", "a3"] {
            a.produce(text).await.unwrap();
        }
        settled(&a).await;
        a.partition.delete_records(Some(Offset(2)), NOW).await.unwrap();
        // The stream that is under way finds nothing at offset 0.
        let gone = a.partition.read_for_follower(LeaderEpoch(1), Offset(0), ReadLimits::bytes(1)).await;
        assert!(matches!(gone, Err(FetchError::Read(ReadError::OffsetOutOfRange { .. }))), "{gone:?}");
        let again = Stream::follow(&b, &a, 1, 2).await;
        assert_eq!(b.end(), Offset(2));
        again.catch_up().await;
        assert_eq!(b.records().await, told(&[("a2", 1), ("a3", 1)]));
        // What is deleted later goes there too, once it is durable; also over a restart.
        settled(&a).await;
        a.partition.delete_records(Some(Offset(3)), NOW).await.unwrap();
        again.send_marks().await;
        assert_eq!(b.partition.log_start(), Offset(3));
        b.restart(Crash::PowerLoss).await;
        assert_eq!((b.partition.log_start(), b.end()), (Offset(3), Offset(4)));
        b.lead(2, &[2]);
        assert_eq!(b.partition.earliest(None), Ok(Offset(3)));
    });
}

/// A stream notes who changed; it is told of everything that it looks at.
#[test]
fn watchers_hear_of_appends_ends_marks_and_roles() {
    #[derive(Default)]
    struct Notes(RefCell<u32>);
    impl Watcher for Notes {
        fn changed(&self, token: u32) {
            assert_eq!(token, 5);
            *self.0.borrow_mut() += 1;
        }
    }
    let executor = Executor::new(30);
    executor.run_until(async {
        let a = Node::new(&executor, 1, INTERVAL).await;
        let notes = Rc::new(Notes::default());
        let watcher: Rc<dyn Watcher> = notes.clone();
        let watching = a.partition.watch(&watcher, 5);
        let has_heard = || notes.0.replace(0) > 0;
        a.lead(1, &[1, 2]);
        assert!(has_heard(), "of the role");
        a.produce("a0").await.unwrap();
        assert!(has_heard(), "of the append");
        a.flush().await;
        assert!(has_heard(), "of the ends");
        a.partition.update(&assignment(1, 1, &[1], 2, 1), 0);
        assert!(has_heard(), "of the high watermark");
        a.partition.delete_records(None, NOW).await.unwrap();
        assert!(has_heard(), "of the log start");
        drop(watching);
        a.partition.become_idle(LeaderEpoch(2));
        assert!(!has_heard());
    });
}
