//! Where partitions go: which shard, which data directory. Pure: loads and free space in, places out.
//!
//! Owns: the rule. A new partition goes to the shard with the fewest, and to the usable data directory with the most
//! free space. When the number of shards has changed, only as many partitions move as balance demands.
//! Not here: moving data. Nothing on disk knows about shards.

use super::snapshot::{DataDirIndex, ShardId};

/// What a data directory has to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataDirSpace {
    /// Which.
    pub data_dir: DataDirIndex,
    /// Free bytes, as last measured.
    pub free_bytes: u64,
    /// Partitions that it holds.
    pub partitions: usize,
}

/// Where one partition goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its shard.
    pub shard: ShardId,
    /// Its data directory.
    pub data_dir: DataDirIndex,
}

/// Places `count` new partitions one after the other.
///
/// `shard_loads`: partitions of each shard. `spaces`: the usable data directories; none of them, no places (`None`).
/// Each partition placed counts as `reserve_bytes` less of free space, so that a topic of many partitions spreads
/// over disks that differ by a few bytes.
///
/// Panics if there is no shard.
pub fn place(
    count: usize,
    shard_loads: &[usize],
    spaces: &[DataDirSpace],
    reserve_bytes: u64,
) -> Option<Vec<Place>> {
    assert!(!shard_loads.is_empty(), "a node has at least one shard");
    let mut loads = shard_loads.to_vec();
    let mut spaces = spaces.to_vec();
    let mut places = Vec::with_capacity(count);
    for _ in 0..count {
        let shard = least_loaded(&loads);
        loads[shard] += 1;
        // The most free space; among equals the one with fewer partitions, then the first.
        let best = spaces
            .iter_mut()
            .rev()
            .max_by(|a, b| a.free_bytes.cmp(&b.free_bytes).then_with(|| b.partitions.cmp(&a.partitions)))?;
        best.free_bytes = best.free_bytes.saturating_sub(reserve_bytes);
        best.partitions += 1;
        places.push(Place { shard: shard_id(shard), data_dir: best.data_dir });
    }
    Some(places)
}

/// Spreads partitions over `shards` shards. `current`: the shard of each from the last start, which may not exist
/// any more. A partition stays where it is unless its shard is gone or has more than its share.
///
/// Panics if there is no shard.
pub fn respread(current: &[ShardId], shards: u16) -> Vec<ShardId> {
    assert!(shards > 0, "a node has at least one shard");
    let share_max = current.len().div_ceil(usize::from(shards));
    let mut loads = vec![0; usize::from(shards)];
    let stays: Vec<bool> = current
        .iter()
        .map(|shard| match loads.get_mut(shard.index()) {
            Some(load) if *load < share_max => {
                *load += 1;
                true
            }
            _ => false,
        })
        .collect();
    current
        .iter()
        .zip(stays)
        .map(|(shard, stays)| {
            if stays {
                return *shard;
            }
            let to = least_loaded(&loads);
            loads[to] += 1;
            shard_id(to)
        })
        .collect()
}

fn least_loaded(loads: &[usize]) -> usize {
    loads.iter().enumerate().min_by_key(|(_, load)| **load).map_or(0, |(shard, _)| shard)
}

fn shard_id(index: usize) -> ShardId {
    ShardId(u16::try_from(index).expect("shards are counted in 16 bits"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space(data_dir: u16, free_bytes: u64, partitions: usize) -> DataDirSpace {
        DataDirSpace { data_dir: DataDirIndex(data_dir), free_bytes, partitions }
    }

    fn numbers(places: &[Place]) -> Vec<(u16, u16)> {
        places.iter().map(|place| (place.shard.0, place.data_dir.0)).collect()
    }

    #[test]
    fn new_partitions_fill_the_emptiest_shard_and_disk() {
        let places = place(3, &[5, 3, 4], &[space(0, 100, 0), space(1, 130, 9)], 20).expect("there is room");
        assert_eq!(numbers(&places), [(1, 1), (1, 1), (2, 0)]);
    }

    #[test]
    fn equal_disks_take_turns() {
        let places = place(4, &[0, 0], &[space(0, 100, 0), space(1, 100, 0)], 10).expect("there is room");
        assert_eq!(numbers(&places), [(0, 0), (1, 1), (0, 0), (1, 1)]);
    }

    #[test]
    fn without_a_usable_disk_there_is_no_place() {
        assert_eq!(place(1, &[0], &[], 1), None);
    }

    proptest! {
        #[test]
        fn respreading_balances_and_moves_no_more_than_it_must(
            old in proptest::collection::vec(0_u16..12, 0..200),
            shards in 1_u16..12,
        ) {
            let current: Vec<ShardId> = old.into_iter().map(ShardId).collect();
            let spread = respread(&current, shards);
            prop_assert_eq!(spread.len(), current.len());
            let share_max = current.len().div_ceil(usize::from(shards));
            for shard in 0..shards {
                let count = |list: &[ShardId]| list.iter().filter(|s| s.0 == shard).count();
                prop_assert!(count(&spread) <= share_max);
                let stayed = current.iter().zip(&spread).filter(|(a, b)| a == b && a.0 == shard).count();
                prop_assert_eq!(stayed, count(&current).min(share_max));
            }
            // Twice is once: a restart with the same number of shards moves nothing.
            prop_assert_eq!(respread(&spread, shards), spread);
        }
    }
}
