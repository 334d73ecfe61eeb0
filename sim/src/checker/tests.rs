//! Hand-made histories: each has one fault, and the verdict must name just that one.

use super::*;

/// A history of one partition under construction.
struct Story {
    history: History,
    clock_us: u64,
    stored: Vec<Stored>,
}

fn key() -> PartitionKey {
    PartitionKey { topic: "t".into(), partition: 0 }
}

fn tag(sequence: u64) -> RecordTag {
    RecordTag { producer: 1, sequence }
}

impl Story {
    fn new() -> Self {
        Self { history: History::default(), clock_us: 0, stored: Vec::new() }
    }

    fn tick(&mut self) -> u64 {
        self.clock_us += 10;
        self.clock_us
    }

    fn produce(mut self, sequence: u64, records: u32, outcome: ProduceOutcome) -> Self {
        let (asked_us, answered_us) = (self.tick(), self.tick());
        self.history.events.push(Event::Produce(Produce {
            partition: key(),
            producer: 1,
            connection: 1,
            sequence,
            records,
            promise: Promise::Committed,
            asked_us,
            answered_us,
            outcome,
            leader_epoch: Some(1),
        }));
        self
    }

    /// One record, acked at an offset.
    fn acked(self, sequence: u64, base_offset: u64) -> Self {
        self.produce(sequence, 1, ProduceOutcome::Acked { base_offset })
    }

    fn change(mut self, change: impl FnOnce(&mut Produce)) -> Self {
        if let Some(Event::Produce(produce)) = self.history.events.last_mut() {
            change(produce);
        }
        self
    }

    fn read(mut self, from: u64, records: &[(u64, u64)], high_watermark: u64) -> Self {
        let (asked_us, answered_us) = (self.tick(), self.tick());
        self.history.events.push(Event::Read(Read {
            partition: key(),
            consumer: 7,
            from,
            records: records.iter().map(|&(offset, sequence)| (offset, tag(sequence))).collect(),
            high_watermark,
            leader_epoch: Some(1),
            asked_us,
            answered_us,
        }));
        self
    }

    fn latest(mut self, offset: u64, epoch: u32) -> Self {
        let (asked_us, answered_us) = (self.tick(), self.tick());
        let leader_epoch = Some(epoch);
        let latest = Latest { partition: key(), offset, leader_epoch, asked_us, answered_us };
        self.history.events.push(Event::Latest(latest));
        self
    }

    fn event(mut self, event: Event) -> Self {
        self.history.events.push(event);
        self
    }

    fn led(self, epoch: u32, replica: &str, incarnation: u64) -> Self {
        let seen = LeaderSeen { partition: key(), epoch, replica: replica.into(), incarnation };
        self.event(Event::Leader(seen))
    }

    /// What the log holds at the end: (offset, sequence).
    fn stored(mut self, records: &[(u64, u64)]) -> Self {
        self.stored =
            records.iter().map(|&(offset, s)| Stored { offset, leader_epoch: 1, tag: tag(s) }).collect();
        self
    }

    fn end(self) -> History {
        self.end_with(|_| {})
    }

    fn end_with(mut self, change: impl FnOnce(&mut FinalPartition)) -> History {
        let log_start = self.stored.first().map_or(0, |stored| stored.offset);
        let high_watermark = self.stored.last().map_or(0, |stored| stored.offset + 1);
        let replica =
            |name: &str| FinalReplica { name: name.into(), log_start, records: self.stored.clone() };
        let replicas = vec![replica("1"), replica("2")];
        let mut partition = FinalPartition {
            partition: key(),
            log_start,
            log_start_max: Some(log_start),
            high_watermark,
            records: self.stored.clone(),
            replicas,
        };
        change(&mut partition);
        self.history.partitions.push(partition);
        self.history
    }
}

fn unclean(epoch: u32) -> Event {
    Event::Unclean(UncleanElection { partition: key(), epoch })
}

/// The verdict, by the names of its variants, each once.
fn names(history: &History) -> Vec<String> {
    let mut names: Vec<String> = check(history)
        .iter()
        .map(|violation| format!("{violation:?}").split([' ', '{']).next().unwrap_or_default().to_owned())
        .collect();
    names.dedup();
    names
}

#[track_caller]
fn verdict(history: History, expected: &[&str]) {
    assert_eq!(names(&history), expected, "{:#?}", check(&history));
}

