//! The handshake as tables, and every pair of short logs that leaderships can leave behind.

use corelog_engine::LogId;

use super::*;
use crate::replica::NodeId;

/// A log as the epoch of each of its records; those below `start` are deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Records {
    epochs: Vec<u32>,
    start: usize,
}

impl Records {
    fn new(epochs: &[u32]) -> Self {
        Self { epochs: epochs.to_vec(), start: 0 }
    }

    fn table(&self) -> EpochTable {
        let mut table = EpochTable::default();
        for (offset, epoch) in self.epochs.iter().enumerate() {
            table.assign(LeaderEpoch(*epoch), Offset(offset as u64)).unwrap();
        }
        table.truncate_from_start(Offset(self.start as u64));
        if self.start == self.epochs.len() && self.start == 0 {
            table = EpochTable::default();
        }
        table
    }

    fn end(&self) -> Offset {
        Offset(self.epochs.len() as u64)
    }

    fn request(&self, epoch: u32) -> FollowRequest {
        FollowRequest {
            replica: replica(2),
            epoch: LeaderEpoch(epoch),
            newest_epoch: self.table().latest().map(|latest| latest.epoch),
            log_start: Offset(self.start as u64),
            log_end: self.end(),
        }
    }

    fn verdict_for(&self, follower: &Self) -> FollowVerdict {
        let table = self.table();
        answer(view(&table, self), &follower.request(9))
    }
}

fn view<'a>(table: &'a EpochTable, records: &Records) -> LogView<'a> {
    LogView { epochs: table, start: Offset(records.start as u64), end: records.end() }
}

fn replica(node: u32) -> ReplicaId {
    ReplicaId { node: NodeId(node), log: LogId(u128::from(node)) }
}

/// Follows to the end: cuts and asks until the leader says Start. Returns how many cuts that took.
fn follow(leader: &Records, follower: &mut Records) -> usize {
    let table = leader.table();
    let mut machine = Follower::new(replica(1), LeaderEpoch(9));
    for cuts in 0..10 {
        let verdict = answer(view(&table, leader), &follower.request(9));
        machine.asked();
        let answer = FollowAnswer {
            verdict,
            high_watermark: Offset::ZERO,
            log_start: Offset(leader.start as u64),
            log_end: leader.end(),
        };
        let own = follower.table();
        let action = machine.answered(LeaderEpoch(9), &answer, view(&own, follower)).unwrap();
        match action {
            FollowAction::Copy => return cuts,
            FollowAction::Cut(to) => {
                assert!(
                    to < follower.end(),
                    "a cut at the end cuts nothing, and would be asked for for ever"
                );
                follower.epochs.truncate(to.0 as usize);
            }
            FollowAction::Reset { to, .. } => {
                *follower = Records { epochs: leader.epochs[..to.0 as usize].to_vec(), start: to.0 as usize };
                // A new log knows no epochs.
                machine.done(action);
                if machine.phase() == FollowPhase::Copying {
                    return cuts;
                }
                return cuts + 1;
            }
        }
        machine.done(action);
        assert_eq!(machine.phase(), FollowPhase::Idle, "R14: after a cut it asks again");
    }
    panic!("no end: leader {leader:?}, follower {follower:?}");
}

fn end_of(epoch: u32, end: u64) -> FollowVerdict {
    FollowVerdict::EpochEnd(EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) })
}

#[test]
fn the_leader_answers_by_its_epochs() {
    use FollowVerdict::{Reset, Start};
    let start = |from| Start { from: Offset(from) };
    let deleted = |start| Records { start, ..Records::new(&[1, 1, 1, 1]) };
    for (leader, follower, expected) in [
        // A prefix, of the same or of an older epoch.
        (Records::new(&[1, 1, 2]), Records::new(&[1]), start(1)),
        (Records::new(&[1, 1, 2]), Records::new(&[1, 1, 2]), start(3)),
        (Records::new(&[1, 1]), Records::new(&[]), start(0)),
        (Records::new(&[]), Records::new(&[]), start(0)),
        // The follower has more of an epoch than the leader.
        (Records::new(&[1, 1, 2]), Records::new(&[1, 1, 1, 1]), end_of(1, 2)),
        // The follower's newest epoch is not in the leader's log: the one before counts.
        (Records::new(&[1, 1, 3]), Records::new(&[1, 2, 2]), end_of(1, 2)),
        // It is later than any in the leader's log, which has not appended in its own term yet.
        (Records::new(&[1, 1]), Records::new(&[1, 2]), end_of(1, 2)),
        // Nothing of the leader's is left, or nothing was ever there.
        (Records::new(&[]), Records::new(&[1]), Reset { to: Offset(0) }),
        (deleted(3), Records::new(&[1, 1]), Reset { to: Offset(3) }),
        (deleted(3), Records::new(&[]), Reset { to: Offset(3) }),
        (deleted(3), Records::new(&[1, 1, 1]), start(3)),
    ] {
        assert_eq!(leader.verdict_for(&follower), expected, "leader {leader:?}, follower {follower:?}");
    }
}

#[test]
fn an_empty_log_may_begin_at_the_leaders_start_alone() {
    let leader = Records::new(&[1, 1, 1]);
    let mut request = Records::new(&[]).request(9);
    (request.log_start, request.log_end) = (Offset(2), Offset(2));
    let table = leader.table();
    assert_eq!(answer(view(&table, &leader), &request), FollowVerdict::Reset { to: Offset(0) }, "R16");
}

