//! One suite for every coordination store: embedded, ZooKeeper, simulated. Behind the feature `conformance`.
//!
//! Owns: what the contract says about commits, events and sessions of one service in good health. What happens when it
//! is not is tested where it can be made to happen.
//! Each story begins at a key of its own, so that one service can serve all of them; a session may have seen others.
//! A story that fails panics; one that hangs is the caller's to end.

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Waker};

use super::{CommitError, Coordination, Entry, Event, Key, OPS_MAX, Op, VALUE_BYTES_MAX, Version};

/// A service that stores connect to.
pub trait Service {
    /// Its connections.
    type Store: Coordination;

    /// Begins a session.
    fn connect(&self) -> impl Future<Output = Self::Store>;

    /// Whether a change may be told with a later value than its own, and so before what happened in between: harder for
    /// those above than the contract says.
    fn tells_newest(&self) -> bool {
        false
    }

    /// Ends a session and waits until the service knows.
    fn end(&self, store: Self::Store) -> impl Future<Output = ()>;
}

/// What a session knows: everything that it was told.
pub struct View<S> {
    /// The session.
    pub store: S,
    /// Keys with their values and versions.
    pub keys: BTreeMap<Key, Entry>,
    /// Number of the session, from the last state.
    pub session: Option<u64>,
}

impl<S: Coordination> View<S> {
    /// Waits for the first state.
    pub async fn new(store: S) -> Self {
        let mut view = Self { store, keys: BTreeMap::new(), session: None };
        while view.session.is_none() {
            view.step().await;
        }
        view
    }

    /// Takes one event over and returns it.
    pub async fn step(&mut self) -> Event {
        let event = self.store.next().await;
        match &event {
            Event::State { session, entries } => {
                assert!(entries.is_sorted_by(|a, b| a.key < b.key), "a state is sorted, each key once");
                self.session = Some(*session);
                self.keys = entries.iter().map(|entry| (entry.key.clone(), entry.clone())).collect();
            }
            Event::Changed(entry) => {
                self.keys.insert(entry.key.clone(), entry.clone());
            }
            Event::Removed { key } => {
                self.keys.remove(key);
            }
            Event::Suspended | Event::Expired => {}
        }
        event
    }

    /// Waits until it knows what the caller wants.
    pub async fn until(&mut self, is_there: impl Fn(&Self) -> bool) {
        while !is_there(self) {
            self.step().await;
        }
    }

    /// Waits until it knows a key in this version, or that it is gone.
    pub async fn until_version(&mut self, key: &str, version: Option<i64>) {
        self.until(|view| view.version(key) == version).await;
    }

    /// The version of a key as it was told.
    pub fn version(&self, key: &str) -> Option<i64> {
        self.keys.get(key).map(|entry| entry.version.0)
    }

    fn below(&self, prefix: &str) -> Vec<&str> {
        self.keys.keys().filter(|key| key.starts_with(prefix)).map(String::as_str).collect()
    }
}

/// A part that makes a key.
pub fn create(key: &str, value: &str) -> Op {
    Op::Create { key: key.to_owned(), value: value.as_bytes().into(), is_ephemeral: false }
}

/// A part that makes a key that goes with its session.
pub fn create_ephemeral(key: &str, value: &str) -> Op {
    Op::Create { key: key.to_owned(), value: value.as_bytes().into(), is_ephemeral: true }
}

/// A part that replaces a value.
pub fn put(key: &str, value: &str, version: i64) -> Op {
    Op::Put { key: key.to_owned(), value: value.as_bytes().into(), version: Version(version) }
}

/// A part that removes a key.
pub fn delete(key: &str, version: i64) -> Op {
    Op::Delete { key: key.to_owned(), version: Version(version) }
}

/// A part that changes nothing.
pub fn check(key: &str, version: i64) -> Op {
    Op::Check { key: key.to_owned(), version: Version(version) }
}