#[test]
fn a_sound_history_passes() {
    let story = Story::new()
        .produce(0, 2, ProduceOutcome::Acked { base_offset: 0 })
        .produce(2, 1, ProduceOutcome::Unknown)
        .produce(3, 1, ProduceOutcome::Refused)
        .read(0, &[(0, 0), (1, 1)], 2)
        .acked(4, 2)
        .produce(5, 2, ProduceOutcome::Unknown)
        .read(2, &[(2, 4)], 3)
        .latest(3, 1)
        .led(1, "1", 9)
        .stored(&[(0, 0), (1, 1), (2, 4), (3, 5), (4, 6)]);
    verdict(story.end(), &[]);
}

#[test]
fn acked_records_stay_at_their_offsets() {
    verdict(Story::new().acked(0, 0).acked(1, 1).stored(&[(0, 0)]).end(), &["Lost"]);
    let moved = Story::new().acked(0, 1).produce(1, 1, ProduceOutcome::Unknown).stored(&[(0, 1), (1, 0)]);
    verdict(moved.end(), &["Reordered"]);
    let overwritten = Story::new().acked(0, 0).produce(1, 1, ProduceOutcome::Unknown).stored(&[(0, 1)]);
    verdict(overwritten.end(), &["TwoValues", "Lost"]);
}

#[test]
fn acks_of_the_leader_alone_hold_until_another_is_elected() {
    let one = |promise: Promise| {
        let story = Story::new().acked(0, 0).change(|p| p.promise = promise).led(1, "1", 9);
        story.led(2, "1", 10).stored(&[])
    };
    verdict(one(Promise::UntilElection).end(), &["Lost"]);
    verdict(one(Promise::UntilElection).led(3, "2", 4).end(), &[]);
    verdict(one(Promise::Nothing).end(), &[]);
}

#[test]
fn nothing_is_there_twice_or_half_or_from_nowhere() {
    let one = || Story::new().produce(0, 1, ProduceOutcome::Unknown);
    verdict(one().stored(&[(0, 0), (1, 0)]).end(), &["Repeated"]);
    verdict(one().stored(&[(0, 0), (1, 9)]).end(), &["NeverSent"]);
    let refused = Story::new().produce(0, 1, ProduceOutcome::Refused);
    verdict(refused.stored(&[(0, 0)]).end(), &["RefusedButThere"]);
    let two = || Story::new().produce(0, 2, ProduceOutcome::Unknown).produce(2, 1, ProduceOutcome::Unknown);
    verdict(two().stored(&[(0, 0), (1, 2)]).end(), &["Half"]);
    verdict(two().stored(&[(0, 1)]).end(), &["Half"]);
    verdict(two().stored(&[(5, 1), (6, 2)]).end(), &[]);
}

#[test]
fn what_was_read_stays() {
    let story = || Story::new().produce(0, 1, ProduceOutcome::Unknown).read(0, &[(0, 0)], 1);
    verdict(story().stored(&[]).end(), &["ReadButLost"]);
    verdict(story().stored(&[(0, 0)]).end(), &[]);
    let elsewhere = || story().produce(1, 1, ProduceOutcome::Unknown);
    verdict(elsewhere().stored(&[(0, 1)]).end(), &["TwoValues", "ReadButLost"]);
}

#[test]
fn consumers_never_go_back_or_skip_or_read_ahead() {
    let story = |reads: fn(Story) -> Story| {
        let sent = (0..4).fold(Story::new(), |story, i| story.acked(i, i));
        reads(sent).stored(&[(0, 0), (1, 1), (2, 2), (3, 3)]).end()
    };
    verdict(story(|s| s.read(0, &[(0, 0), (1, 1)], 4).read(2, &[(1, 1)], 4)), &["Skipped"]);
    verdict(story(|s| s.read(0, &[(0, 0)], 4).read(1, &[(2, 2)], 4)), &["Skipped"]);
    verdict(story(|s| s.read(0, &[(0, 0), (1, 1)], 1)), &["ReadUncommitted"]);
    let seek = Move { partition: key(), consumer: 7, to: 0, reason: MoveReason::Asked };
    let again = Story::new().acked(0, 0).read(0, &[(0, 0)], 1).event(Event::Move(seek));
    verdict(again.read(0, &[(0, 0)], 1).stored(&[(0, 0)]).end(), &[]);
}

