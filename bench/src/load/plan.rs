//! Who sends what, where and when. Pure: no socket, no clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What one connection does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionPlan {
    /// Shard that it talks to.
    pub(crate) address: String,
    /// Partitions that it serves, all led by that shard.
    pub(crate) partitions: Vec<u32>,
}

/// Spreads connections over shards, and each shard's partitions over its connections.
///
/// With more connections than partitions several share one; with fewer connections than shards there is one for
/// each shard nevertheless, since a connection talks to one shard only.
pub(crate) fn plan_connections(connections: usize, leaders: &[(u32, String)]) -> Vec<ConnectionPlan> {
    let mut by_shard: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (partition, address) in leaders {
        by_shard.entry(address).or_default().push(*partition);
    }
    let shards = by_shard.len();
    let total = connections.max(shards);
    let mut plans = Vec::with_capacity(total);
    for (shard, (address, partitions)) in by_shard.into_iter().enumerate() {
        let own = (total + shards - 1 - shard) / shards;
        for i in 0..own {
            let partitions = if own <= partitions.len() {
                partitions.iter().copied().skip(i).step_by(own).collect()
            } else {
                vec![partitions[i % partitions.len()]]
            };
            plans.push(ConnectionPlan { address: address.to_owned(), partitions });
        }
    }
    plans
}

/// When a connection's requests are meant to leave. A late request does not move those after it, so the time that
/// it waited counts as its latency.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Schedule {
    /// As soon as the in-flight limit allows.
    FlatOut,
    /// One each `interval`; the next at `next`.
    Paced {
        /// Intended time of the next request.
        next: Instant,
        /// Time between two.
        interval: Duration,
    },
}

impl Schedule {
    /// The schedule of connection `index` of `count`, which together send `rate` requests a second.
    pub(crate) fn new(start: Instant, rate: Option<f64>, index: usize, count: usize) -> Self {
        match rate {
            None => Self::FlatOut,
            Some(rate) => Self::Paced {
                next: start + Duration::from_secs_f64(index as f64 / rate),
                interval: Duration::from_secs_f64(count as f64 / rate),
            },
        }
    }

    /// The intended time of the next request, if it is due at `now`; moves on to the one after it.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Instant> {
        match self {
            Self::FlatOut => Some(now),
            Self::Paced { next, interval } => {
                let intended = *next;
                (intended <= now).then(|| {
                    *next += *interval;
                    intended
                })
            }
        }
    }

    /// When the next request is due; `None` means whenever there is room.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        match self {
            Self::FlatOut => None,
            Self::Paced { next, .. } => Some(*next),
        }
    }
}

/// The parts of a run: warm-up, the window that counts, and some patience for what is still in flight at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// First request.
    pub(crate) start: Instant,
    /// From here it counts.
    pub(crate) measure: Instant,
    /// No request is intended at or after this.
    pub(crate) end: Instant,
    /// Until here requests that were due within the window may still leave; later ones never do.
    pub(crate) last_send: Instant,
    /// Answers are waited for until here.
    pub(crate) drained: Instant,
}

impl Window {
    /// Longest wait for answers after the last request.
    const PATIENCE: Duration = Duration::from_secs(10);
    /// Longest time for sending what is overdue at the end: a hiccup is caught up with, a lost race is not.
    const CATCH_UP: Duration = Duration::from_secs(1);

    /// A window that opens `start`.
    pub(crate) fn new(start: Instant, warmup: Duration, duration: Duration) -> Self {
        let measure = start + warmup;
        let end = measure + duration;
        Self { start, measure, end, last_send: end + Self::CATCH_UP, drained: end + Self::PATIENCE }
    }

    /// Whether a moment counts.
    pub(crate) fn holds(&self, at: Instant) -> bool {
        self.measure <= at && at < self.end
    }

    /// Seconds that count.
    pub(crate) fn seconds(&self) -> f64 {
        (self.end - self.measure).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaders(shards: &[&str]) -> Vec<(u32, String)> {
        shards.iter().enumerate().map(|(i, s)| (i as u32, (*s).to_owned())).collect()
    }

    fn check(connections: usize, shards: &[&str], expected: &[(&str, &[u32])]) {
        let plans = plan_connections(connections, &leaders(shards));
        let got: Vec<(&str, &[u32])> =
            plans.iter().map(|p| (p.address.as_str(), &p.partitions[..])).collect();
        assert_eq!(got, expected, "{connections} connections over {shards:?}");
    }

    #[test]
    fn partitions_are_spread_over_the_connections_of_their_shard() {
        check(1, &["a"], &[("a", &[0])]);
        check(1, &["a", "a", "a"], &[("a", &[0, 1, 2])]);
        check(2, &["a", "a", "a"], &[("a", &[0, 2]), ("a", &[1])]);
        check(3, &["a"], &[("a", &[0]), ("a", &[0]), ("a", &[0])]);
        check(3, &["a", "b", "a"], &[("a", &[0]), ("a", &[2]), ("b", &[1])]);
    }

    #[test]
    fn every_shard_gets_a_connection() {
        check(1, &["a", "b"], &[("a", &[0]), ("b", &[1])]);
        assert!(plan_connections(4, &[]).is_empty());
    }

    #[test]
    fn a_late_request_does_not_move_those_after_it() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, Some(10.0), 1, 2);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(schedule.take_due(at(99)), None);
        assert_eq!(schedule.next_due(), Some(at(100)));
        assert_eq!(schedule.take_due(at(450)), Some(at(100)));
        assert_eq!(schedule.take_due(at(450)), Some(at(300)));
        assert_eq!(schedule.take_due(at(450)), None);
        assert_eq!(Schedule::new(start, None, 0, 1).take_due(at(7)), Some(at(7)));
    }

    #[test]
    fn only_the_middle_of_a_run_counts() {
        let start = Instant::now();
        let window = Window::new(start, Duration::from_secs(1), Duration::from_secs(2));
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(
            [0, 999, 1000, 2999, 3000].map(|ms| window.holds(at(ms))),
            [false, false, true, true, false]
        );
        assert_eq!(window.seconds(), 2.0);
        assert!(window.drained > window.end);
    }
}
