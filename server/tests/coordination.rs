//! The coordination stores of the server against the contract: the embedded one and real ZooKeeper, in good health and
//! with servers that die, stop and cannot be reached. What must never happen: a commit that counts as undone was done,
//! a session's keys outlive it, a change is told before an earlier one, or not at all.

#[path = "support/zookeeper.rs"]
mod zookeeper;

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use corelog_replication::NodeId;
use corelog_replication::coordination::conformance::{
    Service, View, check, create, create_ephemeral, delete, one_session, put, several_sessions,
};
use corelog_replication::coordination::{CommitError, Coordination, Event};
use corelog_server::control::store::KvStore;
use corelog_server::control::store::zookeeper::{
    Secret, ZookeeperAuth, ZookeeperOptions, ZookeeperStore, ZookeeperTls,
};

use zookeeper::{Ensemble, EnsembleOptions, Way};

const PATIENCE: Duration = Duration::from_secs(90);
const SESSION_MS: u64 = 2_000;

/// Runs a story on a thread like the control thread's.
fn run<F: Future>(story: F) -> F::Output {
    // RUST_LOG shows what the stores say.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let timed = async { tokio::time::timeout(PATIENCE, story).await.expect("it ends in time") };
    tokio::task::LocalSet::new().block_on(&runtime, timed)
}

struct Embedded(PathBuf);

impl Service for Embedded {
    type Store = KvStore;

    async fn connect(&self) -> KvStore {
        KvStore::open(&self.0, NodeId(1), "c1").expect("it opens")
    }

    async fn end(&self, store: KvStore) {
        drop(store);
    }
}

fn options(connect: String) -> ZookeeperOptions {
    ZookeeperOptions { session_timeout_ms: SESSION_MS, ..ZookeeperOptions::new(connect) }
}

fn open(connect: String) -> ZookeeperStore {
    ZookeeperStore::open(options(connect)).expect("sound options")
}

impl Service for Ensemble {
    type Store = ZookeeperStore;

    async fn connect(&self) -> ZookeeperStore {
        open(Ensemble::connect(self))
    }

    async fn end(&self, store: ZookeeperStore) {
        store.close().await;
    }
}

#[test]
fn the_embedded_store_keeps_the_contract() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    run(one_session(&Embedded(dir.path().join("meta.redb"))));
}

#[test]
fn zookeeper_keeps_the_contract() {
    let ensemble = Ensemble::start(1);
    run(one_session(&ensemble));
    run(several_sessions(&ensemble));
}

