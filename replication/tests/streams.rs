//! Streams between shards over connections in memory: what one leader appends, its followers have, byte for byte.
//! What must never happen: an ack before all in-sync replicas have it, a follower that is forgotten after a broken
//! connection, a gap, one partition or one peer that stops the others.

mod stream_support;

use corelog_engine::Offset;
use corelog_replication::stream::StreamOptions;
use corelog_replication::{Report, Sighting};
use corelog_sim::{Fault, FaultEffect, FaultKind, SimDiskOptions};
use stream_support::{Setup, Wire, World, id, world};

fn options() -> StreamOptions {
    Setup::default().streams
}

fn three(seed: u64) -> World {
    world(seed, Setup { nodes: 3, ..Setup::default() })
}

#[test]
fn what_is_acked_by_all_is_durable_everywhere() {
    for seed in 0..10 {
        let world = three(seed);
        world.create(0, &[1, 2, 3]);
        world.assign(0, 1, &[1, 2, 3], &[1, 2, 3]);
        for round in 0..20 {
            let end = world.produce(1, 0, 1 + round % 3, 100);
            for node in 1..=3 {
                assert!(world.partition(node, 0).log().ends().durable >= end, "seed {seed}: node {node}");
            }
        }
        world.assert_equal(0, &[1, 2, 3]);
        world.pass(200);
        let committed = world.partition(1, 0).high_watermark();
        assert_eq!(world.partition(2, 0).high_watermark(), committed, "the mark comes with the tick at last");
    }
}

#[test]
fn a_produce_waits_for_no_timer() {
    let world = three(3);
    world.create(0, &[1, 2, 3]);
    world.assign(0, 1, &[1, 2, 3], &[1, 2, 3]);
    world.produce(1, 0, 1, 100);
    let before = world.executor.now_us();
    for _ in 0..50 {
        world.produce(1, 0, 1, 100);
    }
    let each_us = (world.executor.now_us() - before) / 50;
    assert!(each_us < 1_500, "{each_us} us for a produce: some disk operations of up to 200 us each");
}

#[test]
fn messages_of_many_partitions_are_bundled() {
    let world = world(5, Setup { pool_bytes: 64 << 20, ..Setup::default() });
    for partition in 0..1_000 {
        world.create(partition, &[1, 2]);
        world.assign(partition, 1, &[1, 2], &[1, 2]);
    }
    world.until("all follow", || {
        world.node(1).replicas.stats().feeders.first().is_some_and(|f| f.streams.len() == 1_000)
    });
    let (mut messages, mut bundles) = (0, 0);
    for round in 0..3 {
        if round == 1 {
            // The first append of a log waits for blocks and memory; from now on none does.
            (messages, bundles) = (world.net.messages.get(), world.net.bundles.get());
        }
        world.executor.run_until(async {
            for partition in 0..1_000 {
                stream_support::append(&world.partition(1, partition), 1, 100).await;
            }
        });
        world.until("all acked", || {
            (0..1_000).all(|p| world.partition(1, p).high_watermark() == Offset(round + 1))
        });
    }
    let (messages, bundles) = (world.net.messages.get() - messages, world.net.bundles.get() - bundles);
    assert!(bundles < 10, "{bundles} messages with batches for two bursts of 1,000 partitions");
    // Syncs end one after the other, and each is reported at once.
    assert!(messages - bundles < 3_000, "{messages} messages for 2,000 syncs");
    for partition in (0..1_000).step_by(97) {
        world.assert_equal(partition, &[1, 2]);
    }
}

#[test]
fn a_follower_that_diverged_is_cut_and_filled() {
    for seed in 0..10 {
        let world = three(seed);
        world.create(0, &[1, 2, 3]);
        world.assign(0, 1, &[1, 2, 3], &[1, 2, 3]);
        world.produce(1, 0, 5, 100);
        // Node 1 is cut off and appends what nobody else has.
        world.deafen(1);
        world.net.links.borrow().iter().for_each(Wire::cut);
        for _ in 0..3 {
            world.append(1, 0, 4, 100);
        }
        world.assign_one(2, 0, 2, &[2, 1, 3], &[2, 3]);
        world.assign_one(3, 0, 2, &[2, 1, 3], &[2, 3]);
        let end = world.produce(2, 0, 7, 100);
        world.listen(world.node(1));
        world.assign_one(1, 0, 2, &[2, 1, 3], &[2, 3]);
        world.assert_equal(0, &[2, 1, 3]);
        assert_eq!(world.partition(1, 0).log().ends().end, end);
        // And back again: everybody agrees on a third term.
        world.assign(0, 3, &[1, 2, 3], &[1, 2, 3]);
        world.produce(1, 0, 2, 100);
        world.assert_equal(0, &[1, 2, 3]);
    }
}