/// Versions count the changes of a key; removing it begins anew.
pub async fn versions_count_changes(service: &impl Service) {
    let mut view = View::new(service.connect().await).await;
    let key = "/versions/a";
    assert_eq!(view.store.commit(vec![create(key, "1")]).await, Ok(vec![Version(0)]));
    for version in 0..3 {
        let put = view.store.commit(vec![put(key, "2", version)]).await;
        assert_eq!(put, Ok(vec![Version(version + 1)]));
    }
    assert_eq!(view.store.commit(vec![check(key, 3)]).await, Ok(vec![Version(3)]));
    view.until_version(key, Some(3)).await;
    assert_eq!(view.keys[key].value.as_ref(), b"2");
    assert_eq!(view.store.commit(vec![delete(key, 3)]).await, Ok(vec![Version(0)]));
    view.until_version(key, None).await;
    // Parts are done one after the other, so one commit can replace a key by another of the same name.
    view.store.commit(vec![create(key, "3")]).await.expect("it is free");
    let replaced = view.store.commit(vec![delete(key, 0), create(key, "4"), put(key, "5", 0)]).await;
    assert_eq!(replaced, Ok(vec![Version(0), Version(0), Version(1)]));
    view.until(|view| view.keys.get(key).is_some_and(|entry| entry.value.as_ref() == b"5")).await;
    assert_eq!(view.version(key), Some(1));
    assert_eq!(view.store.commit(Vec::new()).await, Ok(Vec::new()));
    service.end(view.store).await;
}

/// A commit whose parts do not all fit changes nothing, and says which did not.
pub async fn a_conflict_names_its_key_and_changes_nothing(service: &impl Service) {
    let mut view = View::new(service.connect().await).await;
    let there = "/conflicts/there";
    view.store.commit(vec![create(there, "1")]).await.expect("it is free");
    let wrong = [
        create(there, "2"),
        put(there, "2", 1),
        put("/conflicts/none", "2", 0),
        put("/nowhere/at/all", "2", 0),
        delete(there, 7),
        delete("/conflicts/none", 0),
        check(there, 1),
        check("/conflicts/none", 0),
    ];
    for wrong in wrong {
        let key = wrong.key().to_owned();
        let ops = vec![create("/conflicts/other", "1"), put(there, "9", 0), wrong.clone()];
        // The one part that is about the same key twice fails because of the first of them.
        let ops = if key == there { vec![create("/conflicts/other", "1"), wrong] } else { ops };
        assert_eq!(view.store.commit(ops.clone()).await, Err(CommitError::Conflict { key }), "{ops:?}");
    }
    view.store.commit(vec![create("/conflicts/last", "1")]).await.expect("it is free");
    view.until_version("/conflicts/last", Some(0)).await;
    assert_eq!(view.below("/conflicts/"), ["/conflicts/last", there]);
    assert_eq!(view.version(there), Some(0));
    service.end(view.store).await;
}

/// What no store takes is refused, and nothing is changed.
pub async fn limits_are_refused(service: &impl Service) {
    let mut view = View::new(service.connect().await).await;
    let big = "x".repeat(VALUE_BYTES_MAX);
    let key = "/limits/a";
    let many = (0..=OPS_MAX).map(|_| check(key, 0)).collect();
    let wrong = [
        many,
        vec![create("no-slash", "1")],
        vec![create("/limits/", "1")],
        vec![create(key, "")],
        vec![create(key, &format!("{big}x"))],
        vec![create(key, &big), create("/limits/b", &big)],
    ];
    for ops in wrong {
        let result = view.store.commit(ops).await;
        assert!(matches!(result, Err(CommitError::Refused(_))), "{result:?}");
    }
    assert_eq!(view.store.commit(vec![create(key, &big)]).await, Ok(vec![Version(0)]));
    view.until_version(key, Some(0)).await;
    assert_eq!(view.keys[key].value.len(), VALUE_BYTES_MAX);
    view.store.commit(vec![delete(key, 0)]).await.expect("it is there");
    service.end(view.store).await;
}

