//! A led partition on the simulated disk: who is answered when, and what readers see. What must never happen: an
//! answer before the stage that the flush names, a reader above the high watermark, a waiter that is forgotten.

use std::path::Path;

use corelog_engine::batch::{BatchBuilder, BatchError, BatchFields, NewRecord};
use corelog_engine::buffer::BufferPool;
use corelog_engine::log::{EngineOptions, FlushPolicy, LogFailure, ReadError};
use corelog_engine::{
    Engine, LeaderEpoch, LogId, LogOptions, Offset, PartitionId, TimestampMs, TopicId, TopicPartition,
};
use corelog_replication::coordination::Version;
use corelog_replication::{
    Ack, DeleteRecordsError, FetchError, LeaderError, LeaderTerm, NodeId, Partition, ProduceChecks,
    ProduceError, ReplicaId, WaitError,
};
use corelog_sim::{Executor, Fault, FaultKind, Handle, SimDisk, SimDiskOptions};

const NOW: TimestampMs = TimestampMs(1_700_000_000_000);
const EPOCH: LeaderEpoch = LeaderEpoch(5);
const INTERVAL: FlushPolicy = FlushPolicy::Interval { bytes_max: u64::MAX, ms_max: u64::MAX };

struct World {
    executor: Executor,
    disk: SimDisk,
    partition: Partition<SimDisk>,
}

/// A new partition with this flush policy, led in `EPOCH`.
fn world(flush: FlushPolicy) -> World {
    let executor = Executor::new(11);
    let disk = SimDisk::new(executor.handle(), SimDiskOptions::default());
    let engine = Engine::new(disk.clone(), BufferPool::new(16 << 20), EngineOptions::default());
    executor.spawn(engine.drive_commits());
    executor.spawn(engine.drive_background());
    let partition = executor.run_until(async {
        let options = LogOptions { flush, ..LogOptions::default() };
        let log = engine.create_log(Path::new("/d/p"), LogId(1), options).await.unwrap();
        let id = TopicPartition { topic: TopicId(1), partition: PartitionId(0) };
        let me = ReplicaId { node: NodeId(1), log: LogId(1) };
        let partition = Partition::open(id, me, log);
        let term = LeaderTerm {
            epoch: EPOCH,
            replicas: vec![me],
            isr: vec![me],
            version: Version(1),
            min_insync_replicas: 1,
        };
        partition.become_leader(term, 0).unwrap();
        partition
    });
    World { executor, disk, partition }
}

fn batch(records: u32) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 20);
    for _ in 0..records {
        let record = NewRecord { key: None, value: Some(&[7; 100]), timestamp: NOW, headers: &[] };
        builder.push(&record).unwrap();
    }
    builder.finish(&BatchFields::default()).unwrap()
}

async fn produce(partition: &Partition<SimDisk>, records: u32) -> Offset {
    let produced = partition.produce(&batch(records), ProduceChecks::default(), || NOW).await;
    produced.expect("appended").end_offset
}

/// Virtual microseconds pass.
fn pause(handle: &Handle, us: u64) -> impl Future<Output = ()> + 'static {
    handle.sleep(std::time::Duration::from_micros(us))
}

#[test]
fn many_producers_are_answered_once_durable_and_none_before() {
    let World { executor, partition, disk } = world(FlushPolicy::Commit);
    let syncs = disk.syncs();
    let tasks: Vec<_> = (0..20u32)
        .map(|i| {
            let partition = partition.clone();
            executor.spawn(async move {
                let end = produce(&partition, 1 + i % 3).await;
                let ack = if i % 2 == 0 { Ack::All } else { Ack::Leader };
                partition.acked(ack, end).expect("it waits").await.expect("acked");
                assert!(partition.log().ends().durable >= end);
                assert!(partition.high_watermark() >= end);
            })
        })
        .collect();
    executor.run_until(async {
        for task in tasks {
            task.await;
        }
    });
    assert_eq!(partition.high_watermark(), partition.log().ends().end);
    assert_eq!(partition.stats().waiting, 0);
    let syncs = disk.syncs() - syncs;
    assert!(syncs < 20, "{syncs} syncs for 20 produces: no group commit");
    assert!(partition.acked(Ack::None, Offset(0)).is_none());
}