#[test]
fn a_connection_that_breaks_at_any_message_is_made_again() {
    let story = |break_at: u64| {
        let world = world(break_at, Setup::default());
        world.net.break_at.set(break_at);
        for partition in 0..3 {
            world.create(partition, &[1, 2]);
            world.assign(partition, 1, &[1, 2], &[1, 2]);
        }
        for round in 0..4 {
            for partition in 0..3 {
                world.produce(1, partition, 1 + round, 300);
            }
        }
        for partition in 0..3 {
            world.assert_equal(partition, &[1, 2]);
        }
        world.net.messages.get()
    };
    let messages = story(0);
    assert!(messages > 20, "{messages} messages are worth breaking");
    for break_at in 1..=messages {
        story(break_at);
    }
}

#[test]
fn a_slow_follower_holds_no_more_than_its_credit() {
    let mut setup = Setup::default();
    setup.streams.credit_bytes = 128 << 10;
    setup.streams.bundle_bytes_max = 64 << 10;
    let mut world = world(7, setup);
    // The second disk is a hundred times slower.
    let slow = SimDiskOptions { latency_us_max: 20_000, ..SimDiskOptions::default() };
    world.replace(2, slow);
    world.create(0, &[1, 2]);
    world.assign(0, 1, &[1, 2], &[1, 2]);
    world.produce(1, 0, 1, 100);
    for _ in 0..40 {
        world.append(1, 0, 10, 5_000);
        for feeder in world.node(1).replicas.stats().feeders {
            assert!(feeder.credit_bytes >= -(64 << 10) - 60_000, "credit {}", feeder.credit_bytes);
        }
    }
    world.assert_equal(0, &[1, 2]);
    let feeder = &world.node(1).replicas.stats().feeders[0];
    world.until("credit has come back", || {
        world.node(1).replicas.stats().feeders[0].credit_bytes >= (64 << 10)
    });
    assert!(feeder.sent_bytes >= 40 * 50_000, "{} bytes sent", feeder.sent_bytes);
}

#[test]
fn garbage_ends_its_own_connection_alone() {
    let world = three(9);
    world.create(0, &[1, 2]);
    world.assign(0, 1, &[1, 2], &[1, 2]);
    world.produce(1, 0, 1, 100);
    let mut garbage: Vec<Vec<u8>> =
        vec![b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 100], vec![0xff; 64], stream_support::batch(1, 100)];
    // A well-formed message that is not the follower's to send.
    let mut marks = Vec::new();
    corelog_replication::stream::StreamMessage::Marks(Vec::new())
        .encode(&mut corelog_schemas::Encoder::default(), &mut marks);
    garbage.push(marks);
    for bytes in garbage {
        let (ours, theirs) = Wire::pair(&world.net);
        world.node(1).replicas.accept(theirs);
        ours.send_raw(&bytes);
        world.pass(1);
        assert!(ours.is_closed(), "{bytes:?} is not a greeting");
        world.produce(1, 0, 1, 100);
    }
    let (silent, theirs) = Wire::pair(&world.net);
    world.node(1).replicas.accept(theirs);
    world.pass(options().silence_ms_max + 500);
    assert!(silent.is_closed(), "who says nothing is not waited for");
    world.produce(1, 0, 1, 100);
    assert_eq!(world.node(2).replicas.stats().fetchers[0].connections, 1, "the follower's was never touched");
}

#[test]
fn a_refused_connection_is_reported_and_so_is_the_return() {
    let world = world(11, Setup::default());
    world.create(0, &[1, 2]);
    world.assign(0, 1, &[1, 2], &[1, 2]);
    world.produce(1, 0, 1, 100);
    let seen = || {
        let reports = world.node(2).reports.borrow();
        let sightings = reports.iter().filter_map(|report| match report {
            Report::Seen { sighting, .. } => Some(*sighting),
            _ => None,
        });
        sightings.collect::<Vec<_>>().pop()
    };
    assert_eq!(seen(), Some(Sighting::Connected));
    world.deafen(1);
    world.net.links.borrow().iter().for_each(Wire::cut);
    let before = world.executor.now_us();
    world.until("refused", || seen() == Some(Sighting::Refused));
    assert!(world.executor.now_us() - before < 200_000, "evidence comes at once");
    world.listen(world.node(1));
    world.until("connected", || seen() == Some(Sighting::Connected));
    world.produce(1, 0, 1, 100);
}