/// Commits take effect in the order of the calls, whoever waits for them in whichever order.
pub async fn commits_are_done_in_the_order_of_the_calls(service: &impl Service) {
    const COMMITS: i64 = 100;
    let mut view = View::new(service.connect().await).await;
    let key = "/order/a";
    view.store.commit(vec![create(key, "0")]).await.expect("it is free");
    let store = view.store.clone();
    let mut commits: Vec<_> = (0..COMMITS)
        .map(|version| (version, Box::pin(store.commit(vec![put(key, &format!("{version}"), version)]))))
        .collect();
    while let Some((version, commit)) = commits.pop() {
        assert_eq!(commit.await, Ok(vec![Version(version + 1)]));
    }
    view.until_version(key, Some(COMMITS)).await;
    service.end(view.store).await;
}

/// A commit goes on when its caller has lost interest.
pub async fn a_dropped_commit_goes_on(service: &impl Service) {
    let mut view = View::new(service.connect().await).await;
    {
        let commit = pin!(view.store.commit(vec![create("/dropped/a", "1")]));
        // Polled once, then dropped.
        let _ = commit.poll(&mut Context::from_waker(Waker::noop()));
    }
    view.until_version("/dropped/a", Some(0)).await;
    service.end(view.store).await;
}

/// Changes are told in the order of the commits; several of one key may be told as one.
pub async fn events_come_in_the_order_of_the_commits(service: &impl Service) {
    const ROUNDS: i64 = 60;
    let mut view = View::new(service.connect().await).await;
    let (first, second) = ("/events/first", "/events/second");
    view.store.commit(vec![create(first, "0"), create(second, "0")]).await.expect("they are free");
    view.until_version(second, Some(0)).await;
    let store = view.store.clone();
    let mut commits = Vec::new();
    for version in 0..ROUNDS {
        commits.push(Box::pin(store.commit(vec![put(first, "1", version)])));
        commits.push(Box::pin(store.commit(vec![put(second, "1", version)])));
    }
    let versions = |view: &View<_>| (view.version(first), view.version(second));
    let mut before = versions(&view);
    while before.1 != Some(ROUNDS) {
        view.step().await;
        let now = versions(&view);
        assert!(now.0 >= before.0 && now.1 >= before.1, "{now:?} was told after {before:?}");
        assert!(service.tells_newest() || now.0 >= now.1, "{now:?}: the second was told before the first");
        before = now;
    }
    for commit in commits {
        commit.await.expect("they fit");
    }
    service.end(view.store).await;
}

/// A thousand keys in one go are all there, and told, and go again.
pub async fn a_thousand_keys(service: &impl Service) {
    let mut view = View::new(service.connect().await).await;
    let key = |number: usize| format!("/thousand/{}/{number}", number % 10);
    let commits: Vec<_> = (0..1000 / OPS_MAX)
        .map(|part| (part * OPS_MAX..(part + 1) * OPS_MAX).map(|number| create(&key(number), "1")).collect())
        .map(|ops| view.store.commit(ops))
        .collect();
    for commit in commits {
        assert_eq!(commit.await.map(|versions| versions.len()), Ok(OPS_MAX));
    }
    view.until(|view| view.below("/thousand/").len() == 1000).await;
    for part in 0..1000 / OPS_MAX {
        let ops = (part * OPS_MAX..(part + 1) * OPS_MAX).map(|number| delete(&key(number), 0)).collect();
        view.store.commit(ops).await.expect("they are there");
    }
    view.until(|view| view.below("/thousand/").is_empty()).await;
    service.end(view.store).await;
}