#[test]
fn an_ensemble_that_loses_its_leader_keeps_the_contract_and_the_session() {
    let mut ensemble = Ensemble::start(3);
    run(several_sessions(&ensemble));
    run(async {
        let mut view = View::new(open(Ensemble::connect(&ensemble))).await;
        let session = view.session;
        view.store.commit(vec![create_ephemeral("/nodes/1", "1")]).await.expect("it is free");
        ensemble.kill(ensemble.leader());
        // Which server it was connected to is chance; it may see the loss of the leader as a pause alone.
        let version = loop {
            match view.store.commit(vec![put("/nodes/1", "2", 0)]).await {
                Ok(_) => break 1,
                Err(CommitError::Conflict { .. }) => {
                    view.until_version("/nodes/1", Some(1)).await;
                    break 1;
                }
                Err(CommitError::NoSession | CommitError::Unknown) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        view.until_version("/nodes/1", Some(version)).await;
        assert_eq!(view.session, session, "the session lives on, and its keys");
    });
}

#[test]
fn a_server_that_is_down_at_the_start_is_waited_for() {
    let mut ensemble = Ensemble::start(1);
    ensemble.kill(0);
    run(async {
        let store = open(Ensemble::connect(&ensemble));
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(store.commit(vec![create("/a", "1")]).await, Err(CommitError::NoSession));
        ensemble.restart(0);
        let mut view = View::new(store).await;
        view.store.commit(vec![create("/a", "1")]).await.expect("it is free");
        view.until_version("/a", Some(0)).await;
    });
}

#[test]
fn a_broken_connection_suspends_the_session_and_keeps_it() {
    let ensemble = Ensemble::start(1);
    let way = Way::to(ensemble.address(0));
    run(async {
        let mut view = View::new(open(way.connect())).await;
        let mut other = View::new(open(Ensemble::connect(&ensemble))).await;
        let session = view.session;
        view.store.commit(vec![create_ephemeral("/mine", "1")]).await.expect("it is free");
        view.until_version("/mine", Some(0)).await;
        other.until_version("/mine", Some(0)).await;
        way.break_all();
        assert_eq!(view.step().await, Event::Suspended);
        let meanwhile = vec![create("/meanwhile", "1"), put("/mine", "2", 0)];
        other.store.commit(meanwhile).await.expect("it fits");
        let Event::State { session: same, .. } = view.step().await else { panic!("a state comes next") };
        assert_eq!(Some(same), session);
        view.until_version("/meanwhile", Some(0)).await;
        view.until_version("/mine", Some(1)).await;
        // The watch is there again.
        other.store.commit(vec![delete("/meanwhile", 0)]).await.expect("it is there");
        view.until_version("/meanwhile", None).await;
    });
}

#[test]
fn a_session_that_the_servers_gave_up_is_replaced() {
    let ensemble = Ensemble::start(1);
    let way = Way::to(ensemble.address(0));
    run(async {
        let mut view = View::new(open(way.connect())).await;
        let mut other = View::new(open(Ensemble::connect(&ensemble))).await;
        let session = view.session;
        view.store.commit(vec![create_ephemeral("/nodes/1", "old")]).await.expect("it is free");
        view.until_version("/nodes/1", Some(0)).await;
        other.until_version("/nodes/1", Some(0)).await;
        way.cut();
        other.until_version("/nodes/1", None).await;
        assert_eq!(view.store.commit(vec![create("/late", "1")]).await, Err(CommitError::NoSession));
        // Long after the session has ended there is still nobody who says so.
        tokio::time::sleep(Duration::from_millis(3 * SESSION_MS)).await;
        assert_eq!(view.step().await, Event::Suspended);
        way.restore();
        assert_eq!(view.step().await, Event::Expired);
        assert!(matches!(view.step().await, Event::State { .. }));
        assert_ne!(view.session, session);
        assert_eq!(view.version("/nodes/1"), None);
        view.store.commit(vec![create_ephemeral("/nodes/1", "new")]).await.expect("it is free again");
        other.until_version("/nodes/1", Some(0)).await;
    });
}

#[test]
fn servers_that_hang_are_noticed_within_a_session() {
    let ensemble = Ensemble::start(1);
    run(async {
        let mut view = View::new(open(Ensemble::connect(&ensemble))).await;
        view.store.commit(vec![create("/before", "1")]).await.expect("it is free");
        view.until_version("/before", Some(0)).await;
        let began = Instant::now();
        ensemble.pause(0);
        assert_eq!(view.step().await, Event::Suspended);
        let noticed = began.elapsed();
        ensemble.resume(0);
        assert!(noticed < Duration::from_millis(SESSION_MS), "noticed after {noticed:?}");
        // The server may have given the session up when it woke.
        while !matches!(view.step().await, Event::State { .. }) {}
        view.store.commit(vec![put("/before", "2", 0)]).await.expect("it works again");
        view.until_version("/before", Some(1)).await;
    });
}

#[test]
fn a_lost_answer_is_unknown_and_the_next_state_tells() {
    let ensemble = Ensemble::start(1);
    let way = Way::to(ensemble.address(0));
    run(async {
        let mut view = View::new(open(way.connect())).await;
        way.silence();
        let result = view.store.commit(vec![create("/done", "1")]).await;
        assert_eq!(result, Err(CommitError::Unknown));
        way.restore();
        view.until(|view| view.version("/done") == Some(0)).await;
        assert_eq!(view.store.commit(vec![check("/done", 0)]).await.map(|_| ()), Ok(()));
    });
}

#[test]
fn an_ensemble_without_a_quorum_for_longer_than_a_session_is_waited_for() {
    let mut ensemble = Ensemble::start(3);
    run(async {
        let mut view = View::new(open(Ensemble::connect(&ensemble))).await;
        view.store.commit(vec![create_ephemeral("/nodes/1", "1")]).await.expect("it is free");
        view.until_version("/nodes/1", Some(0)).await;
        for server in 0..3 {
            ensemble.kill(server);
        }
        assert_eq!(view.step().await, Event::Suspended);
        tokio::time::sleep(Duration::from_millis(2 * SESSION_MS)).await;
        for server in 0..3 {
            ensemble.restart(server);
        }
        // Servers that start give every session its whole timeout again; whether ours is back in time is chance.
        loop {
            match view.step().await {
                Event::State { .. } => break,
                Event::Expired | Event::Suspended => {}
                other => panic!("{other:?}"),
            }
        }
        view.store.commit(vec![create("/after", "1")]).await.expect("it works again");
        view.until_version("/after", Some(0)).await;
    });
}

#[test]
fn who_does_not_know_the_password_can_do_nothing() {
    let ensemble = Ensemble::start(1);
    let with = |password: &str| {
        let password = Secret(password.to_owned());
        let auth = Some(ZookeeperAuth::Digest { user: "corelog".to_owned(), password });
        ZookeeperOptions { auth, ..options(Ensemble::connect(&ensemble)) }
    };
    run(async {
        let mut ours = View::new(ZookeeperStore::open(with("right")).expect("sound options")).await;
        ours.store.commit(vec![create("/a/b", "1")]).await.expect("it is free");
        ours.until_version("/a/b", Some(0)).await;
        for options in [with("wrong"), options(Ensemble::connect(&ensemble))] {
            let stranger = ZookeeperStore::open(options).expect("sound options");
            let told = tokio::time::timeout(Duration::from_millis(1_500), stranger.next()).await;
            assert!(told.is_err(), "a stranger was told {told:?}");
            stranger.close().await;
        }
        let again = View::new(ZookeeperStore::open(with("right")).expect("sound options")).await;
        assert_eq!(again.version("/a/b"), Some(0));
    });
}

#[test]
fn servers_that_want_sasl_get_it() {
    let sasl = Some(("corelog".to_owned(), "right".to_owned()));
    let ensemble = Ensemble::start_with(1, &EnsembleOptions { sasl, ..EnsembleOptions::default() });
    let with = |password: &str| {
        let password = Secret(password.to_owned());
        let auth = Some(ZookeeperAuth::SaslDigest { user: "corelog".to_owned(), password });
        ZookeeperOptions { auth, ..options(Ensemble::connect(&ensemble)) }
    };
    run(async {
        let mut ours = View::new(ZookeeperStore::open(with("right")).expect("sound options")).await;
        ours.store.commit(vec![create("/a/b", "1")]).await.expect("it is free");
        ours.until_version("/a/b", Some(0)).await;
        for options in [with("wrong"), options(Ensemble::connect(&ensemble))] {
            let stranger = ZookeeperStore::open(options).expect("sound options");
            let told = tokio::time::timeout(Duration::from_millis(1_500), stranger.next()).await;
            assert!(told.is_err(), "a stranger was told {told:?}");
            stranger.close().await;
        }
    });
}

#[test]
fn an_encrypted_connection_asks_for_the_right_certificate() {
    let encrypted = EnsembleOptions { is_encrypted: true, ..EnsembleOptions::default() };
    let (ensemble, other) = (Ensemble::start_with(1, &encrypted), Ensemble::start_with(1, &encrypted));
    let with = |certificate| {
        let tls = Some(ZookeeperTls { ca_file: certificate, identity: None });
        ZookeeperOptions { tls, ..options(ensemble.connect_encrypted()) }
    };
    run(async {
        let right = with(ensemble.certificate());
        let mut ours = View::new(ZookeeperStore::open(right).expect("sound options")).await;
        ours.store.commit(vec![create("/a/b", "1")]).await.expect("it is free");
        ours.until_version("/a/b", Some(0)).await;
        // Somebody else's certificate does not vouch for this server.
        let stranger = ZookeeperStore::open(with(other.certificate())).expect("sound options");
        let told = tokio::time::timeout(Duration::from_millis(1_500), stranger.next()).await;
        assert!(told.is_err(), "a stranger was told {told:?}");
        stranger.close().await;
    });
}

/// Not a benchmark: prints how long a thousand changes of partitions take, and how long until another session knows.
#[test]
fn a_thousand_changes_are_soon_known_elsewhere() {
    let ensemble = Ensemble::start(1);
    run(async {
        let one = View::new(open(Ensemble::connect(&ensemble))).await;
        let mut two = View::new(open(Ensemble::connect(&ensemble))).await;
        let key = |number: usize| format!("/partitions/{:032x}/{}", number / 100, number % 100);
        let value = "x".repeat(400);
        let made =
            (0..2).map(|part| (part * 500..part * 500 + 500).map(|n| create(&key(n), &value)).collect());
        for ops in made.collect::<Vec<_>>() {
            one.store.commit(ops).await.expect("they are free");
        }
        two.until(|view| view.keys.len() == 1000).await;
        let began = Instant::now();
        let changes: Vec<_> = (0..10)
            .map(|part| (part * 100..part * 100 + 100).map(|n| put(&key(n), &value, 0)).collect())
            .map(|ops| one.store.commit(ops))
            .collect();
        for change in changes {
            change.await.expect("they fit");
        }
        let committed = began.elapsed();
        two.until(|view| view.keys.values().all(|entry| entry.version.0 == 1)).await;
        println!(
            "1,000 changes in 10 commits: committed in {committed:?}, known elsewhere in {:?}",
            began.elapsed()
        );
        assert!(began.elapsed() < Duration::from_secs(20), "a thousand changes took {:?}", began.elapsed());
    });
}