#[test]
fn who_leaves_is_not_waited_for() {
    let world = three(13);
    world.create(0, &[1, 2, 3]);
    world.assign(0, 1, &[1, 2, 3], &[1, 2, 3]);
    world.produce(1, 0, 1, 100);
    world.executor.run_until(world.node(3).replicas.leave());
    world.pass(2);
    let reports = world.node(1).reports.borrow();
    let proposed = reports.iter().find_map(|report| match report {
        Report::Isr(proposal) => Some(proposal.isr.clone()),
        _ => None,
    });
    let expected = vec![stream_support::replica(1, 0), stream_support::replica(2, 0)];
    assert_eq!(proposed, Some(expected));
    drop(reports);
    world.node(3).replicas.stop();
    world.executor.run_until(world.node(3).replicas.stopped());
}

#[test]
fn a_new_epoch_ends_streams_of_the_old_one() {
    let world = three(17);
    world.create(0, &[1, 2]);
    world.assign(0, 1, &[1, 2], &[1, 2]);
    world.produce(1, 0, 3, 100);
    // The leader goes on in a later epoch; the follower hears of it later.
    world.assign_one(1, 0, 2, &[1, 2], &[1, 2]);
    let end = world.append(1, 0, 3, 100);
    world.pass(1_000);
    assert!(world.partition(2, 0).log().ends().end < end, "nothing of a later epoch was taken");
    world.assign_one(2, 0, 2, &[1, 2], &[1, 2]);
    world.assert_equal(0, &[1, 2]);
    // And the other way round: the follower is told first, and waits for the leader.
    world.assign_one(2, 0, 3, &[1, 2], &[1, 2]);
    world.pass(1_000);
    world.assign_one(1, 0, 3, &[1, 2], &[1, 2]);
    let before = world.executor.now_us();
    world.produce(1, 0, 1, 100);
    assert!(world.executor.now_us() - before < 20_000, "it follows as soon as the leader leads");
    world.assert_equal(0, &[1, 2]);
    // An order that comes late changes nothing.
    let late = corelog_replication::Assignment {
        partition: id(0),
        me: stream_support::replica(2, 0),
        role: corelog_replication::Role::Wait,
        leader_epoch: corelog_engine::LeaderEpoch(1),
        replicas: Vec::new(),
        isr: Vec::new(),
        version: corelog_replication::coordination::Version(1),
        min_insync_replicas: 1,
    };
    world.node(2).replicas.assign(late, None).expect("ignored");
    world.produce(1, 0, 1, 100);
    world.assert_equal(0, &[1, 2]);
}

#[test]
fn a_follower_far_behind_is_fed_from_disk_while_others_go_on() {
    let mut setup = Setup { pool_bytes: 8 << 20, ..Setup::default() };
    setup.streams.catch_up_bytes_per_second = Some(8 << 20);
    let world = world(19, setup);
    world.create(0, &[1, 2]);
    world.create(1, &[1, 2]);
    world.assign(1, 1, &[1, 2], &[1, 2]);
    world.assign_one(1, 0, 1, &[1, 2], &[1]);
    for _ in 0..200 {
        world.append(1, 0, 20, 5_000);
    }
    world.produce(1, 1, 1, 100);
    let began = world.executor.now_us();
    world.assign_one(2, 0, 1, &[1, 2], &[1]);
    for _ in 0..30 {
        let before = world.executor.now_us();
        world.produce(1, 1, 1, 100);
        assert!(world.executor.now_us() - before < 10_000, "a live partition waits for nobody's past");
        world.pass(10);
    }
    world.assert_equal(0, &[1, 2]);
    let took_ms = (world.executor.now_us() - began) / 1_000;
    assert!(took_ms > 1_000, "20 MB at 8 MiB a second in {took_ms} ms");
    let feeder = &world.node(1).replicas.stats().feeders[0];
    assert!(feeder.caught_up_bytes > 10_000_000, "{} bytes came from disk", feeder.caught_up_bytes);
    assert!(feeder.streams.iter().all(|stream| !stream.is_catching_up));
    world.produce(1, 0, 1, 100);
}