/// Parts of a path that hold nothing are no keys, whether their children come or go.
pub async fn parents_are_no_keys(service: &impl Service) {
    let mut view = View::new(service.connect().await).await;
    view.store.commit(vec![create("/parents/a/b/c", "1"), create("/parents/a/d", "1")]).await.expect("free");
    view.until(|view| view.below("/parents").len() == 2).await;
    assert_eq!(view.below("/parents"), ["/parents/a/b/c", "/parents/a/d"]);
    view.store.commit(vec![delete("/parents/a/b/c", 0)]).await.expect("it is there");
    view.until_version("/parents/a/b/c", None).await;
    // The place is free again, below and instead.
    view.store.commit(vec![create("/parents/a/b/e", "1")]).await.expect("free");
    view.store.commit(vec![delete("/parents/a/b/e", 0), delete("/parents/a/d", 0)]).await.expect("there");
    view.until(|view| view.below("/parents").is_empty()).await;
    service.end(view.store).await;
}

/// The keys of a session go when it ends, the others stay; who comes later finds what there is.
pub async fn ephemeral_keys_go_with_their_session(service: &impl Service) {
    let mut one = View::new(service.connect().await).await;
    let mut two = View::new(service.connect().await).await;
    assert_ne!(one.session, two.session);
    let (kept, mine, other) = ("/sessions/kept", "/sessions/mine", "/sessions/other");
    two.store.commit(vec![create_ephemeral(other, "2")]).await.expect("it is free");
    one.store.commit(vec![create(kept, "1"), create_ephemeral(mine, "1")]).await.expect("free");
    one.store.commit(vec![put(mine, "2", 0)]).await.expect("it is there");
    one.until(|view| view.below("/sessions/").len() == 3).await;
    two.until_version(mine, Some(1)).await;
    let third = View::new(service.connect().await).await;
    assert_eq!(third.below("/sessions/"), [kept, mine, other]);
    service.end(one.store).await;
    two.until_version(mine, None).await;
    assert_eq!(two.below("/sessions/"), [kept, other]);
    // Another session can remove what is not its own.
    third.store.commit(vec![delete(other, 0)]).await.expect("it is there");
    two.until_version(other, None).await;
    service.end(two.store).await;
    service.end(third.store).await;
}

/// Of two that want the same key one gets it, and the other learns whose it is.
pub async fn one_of_two_wins(service: &impl Service) {
    let mut one = View::new(service.connect().await).await;
    let mut two = View::new(service.connect().await).await;
    let key = "/race/seat";
    let (first, second) = (one.store.clone(), two.store.clone());
    let first = Box::pin(first.commit(vec![create_ephemeral(key, "one")]));
    let second = Box::pin(second.commit(vec![create_ephemeral(key, "two")]));
    let conflict = Err(CommitError::Conflict { key: key.to_owned() });
    let winner = match (second.await, first.await) {
        (second, Ok(_)) => {
            assert_eq!(second, conflict);
            "one"
        }
        (Ok(_), first) => {
            assert_eq!(first, conflict);
            "two"
        }
        (second, first) => panic!("nobody won: {first:?}, {second:?}"),
    };
    for view in [&mut one, &mut two] {
        view.until_version(key, Some(0)).await;
        assert_eq!(view.keys[key].value.as_ref(), winner.as_bytes());
    }
    service.end(one.store).await;
    service.end(two.store).await;
}

/// The stories that need one session at a time.
pub async fn one_session(service: &impl Service) {
    versions_count_changes(service).await;
    a_conflict_names_its_key_and_changes_nothing(service).await;
    limits_are_refused(service).await;
    commits_are_done_in_the_order_of_the_calls(service).await;
    a_dropped_commit_goes_on(service).await;
    events_come_in_the_order_of_the_commits(service).await;
    a_thousand_keys(service).await;
    parents_are_no_keys(service).await;
}

/// The stories that need several.
pub async fn several_sessions(service: &impl Service) {
    ephemeral_keys_go_with_their_session(service).await;
    one_of_two_wins(service).await;
}
