//! What the simulated disk may forget, and what it may not.
//!
//! Setup: small stories on one file or directory, ended by a crash under many seeds.
//! What must never happen: something synced is lost; something impossible on a real disk is found (half a
//! sector, a name that was never given). What must happen under some seed: everything the contract allows.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use corelog_engine::buffer::{BufferPool, DmaSlice};
use corelog_engine::disk::{BLOCK_BYTES, Disk, DiskFile, IoClass, OpenMode};
use corelog_sim::{
    Crash, EIO, ENOSPC, Executor, Fault, FaultEffect, FaultKind, SimDisk, SimDiskOptions, SimFile,
};

const BLOCK: u64 = BLOCK_BYTES as u64;
const SEEDS: u64 = 200;

struct World {
    executor: Executor,
    disk: SimDisk,
    pool: BufferPool,
}

impl World {
    fn new(seed: u64) -> Self {
        let executor = Executor::new(seed);
        let disk = SimDisk::new(executor.handle(), SimDiskOptions::default());
        Self { executor, disk, pool: BufferPool::new(1 << 20) }
    }

    fn blocks(&self, byte: u8, count: usize) -> DmaSlice {
        let mut buffer = self.pool.try_allocate(count * BLOCK_BYTES).expect("memory of the test");
        buffer.append(&vec![byte; count * BLOCK_BYTES]);
        buffer.slice(0..count * BLOCK_BYTES)
    }

    async fn durable_file(&self, path: &str) -> SimFile {
        let file = self.disk.open(Path::new(path), OpenMode::CreateNew).await.unwrap();
        self.disk.sync_dir(Path::new("/")).await.unwrap();
        file
    }

    async fn write(&self, file: &SimFile, byte: u8, position: u64) {
        file.write_at(vec![self.blocks(byte, 1)], position, IoClass::Commit).await.unwrap();
    }
}

/// First bytes of all sectors; checks that each sector is of one piece.
fn sectors(disk: &SimDisk, path: &str) -> Vec<u8> {
    let bytes = disk.peek(Path::new(path));
    bytes
        .chunks(512)
        .map(|sector| {
            assert!(sector.iter().all(|&byte| byte == sector[0]), "a sector is a mixture");
            sector[0]
        })
        .collect()
}

#[test]
fn what_was_synced_survives_and_the_rest_may_survive_or_tear() {
    let mut fates = BTreeSet::new();
    for seed in 0..SEEDS {
        let world = World::new(seed);
        let next = world.executor.run_until(async {
            let file = world.durable_file("/a").await;
            world.write(&file, 1, 0).await;
            world.write(&file, 1, BLOCK).await;
            file.sync().await.unwrap();
            world.write(&file, 2, BLOCK).await;
            world.disk.crash(Crash::PowerLoss)
        });
        let found = sectors(&next, "/a");
        assert_eq!(found[..8], [1; 8], "seed {seed}: synced and not overwritten");
        assert!(found[8..].iter().all(|&byte| byte == 1 || byte == 2), "seed {seed}: {found:?}");
        fates.insert(found[8..].to_vec());
    }
    assert!(fates.contains(&vec![1; 8]) && fates.contains(&vec![2; 8]), "all and nothing happen");
    assert!(fates.len() > 20, "and so do many ways to tear: {}", fates.len());
}

#[test]
fn a_sync_covers_only_what_was_complete_when_it_started() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let world = World::new(seed);
        let next = world.executor.run_until(async {
            let file = world.durable_file("/a").await;
            file.zero(0, BLOCK, IoClass::Background).await.unwrap();
            file.sync().await.unwrap();
            let write = file.write_at(vec![world.blocks(3, 1)], 0, IoClass::Commit);
            file.sync().await.unwrap();
            write.await.unwrap();
            world.disk.crash(Crash::PowerLoss)
        });
        lost += u64::from(sectors(&next, "/a") != [3; 8]);
    }
    assert!(lost > SEEDS / 4, "a write in flight beside the sync is not sure: lost {lost}");
}