/// Two replicas with several sealed segments, and a scrubber that looks every second.
fn scrubbed(seed: u64) -> World {
    let mut setup = Setup::default();
    setup.log.segment_bytes_max = 64 << 10;
    setup.streams.scrub_bytes_per_second = Some(64 << 20);
    setup.streams.scrub_pause_ms = 1_000;
    let world = world(seed, setup);
    world.create(0, &[1, 2]);
    world.assign(0, 1, &[1, 2], &[1, 2]);
    for _ in 0..40 {
        world.produce(1, 0, 5, 1_000);
    }
    world.assert_equal(0, &[1, 2]);
    world
}

#[test]
fn the_scrubber_finds_damage_and_another_replica_mends_it() {
    for damaged in [1, 2] {
        let world = scrubbed(23);
        let expected = world.bytes(1, 0);
        let first = std::path::Path::new("/d/p0/00000000000000000000.log");
        world.node(damaged).disk.rot(first, 20_000, 0x10);
        world.until("mended", || world.node(damaged).replicas.stats().repaired_ranges == 1);
        let stats = world.node(damaged).replicas.stats();
        assert_eq!(stats.damaged_ranges, 1);
        assert!(stats.scrubbed_bytes > 100_000, "{} bytes looked at", stats.scrubbed_bytes);
        assert!(world.bytes(damaged, 0) == expected, "node {damaged} reads what was there before");
        world.pass(3_000);
        assert_eq!(world.node(damaged).replicas.stats().damaged_ranges, 1, "nothing is damaged any more");
    }
}

#[test]
fn damage_that_a_new_follower_meets_at_its_leader_is_mended_from_another_one() {
    let mut setup = Setup { nodes: 3, ..Setup::default() };
    setup.log.segment_bytes_max = 64 << 10;
    // So little memory that the beginning of the log is on disk alone.
    setup.pool_bytes = 2 << 20;
    let world = world(29, setup);
    world.create(0, &[1, 2, 3]);
    world.assign_one(1, 0, 1, &[1, 2, 3], &[1, 2]);
    world.assign_one(2, 0, 1, &[1, 2, 3], &[1, 2]);
    for _ in 0..100 {
        world.produce(1, 0, 30, 1_000);
    }
    world.assert_equal(0, &[1, 2]);
    let second = std::path::Path::new("/d/p0/00000000000000000060.log");
    world.node(1).disk.rot(second, 40_000, 0x01);
    world.assign_one(3, 0, 1, &[1, 2, 3], &[1, 2]);
    world.assert_equal(0, &[2, 3]);
    assert_eq!(world.node(1).replicas.stats().repaired_ranges, 1);
    world.assert_equal(0, &[1, 2, 3]);
}

#[test]
fn a_disk_that_hangs_stops_its_own_partitions_alone() {
    let world = world(31, Setup::default());
    // Two disks on each node.
    for partition in [0, 40] {
        world.create(partition, &[1, 2]);
        world.assign(partition, 1, &[1, 2], &[1, 2]);
        world.produce(1, partition, 1, 100);
    }
    let hang = FaultEffect::Delay { us: 10_000_000 };
    world.node(2).disk.inject(Fault::eio(FaultKind::Write, "/d/p0").times(1_000_000).with(hang));
    let mut slowest_us = 0;
    for round in 0..60 {
        // More than the log takes unwritten, and than the credit of the connection.
        world.append(1, 0, 12, 50_000);
        let before = world.executor.now_us();
        world.produce(1, 40, 1, 100);
        let took_us = world.executor.now_us() - before;
        slowest_us = slowest_us.max(took_us);
        if round > 55 {
            assert!(took_us < 10_000, "{took_us} us for a partition on a sound disk");
        }
    }
    assert!(slowest_us < 2_500_000, "{slowest_us} us while the hanging disk was found out");
    let reports = world.node(1).reports.borrow();
    let left_out = reports.iter().any(|report| match report {
        Report::Isr(proposal) => proposal.partition == id(0) && proposal.isr.len() == 1,
        _ => false,
    });
    assert!(left_out, "it is not waited for");
    drop(reports);
    world.node(2).disk.heal();
    world.assert_equal(0, &[1, 2]);
    world.assert_equal(40, &[1, 2]);
}
