//! The contract, in good times and in bad.

use super::*;
use crate::executor::Executor;

struct World {
    executor: Executor,
    service: SimCoordinationService,
}

impl World {
    fn new(seed: u64) -> Self {
        let executor = Executor::new(seed);
        let service = SimCoordinationService::new(executor.handle(), SimCoordinationOptions::default());
        Self { executor, service }
    }

    /// A process on a machine, after its first state has come.
    async fn process(&self, machine: u32) -> (SimCoordination, Handle) {
        let handle = self.executor.handle().new_group();
        let store = SimCoordination::new(&self.service, &handle, Machine(machine));
        assert!(matches!(store.next().await, Event::State { .. }));
        (store, handle)
    }

    async fn sleep_ms(&self, ms: u64) {
        self.executor.handle().sleep(Duration::from_millis(ms)).await;
    }

    fn keys(&self) -> Vec<String> {
        self.service.entries().into_iter().map(|entry| entry.key).collect()
    }
}

fn create(key: &str, is_ephemeral: bool) -> Op {
    Op::Create { key: key.into(), value: Rc::from(*b"1"), is_ephemeral }
}

fn put(key: &str, version: i64) -> Op {
    Op::Put { key: key.into(), value: Rc::from(*b"2"), version: Version(version) }
}

fn is_changed(event: &Event, wanted: &str) -> bool {
    matches!(event, Event::Changed(entry) if entry.key == wanted)
}

#[test]
fn a_commit_is_all_or_nothing_and_everybody_is_told() {
    let world = World::new(1);
    world.executor.run_until(async {
        let ((one, _g1), (two, _g2)) = (world.process(1).await, world.process(2).await);
        let made = one.commit(vec![create("/a", false), create("/b", false)]).await;
        assert_eq!(made, Ok(vec![Version(0), Version(0)]));
        for store in [&one, &two] {
            assert!(is_changed(&store.next().await, "/a"));
            assert!(is_changed(&store.next().await, "/b"));
        }
        let conflict = two.commit(vec![put("/a", 0), put("/b", 7)]).await;
        assert_eq!(conflict, Err(CommitError::Conflict { key: "/b".into() }));
        let check = Op::Check { key: "/b".into(), version: Version(0) };
        assert_eq!(two.commit(vec![check, put("/a", 0)]).await, Ok(vec![Version(0), Version(1)]));
        let replaced = vec![Op::Delete { key: "/a".into(), version: Version(1) }, create("/a", true)];
        assert_eq!(one.commit(replaced).await, Ok(vec![Version(0), Version(0)]));
    });
}

#[test]
fn keys_of_a_session_go_with_it_and_a_new_process_has_another() {
    let world = World::new(2);
    world.executor.run_until(async {
        let (watcher, _group) = world.process(1).await;
        let (dying, group) = world.process(2).await;
        dying.commit(vec![create("/nodes/2", true), create("/kept", false)]).await.unwrap();
        world.executor.handle().kill_group(group.group());
        drop(dying);
        let (next, _group) = world.process(2).await;
        assert_eq!(world.keys(), ["/kept", "/nodes/2"], "two sessions of one machine overlap");
        assert_ne!(next.session(), None);
        world.sleep_ms(3_000).await;
        assert_eq!(world.keys(), ["/kept"]);
        let events: Vec<Event> = [watcher.next().await, watcher.next().await, watcher.next().await].into();
        assert!(events.contains(&Event::Removed { key: "/nodes/2".into() }), "{events:?}");
    });
}

#[test]
fn a_process_that_stands_still_loses_its_session_and_learns_it_when_it_wakes() {
    let world = World::new(3);
    world.executor.run_until(async {
        let (store, group) = world.process(1).await;
        store.commit(vec![create("/nodes/1", true)]).await.unwrap();
        world.executor.handle().pause_group(group.group());
        world.sleep_ms(3_000).await;
        assert!(world.keys().is_empty());
        world.executor.handle().resume_group(group.group());
        let mut seen = Vec::new();
        while !seen.contains(&Event::Expired) {
            seen.push(store.next().await);
        }
        assert!(seen.contains(&Event::Suspended));
        assert!(matches!(store.next().await, Event::State { .. }));
    });
}

#[test]
fn a_lost_answer_is_unknown_and_may_have_happened() {
    let world = World::new(4);
    world.executor.run_until(async {
        let (store, _group) = world.process(1).await;
        world.service.cut_answers(Machine(1));
        assert_eq!(store.commit(vec![create("/a", false)]).await, Err(CommitError::Unknown));
        assert_eq!(world.keys(), ["/a"]);
        assert_eq!(store.next().await, Event::Suspended);
        assert_eq!(store.commit(vec![create("/b", false)]).await, Err(CommitError::NoSession));
        world.service.heal(Machine(1));
        // Its signs of life found no way either: the session may be over.
        let entries = loop {
            match store.next().await {
                Event::State { entries, .. } => break entries,
                other => assert_eq!(other, Event::Expired),
            }
        };
        assert_eq!(entries.len(), 1);
    });
}

#[test]
fn without_a_quorum_nothing_is_stored_and_no_session_ends() {
    let world = World::new(5);
    world.executor.run_until(async {
        let (store, _group) = world.process(1).await;
        store.commit(vec![create("/nodes/1", true)]).await.unwrap();
        let session = store.session();
        world.service.lose_quorum();
        world.sleep_ms(10_000).await;
        assert_eq!(world.keys(), ["/nodes/1"]);
        world.service.restore_quorum();
        world.sleep_ms(1_000).await;
        assert_eq!((store.session(), world.keys().len()), (session, 1), "the same session goes on");
        world.service.expire(Machine(1));
        world.sleep_ms(1_000).await;
        assert_ne!(store.session(), session);
        assert!(world.keys().is_empty());
    });
}

#[test]
fn a_busy_session_lives() {
    let world = World::new(6);
    world.executor.run_until(async {
        let ((one, _g1), (two, _g2)) = (world.process(1).await, world.process(2).await);
        two.commit(vec![create("/nodes/2", true)]).await.unwrap();
        one.commit(vec![create("/a", false)]).await.unwrap();
        for version in 0..200 {
            one.commit(vec![put("/a", version)]).await.unwrap();
            world.sleep_ms(50).await;
        }
        assert_eq!(world.keys(), ["/a", "/nodes/2"]);
    });
}