#[test]
fn with_flush_interval_written_is_enough() {
    let World { executor, partition, disk } = world(INTERVAL);
    let syncs = disk.syncs();
    executor.run_until(async {
        let end = produce(&partition, 4).await;
        partition.acked(Ack::All, end).expect("it waits").await.expect("acked");
        assert_eq!(partition.high_watermark(), end);
        assert_eq!(partition.log().ends().durable, Offset::ZERO);
    });
    assert_eq!(disk.syncs(), syncs, "no sync was needed");
}

#[test]
fn readers_wait_at_the_high_watermark_and_see_nothing_above_it() {
    let World { executor, partition, .. } = world(FlushPolicy::Commit);
    executor.run_until(async {
        let end = produce(&partition, 3).await;
        let early = partition.fetch(Offset::ZERO, 1 << 20, Some(EPOCH)).await.expect("not an error");
        assert_eq!((early.batches.bytes, early.high_watermark), (0, Offset::ZERO));
        partition.readable(Offset::ZERO).await.expect("readable");
        let fetched = partition.fetch(Offset::ZERO, 1 << 20, None).await.unwrap();
        assert_eq!((fetched.batches.next_offset, fetched.high_watermark), (end, end));
        let beyond = partition.fetch(end.advance(1), 1 << 20, None).await.unwrap_err();
        assert!(matches!(beyond, FetchError::Read(ReadError::OffsetOutOfRange { .. })), "{beyond}");
    });
}

#[test]
fn a_reader_can_wait_for_a_number_of_bytes() {
    let World { executor, partition, .. } = world(FlushPolicy::Commit);
    let handle = executor.handle();
    let waiting = partition.clone();
    let woken_at = executor.spawn(async move {
        let wanted = 3 * batch(1).len() as u64;
        waiting.committed_bytes_reached(waiting.committed_bytes() + wanted).await.expect("reached");
        waiting.high_watermark()
    });
    executor.run_until(async {
        for _ in 0..5 {
            let end = produce(&partition, 1).await;
            partition.acked(Ack::All, end).expect("it waits").await.unwrap();
            pause(&handle, 10_000).await;
        }
        assert_eq!(woken_at.await, Offset(3));
    });
}

#[test]
fn a_poisoned_log_answers_all_producers_and_still_serves_readers() {
    let World { executor, partition, disk } = world(FlushPolicy::Commit);
    executor.run_until(async {
        let end = produce(&partition, 2).await;
        partition.acked(Ack::All, end).expect("it waits").await.unwrap();
        disk.inject(Fault::eio(FaultKind::Sync, "/d/p").times(9));
        let lost = produce(&partition, 2).await;
        for ack in [Ack::Leader, Ack::All] {
            let failure = partition.acked(ack, lost).expect("it waits").await.unwrap_err();
            assert!(matches!(failure, WaitError::Failed(LogFailure::Poisoned { .. })), "{failure}");
        }
        assert!(partition.failure().is_some());
        let refused = partition.produce(&batch(1), ProduceChecks::default(), || NOW).await.unwrap_err();
        assert!(matches!(refused, ProduceError::Append(_)), "{refused}");
        let fetched = partition.fetch(Offset::ZERO, 1 << 20, None).await.unwrap();
        assert_eq!(fetched.batches.next_offset, end, "what was committed is readable, nothing else");
    });
}

#[test]
fn closing_ends_every_wait() {
    let World { executor, partition, .. } = world(FlushPolicy::Commit);
    let waiting = partition.clone();
    let reader = executor.spawn(async move { waiting.readable(Offset(9)).await });
    executor.run_until(async {
        partition.log().close().await.unwrap();
        assert_eq!(reader.await, Err(WaitError::Failed(LogFailure::Closed)));
    });
}