#[test]
fn a_kill_keeps_what_was_written_and_any_of_what_was_in_flight() {
    let mut fates = BTreeSet::new();
    for seed in 0..SEEDS {
        let world = World::new(seed);
        let next = world.executor.run_until(async {
            let file = world.durable_file("/a").await;
            world.write(&file, 1, 0).await;
            drop(file.write_at(vec![world.blocks(2, 1)], BLOCK, IoClass::Commit));
            drop(file.write_at(vec![world.blocks(3, 1)], 2 * BLOCK, IoClass::Commit));
            world.disk.crash(Crash::Kill)
        });
        let found = sectors(&next, "/a");
        assert_eq!(found[..8], [1; 8], "seed {seed}: completed");
        assert_eq!(found.len() % 8, 0, "seed {seed}: a kill tears nothing");
        fates.insert(found.iter().step_by(8).copied().collect::<Vec<_>>());
    }
    assert_eq!(fates, BTreeSet::from([vec![1], vec![1, 2], vec![1, 0, 3], vec![1, 2, 3]]));
}

#[test]
fn what_survived_a_kill_may_still_be_lost_by_a_power_loss() {
    let mut fates = BTreeSet::new();
    for seed in 0..SEEDS {
        let world = World::new(seed);
        let next = world.executor.run_until(async {
            let file = world.durable_file("/a").await;
            file.zero(0, BLOCK, IoClass::Background).await.unwrap();
            file.sync().await.unwrap();
            world.write(&file, 1, 0).await;
            world.disk.crash(Crash::Kill).crash(Crash::PowerLoss)
        });
        fates.insert(sectors(&next, "/a"));
    }
    assert!(fates.contains(&vec![0; 8]) && fates.contains(&vec![1; 8]));
}

#[test]
fn names_are_sure_once_their_directory_is_synced() {
    let mut fates = BTreeSet::new();
    for seed in 0..SEEDS {
        let world = World::new(seed);
        let root = Path::new("/");
        let next = world.executor.run_until(async {
            world.durable_file("/a").await;
            world.disk.open(Path::new("/b"), OpenMode::CreateNew).await.unwrap();
            world.disk.rename(Path::new("/a"), Path::new("/c")).await.unwrap();
            world.disk.crash(Crash::PowerLoss)
        });
        let names = world.executor.run_until(next.list(root)).unwrap();
        let names: String = names.into_iter().map(|entry| entry.name).collect();
        assert!(names.contains('a') ^ names.contains('c'), "seed {seed}: a rename is whole: {names}");
        fates.insert(names);
    }
    assert_eq!(fates, ["a", "ab", "c", "bc"].map(String::from).into());
}

#[test]
fn a_replaced_file_is_old_or_new_at_every_sync() {
    for seed in 0..40 {
        for sync in 1.. {
            let world = World::new(seed);
            let path = Path::new("/checkpoint");
            let done = world.executor.run_until(async {
                world.disk.replace_file(path, b"old".to_vec()).await.unwrap();
                world.disk.syncs()
            });
            world.disk.stop_at_sync(done + sync);
            let disk = world.disk.clone();
            let replaced = world
                .executor
                .run_until_or(disk.replace_file(path, b"new".to_vec()), || world.disk.is_stopped());
            for crash in [Crash::Kill, Crash::PowerLoss] {
                let next = world.disk.after_crash(crash, &world.executor.handle());
                let found = world.executor.run_until(next.read_file(path, 10)).unwrap();
                assert!(found == b"old" || found == b"new", "seed {seed}, sync {sync}: {found:?}");
                assert!(replaced.is_none() || found == b"new", "seed {seed}: it was told to be durable");
            }
            if replaced.is_some() {
                assert!(sync > 2, "a replacement syncs the file and the directory");
                break;
            }
        }
    }
}