/// Kafka's KIP-279: two quick changes of leader leave logs of which the first answer alone cuts too little.
#[test]
fn a_log_that_parted_twice_takes_two_cuts() {
    let leader = Records::new(&[1, 1, 3, 3, 3]);
    let mut follower = Records::new(&[1, 1, 2, 2, 4]);
    assert_eq!(follow(&leader, &mut follower), 2);
    assert_eq!(follower, Records::new(&[1, 1]));
}

#[test]
fn nothing_but_the_answer_to_the_last_question_of_this_epoch_counts() {
    let own = Records::new(&[1, 1]);
    let table = own.table();
    let mut machine = Follower::new(replica(1), LeaderEpoch(9));
    let start = FollowAnswer {
        verdict: FollowVerdict::Start { from: Offset(2) },
        high_watermark: Offset(1),
        log_start: Offset(0),
        log_end: Offset(5),
    };
    let answered = |machine: &mut Follower, epoch, answer| {
        machine.answered(LeaderEpoch(epoch), &answer, view(&table, &own))
    };
    let idle = Err(HandshakeError::OutOfTurn { phase: FollowPhase::Idle });
    assert_eq!(answered(&mut machine, 9, start), idle, "it has not asked");
    machine.asked();
    let (given, current) = (LeaderEpoch(8), LeaderEpoch(9));
    let older = Err(HandshakeError::OtherEpoch { given, current });
    assert_eq!(answered(&mut machine, 8, start), older, "R15");
    assert_eq!(machine.phase(), FollowPhase::Asked, "and the right answer may still come");
    let elsewhere = FollowAnswer { verdict: FollowVerdict::Start { from: Offset(1) }, ..start };
    let other_end = Err(HandshakeError::OtherEnd { from: Offset(1), end: Offset(2) });
    assert_eq!(answered(&mut machine, 9, elsewhere), other_end);
    assert!(machine.check_copying(current).is_err(), "it has to ask again");
    machine.asked();
    assert_eq!(answered(&mut machine, 9, start), Ok(FollowAction::Copy));
    assert_eq!(machine.check_copying(current), Ok(()));
    assert!(machine.check_copying(given).is_err(), "R15");
    assert!(!machine.has_caught_up(Offset(4)));
    assert!(machine.has_caught_up(Offset(5)));
    machine.lost();
    assert!(machine.check_copying(current).is_err());
    assert!(!machine.has_caught_up(Offset(5)));
}

#[test]
fn a_follower_whose_whole_log_parted_begins_anew() {
    let own = Records { start: 3, ..Records::new(&[1, 1, 1, 2]) };
    let table = own.table();
    let said = |epoch, end| EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) };
    assert_eq!(cut_for(view(&table, &own), said(1, 2)), Cut::All, "its start lies beyond");
    assert_eq!(cut_for(view(&table, &own), said(1, 3)), Cut::At(Offset(3)));
}

/// Every log of at most `length` records whose epochs do not fall and come from `epochs`.
fn logs(length: usize, epochs: std::ops::RangeInclusive<u32>) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new()];
    let mut last: Vec<Vec<u32>> = all.clone();
    for _ in 0..length {
        last = last
            .iter()
            .flat_map(|log| {
                let from = log.last().copied().unwrap_or(*epochs.start());
                (from..=*epochs.end()).map(move |epoch| log.iter().copied().chain([epoch]).collect())
            })
            .collect();
        all.extend(last.iter().cloned());
    }
    all
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Whether one leader of each epoch can have made both: an epoch that both have begins at the same offset, behind
/// the same records.
fn can_both_be(a: &[u32], b: &[u32]) -> bool {
    let same = common(a, b);
    a[same..].iter().all(|epoch| !b[same..].contains(epoch))
        && (same == 0 || !(a[same..].contains(&a[same - 1]) && b[same..].contains(&a[same - 1])))
}

#[test]
fn every_follower_cuts_to_what_both_have_and_no_further() {
    let all = logs(5, 1..=4);
    let mut pairs = 0;
    for leader in &all {
        for follower in &all {
            if !can_both_be(leader, follower) {
                continue;
            }
            pairs += 1;
            let same = common(leader, follower);
            let mut records = Records::new(follower);
            follow(&Records::new(leader), &mut records);
            assert_eq!(records.epochs, leader[..same], "leader {leader:?}, follower {follower:?}");
        }
    }
    assert!(pairs > 1_000, "only {pairs} pairs");
}

#[test]
fn a_leader_that_has_deleted_its_first_records_never_leaves_a_gap() {
    let all = logs(4, 1..=3);
    for leader in all.iter().filter(|leader| !leader.is_empty()) {
        for start in 1..leader.len() {
            for follower in all.iter().filter(|follower| can_both_be(leader, follower)) {
                let leader = Records { epochs: leader.clone(), start };
                let mut records = Records::new(follower);
                follow(&leader, &mut records);
                let end = records.epochs.len();
                assert!(end >= start, "R16: leader {leader:?}, follower {follower:?}: {records:?}");
                let shared = records.start.max(start)..end;
                assert_eq!(records.epochs[shared.clone()], leader.epochs[shared], "{leader:?}, {follower:?}");
            }
        }
    }
}