#[test]
fn marks_only_rise() {
    let story = || Story::new().acked(0, 0).acked(1, 1).stored(&[(0, 0), (1, 1)]);
    verdict(story().read(0, &[], 2).read(0, &[], 1).end(), &["HighWatermarkWentBack"]);
    verdict(story().latest(1, 1).end(), &["LatestWentBack"]);
    verdict(story().latest(1, 0).end(), &[]);
    verdict(story().latest(2, 1).latest(2, 2).end(), &[]);
    let read_ahead = story().read(0, &[(0, 0), (1, 1)], 2);
    verdict(read_ahead.latest(1, 3).end(), &["LatestWentBack"]);
}

#[test]
fn order_holds_on_a_connection_and_after_an_ack() {
    let two = || Story::new().produce(0, 1, ProduceOutcome::Unknown).produce(1, 1, ProduceOutcome::Unknown);
    verdict(two().stored(&[(0, 1), (1, 0)]).end(), &["Reordered"]);
    let other_connection = two().change(|produce| produce.connection = 2);
    verdict(other_connection.stored(&[(0, 1), (1, 0)]).end(), &[]);
}

#[test]
fn one_leader_per_epoch_and_one_start_of_it() {
    let story = || Story::new().led(1, "1", 9).led(1, "1", 9).led(2, "2", 5);
    verdict(story().end(), &[]);
    verdict(story().led(2, "1", 9).end(), &["TwoLeaders"]);
    verdict(story().led(2, "2", 6).end(), &["TwoLeaders"]);
}

#[test]
fn replicas_agree_on_what_is_committed() {
    let story = || Story::new().acked(0, 0).acked(1, 1).stored(&[(0, 0), (1, 1)]);
    verdict(story().end_with(|p| p.replicas[1].records[1].leader_epoch = 2), &["ReplicasDiffer"]);
    verdict(story().end_with(|p| p.replicas[0].records.truncate(1)), &["ReplicasDiffer"]);
    let no_first = |p: &mut FinalPartition| {
        p.replicas[0].records.remove(0);
    };
    verdict(story().end_with(no_first), &["Gap", "ReplicasDiffer"]);
    let later_start = |p: &mut FinalPartition| {
        p.replicas[0].records.remove(0);
        p.replicas[0].log_start = 1;
    };
    verdict(story().end_with(later_start), &[]);
}

#[test]
fn only_what_was_to_be_deleted_is() {
    let story = || Story::new().acked(0, 0).acked(1, 1).stored(&[(1, 1)]);
    verdict(story().end_with(|p| p.log_start_max = Some(0)), &["DeletedTooMuch"]);
    verdict(story().end_with(|p| p.log_start_max = None), &[]);
    let gap = Story::new().acked(0, 0).acked(1, 1).acked(2, 2).stored(&[(0, 0), (2, 2)]);
    verdict(gap.end(), &["Gap", "Lost"]);
}

#[test]
fn an_unclean_election_ends_what_was_promised_before() {
    let story = || {
        let lost = Story::new().acked(0, 0).read(0, &[(0, 0)], 1);
        let told = Move { partition: key(), consumer: 7, to: 0, reason: MoveReason::Truncated };
        lost.event(unclean(2)).event(Event::Move(told)).acked(1, 0).change(|p| p.leader_epoch = Some(2))
    };
    verdict(story().stored(&[(0, 1)]).end(), &[]);
    verdict(story().stored(&[]).end(), &["Lost"]);
}

#[test]
fn record_values_tell_who_wrote_them_and_whether_they_are_whole() {
    let tag = RecordTag { producer: 3, sequence: 123_456 };
    for bytes in [0, VALUE_BYTES_MIN, 500] {
        let value = tag.value(bytes);
        assert_eq!(RecordTag::parse(&value), Ok(tag));
        let mut damaged = value.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(RecordTag::parse(&damaged), Err(RecordError::Damaged { tag, at: value.len() - 1 }));
    }
    assert_eq!(RecordTag::parse(b"hello"), Err(RecordError::Foreign));
    let largest = RecordTag { producer: u32::MAX, sequence: u64::MAX };
    assert_eq!(RecordTag::parse(&largest.value(0)), Ok(largest));
}