#[test]
fn a_failed_sync_loses_for_good_what_it_covered() {
    let mut fates = BTreeSet::new();
    for seed in 0..SEEDS {
        let world = World::new(seed);
        let next = world.executor.run_until(async {
            let file = world.durable_file("/a").await;
            file.zero(0, BLOCK, IoClass::Background).await.unwrap();
            file.sync().await.unwrap();
            world.write(&file, 1, 0).await;
            world.disk.inject(Fault::eio(FaultKind::Sync, "a"));
            let error = file.sync().await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(EIO));
            assert_eq!(sectors(&world.disk, "/a"), [1; 8], "reads still show it");
            file.sync().await.expect("the next sync knows nothing of it");
            world.disk.crash(Crash::PowerLoss)
        });
        fates.insert(sectors(&next, "/a")[0]);
    }
    assert_eq!(fates, BTreeSet::from([0, 1]), "a good sync after a failed one proves nothing");
}

#[test]
fn faults_meet_the_operation_they_are_set_for() {
    let world = World::new(1);
    world.executor.run_until(async {
        let file = world.durable_file("/a").await;
        let other = world.durable_file("/b").await;
        world.disk.inject(Fault::eio(FaultKind::Write, "/a").at(2));
        world.write(&file, 1, 0).await;
        world.write(&other, 1, 0).await;
        let failed = file.write_at(vec![world.blocks(2, 1)], 0, IoClass::Commit).await;
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(EIO));
        world.write(&file, 3, 0).await;

        world.disk.inject(Fault::eio(FaultKind::Write, "/a").with(FaultEffect::Lost));
        world.write(&file, 4, 0).await;
        assert_eq!(sectors(&world.disk, "/a")[0], 3, "answered as done, and was not");

        let astray = FaultEffect::Misdirected { position: 2 * BLOCK };
        world.disk.inject(Fault::eio(FaultKind::Write, "/a").with(astray));
        world.write(&file, 5, 0).await;
        let found: Vec<u8> = sectors(&world.disk, "/a").into_iter().step_by(8).collect();
        assert_eq!(found, [3, 0, 5]);

        let before = world.executor.now_us();
        world.disk.inject(Fault::eio(FaultKind::Sync, "/a").with(FaultEffect::Delay { us: 1_000_000 }));
        file.sync().await.unwrap();
        assert!(world.executor.now_us() - before > 1_000_000);

        world.disk.rot(Path::new("/a"), 100, 0x40);
        assert_eq!(world.disk.peek(Path::new("/a"))[99..102], [3, 3 ^ 0x40, 3]);
    });
}

#[test]
fn a_full_disk_refuses_growth_and_recovers() {
    let world = World::new(1);
    world.executor.run_until(async {
        let file = world.durable_file("/a").await;
        world.disk.set_capacity_bytes(Some(4 * BLOCK));
        world.write(&file, 1, 0).await;
        assert_eq!(world.disk.free_bytes(Path::new("/")).await.unwrap(), 3 * BLOCK);
        let error = file.write_at(vec![world.blocks(2, 4)], BLOCK, IoClass::Commit).await.unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::StorageFull, Some(ENOSPC)));
        let error = file.zero(0, 9 * BLOCK, IoClass::Background).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        world.write(&file, 3, 0).await;
        let other = world.durable_file("/b").await;
        world.write(&other, 4, 0).await;
        world.disk.remove_file(Path::new("/a")).await.unwrap();
        drop(file);
        assert_eq!(world.disk.free_bytes(Path::new("/")).await.unwrap(), 3 * BLOCK);
        world.write(&other, 4, 3 * BLOCK).await;
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let world = World::new(seed);
        let handle = world.executor.handle();
        world.executor.run_until(async {
            let file = world.durable_file("/a").await;
            let writers: Vec<_> = (0..8u8)
                .map(|i| {
                    let (file, handle, slice) = (file.clone(), handle.clone(), world.blocks(i, 1));
                    handle.clone().spawn(async move {
                        file.write_at(vec![slice], 0, IoClass::Commit).await.unwrap();
                        handle.note(format_args!("{i} done"));
                    })
                })
                .collect();
            for writer in writers {
                writer.await;
            }
        });
        let next = world.disk.crash(Crash::PowerLoss);
        (world.executor.trace_hash(), sectors(&next, "/a"))
    };
    assert_eq!(run(5), run(5));
    let winners: BTreeSet<Vec<u8>> = (0..50).map(|seed| run(seed).1).collect();
    assert!(winners.len() > 5, "writes in flight complete in any order");
}