#[test]
fn epochs_and_batches_are_checked_before_anything_is_appended() {
    let World { executor, partition, .. } = world(FlushPolicy::Commit);
    executor.run_until(async {
        let of = |epoch| ProduceChecks { leader_epoch: Some(LeaderEpoch(epoch)), ..ProduceChecks::default() };
        let fenced = partition.produce(&batch(1), of(4), || NOW).await.unwrap_err();
        let expected = LeaderError::Fenced { requested: LeaderEpoch(4), current: EPOCH };
        assert_eq!(fenced, ProduceError::Leader(expected));
        let unknown = partition.produce(&batch(1), of(6), || NOW).await.unwrap_err();
        let expected = LeaderError::Unknown { requested: LeaderEpoch(6), current: EPOCH };
        assert_eq!(unknown, ProduceError::Leader(expected));
        let mut damaged = batch(1);
        *damaged.last_mut().unwrap() ^= 1;
        let refused = partition.produce(&damaged, ProduceChecks::default(), || NOW).await.unwrap_err();
        assert!(matches!(refused, ProduceError::Invalid(BatchError::Checksum { .. })), "{refused}");
        let early = ProduceChecks { timestamp_max: Some(TimestampMs(NOW.0 - 1)), ..ProduceChecks::default() };
        let refused = partition.produce(&batch(1), early, || NOW).await.unwrap_err();
        assert!(matches!(refused, ProduceError::Invalid(BatchError::Timestamp { .. })), "{refused}");
        assert_eq!(partition.log().ends().end, Offset::ZERO);
    });
}

#[test]
fn records_are_deleted_up_to_the_high_watermark_and_no_further() {
    for flush in [FlushPolicy::Commit, INTERVAL] {
        let World { executor, partition, .. } = world(flush);
        executor.run_until(async {
            let end = produce(&partition, 5).await;
            let above = partition.delete_records(Some(end), NOW).await.unwrap_err();
            assert!(matches!(above, DeleteRecordsError::AboveHighWatermark { .. }), "{above}");
            partition.acked(Ack::All, end).expect("it waits").await.unwrap();
            partition.delete_records(Some(Offset(2)), NOW).await.unwrap();
            assert_eq!(partition.earliest(None).unwrap(), Offset(2));
            partition.delete_records(None, NOW).await.unwrap();
            assert_eq!(partition.earliest(None).unwrap(), end);
            assert_eq!(partition.latest(Some(EPOCH)).unwrap(), end);
            let gone = partition.fetch(Offset::ZERO, 1 << 20, None).await.unwrap_err();
            assert!(matches!(gone, FetchError::Read(ReadError::OffsetOutOfRange { .. })), "{gone}");
        });
    }
}

#[test]
fn a_reader_is_told_where_what_it_has_read_is_not_in_the_log_any_more() {
    let World { executor, partition, .. } = world(FlushPolicy::Commit);
    let me = partition.me();
    executor.run_until(async {
        produce(&partition, 3).await;
        for epoch in [7, 9] {
            let term = LeaderTerm {
                epoch: LeaderEpoch(epoch),
                replicas: vec![me],
                isr: vec![me],
                version: Version(i64::from(epoch)),
                min_insync_replicas: 1,
            };
            partition.become_leader(term, 0).expect("it leads");
            produce(&partition, 2).await;
        }
        // Epoch 5 ends at 3, epoch 7 at 5, epoch 9 at 7.
        let check = |from, last_epoch, expected: Option<(u32, u64)>| {
            let found = partition.diverged(Offset(from), LeaderEpoch(last_epoch));
            let found = found.map(|at| (at.epoch.0, at.end.0));
            assert_eq!(found, expected, "read up to {from}, the last of epoch {last_epoch}");
        };
        check(3, 5, None);
        check(4, 5, Some((5, 3)));
        check(5, 7, None);
        check(6, 7, Some((7, 5)));
        check(4, 6, Some((5, 3)));
        check(7, 9, None);
        check(9, 8, Some((7, 5)));
        check(2, 3, Some((3, 0)));
    });
}
