//! From data directories that were found to a node that knows its cluster: the store is opened or connected to, the
//! cluster is found, founded or joined, and the new directories are made.
//!
//! Owns: the order of these steps for both kinds of store, and taking over what an older version left.
//! Crash story: each step is durable before the next one begins, and finds what an earlier attempt has done.

use std::future::Future;
use std::path::Path;

use corelog_engine::TimestampMs;
use corelog_replication::cluster::Endpoint;
use corelog_replication::cluster::keys::CONTROLLER_EPOCH;
use corelog_replication::cluster::{ControllerEpoch, DataDirId, Stored as _};
use corelog_replication::coordination::{CommitError, Coordination, Entry, Event, Op, Version};
use futures_util::future::Either;

use super::cleanup;
use super::join::{Newcomer, Replayed, join};
use super::local::{DataDirEntry, Local};
use super::snapshot::ShardAddress;
use super::start::{
    Found, STORE_FILE, StartError, embedded_store_to_move, local, make_lists, seal_embedded_store,
};
use super::store::zookeeper::{
    Secret, TlsIdentityFiles, ZookeeperAuth, ZookeeperOptions, ZookeeperStore, ZookeeperTls,
};
use super::store::{KvStore, NodeLocal, StoreError};
use crate::config::{Config, ZooKeeperAuth, ZooKeeperConfig};

/// The store of a node: its own file, or the ensemble of its cluster.
#[derive(Clone)]
pub enum NodeStore {
    /// One node alone.
    Embedded(KvStore),
    /// A node of a cluster.
    Zookeeper(ZookeeperStore),
}

impl NodeStore {
    /// Ends the session, if there is one.
    pub async fn close(&self) {
        if let Self::Zookeeper(store) = self {
            store.close().await;
        }
    }
}

impl Coordination for NodeStore {
    async fn next(&self) -> Event {
        match self {
            Self::Embedded(store) => store.next().await,
            Self::Zookeeper(store) => store.next().await,
        }
    }

    fn commit(&self, ops: Vec<Op>) -> impl Future<Output = Result<Vec<Version>, CommitError>> {
        match self {
            Self::Embedded(store) => Either::Left(store.commit(ops)),
            Self::Zookeeper(store) => Either::Right(store.commit(ops)),
        }
    }
}

/// A node that knows its cluster and has been shown to nobody yet.
pub struct Opened {
    /// What it is by itself.
    pub local: Local,
    /// Where the metadata are. Its first event is everything that is stored.
    pub store: Replayed<NodeStore>,
}

fn random_cluster_id() -> String {
    format!("{:032x}", uuid::Uuid::new_v4().as_u128())
}

/// Opens a node. Waits as long as the coordination service does not answer.
pub async fn open(
    config: &Config,
    found: Found,
    shards: Vec<ShardAddress>,
    http: Option<Endpoint>,
    now: TimestampMs,
) -> Result<Opened, StartError> {
    match &config.zookeeper {
        None => open_alone(config, found, shards, http, now).await,
        Some(zookeeper) => open_in_cluster(config, zookeeper, found, shards, http, now).await,
    }
}

/// A node alone: its directories first, then the store in the first of them.
async fn open_alone(
    config: &Config,
    mut found: Found,
    shards: Vec<ShardAddress>,
    http: Option<Endpoint>,
    now: TimestampMs,
) -> Result<Opened, StartError> {
    let cluster_id = found.cluster_id.clone().unwrap_or_else(random_cluster_id);
    let path = config.data.dirs[0].join(STORE_FILE);
    if path.exists() {
        found.learn(&KvStore::open(&path, config.node.id, &cluster_id)?.node_local()?.data_dirs);
    }
    let (mut dirs, known) = found.adopt(&cluster_id)?;
    let embedded = KvStore::open(&path, config.node.id, &cluster_id)?;
    take_over(&embedded, &mut dirs.iter_mut().collect::<Vec<_>>())?;
    if !embedded.node_local()?.data_dirs.is_empty() {
        embedded.forget_data_dirs()?;
    }
    let store = Replayed::new(NodeStore::Embedded(embedded));
    let newcomer = Newcomer {
        cluster_id: Some(cluster_id.clone()),
        source: None,
        is_embedded: true,
        new_cluster_id: cluster_id,
    };
    let cluster_id = join(&store, &newcomer, |_| Ok::<(), StartError>(())).await?;
    let local = local(config, cluster_id, (dirs, known), (shards, http), now);
    Ok(Opened { local, store })
}

/// A node of a cluster: the ensemble first, then the directories, which bear the cluster's identity.
async fn open_in_cluster(
    config: &Config,
    zookeeper: &ZooKeeperConfig,
    mut found: Found,
    shards: Vec<ShardAddress>,
    http: Option<Endpoint>,
    now: TimestampMs,
) -> Result<Opened, StartError> {
    let first = &config.data.dirs[0];
    let source = match embedded_store_to_move(first) {
        Some(path) => Some(read_source(config, &path, &mut found)?),
        None => None,
    };
    let connect = zookeeper.connect.as_str();
    tracing::info!(
        connect,
        root = zookeeper.root,
        carries_metadata_over = source.is_some(),
        "looking for the cluster"
    );
    let store = ZookeeperStore::open(zookeeper_options(zookeeper)?)?;
    let store = Replayed::new(NodeStore::Zookeeper(store));
    let newcomer = Newcomer {
        cluster_id: found.cluster_id.clone(),
        source,
        is_embedded: false,
        new_cluster_id: random_cluster_id(),
    };
    let seal = |seal| seal_embedded_store(first, seal).map_err(|error| StartError::Seal { error });
    let cluster_id = join(&store, &newcomer, seal).await?;
    tracing::info!(cluster_id, "found the cluster");
    let (mut dirs, known) = found.adopt(&cluster_id)?;
    make_lists(&mut dirs, &[]);
    let local = local(config, cluster_id, (dirs, known), (shards, http), now);
    Ok(Opened { local, store })
}

/// Reads what is to be carried over to a cluster, and takes over what the embedded store knew of this node alone.
fn read_source(config: &Config, path: &Path, found: &mut Found) -> Result<Vec<Entry>, StartError> {
    let cluster_id = found.cluster_id.clone().unwrap_or_else(random_cluster_id);
    let store = KvStore::open(path, config.node.id, &cluster_id)?;
    found.learn(&store.node_local()?.data_dirs);
    take_over(&store, &mut found.entries())?;
    let mut entries = store.entries();
    if entries.iter().all(|entry| entry.key != CONTROLLER_EPOCH) {
        // A node that never had a controller: others must not found a cluster meanwhile all the same.
        let value = ControllerEpoch(0).encode();
        entries.push(Entry { key: CONTROLLER_EPOCH.to_owned(), value, version: Version(0) });
    }
    Ok(entries)
}

fn zookeeper_options(config: &ZooKeeperConfig) -> Result<ZookeeperOptions, StartError> {
    let auth = match &config.auth {
        None => None,
        Some(ZooKeeperAuth { is_sasl, user, password_file }) => {
            let password = std::fs::read_to_string(password_file)
                .map_err(|error| StartError::PasswordFile { path: password_file.clone(), error })?;
            let password = Secret(password.trim_end_matches(['\r', '\n']).to_owned());
            let user = user.clone();
            Some(match is_sasl {
                true => ZookeeperAuth::SaslDigest { user, password },
                false => ZookeeperAuth::Digest { user, password },
            })
        }
    };
    let tls = config.tls.as_ref().map(|tls| ZookeeperTls {
        ca_file: tls.ca_file.clone(),
        identity: tls
            .identity
            .clone()
            .map(|(certificate_file, key_file)| TlsIdentityFiles { certificate_file, key_file }),
    });
    Ok(ZookeeperOptions {
        connect: config.connect.split(',').map(str::trim).collect::<Vec<_>>().join(","),
        root: config.root.clone(),
        session_timeout_ms: config.session_timeout_ms,
        auth,
        tls,
    })
}

/// Takes over what a store of format 1 knew of this node: which logs were made, and what is left of deleted topics.
fn take_over(store: &KvStore, dirs: &mut [&mut DataDirEntry]) -> Result<(), StoreError> {
    let NodeLocal { made, deleted, .. } = store.node_local()?;
    make_lists(dirs.iter_mut().map(|dir| &mut **dir), &made);
    let listed: Vec<DataDirId> = made
        .iter()
        .map(|(dir, _)| *dir)
        .filter(|id| dirs.iter().any(|dir| dir.id == Some(*id) && dir.is_online()))
        .collect();
    if !listed.is_empty() {
        store.forget_made(&listed)?;
    }
    for topic in deleted {
        let gone =
            cleanup::remove_topic(dirs.iter().map(|dir| &**dir), &topic.name, topic.id, &topic.data_dirs);
        if !gone.is_empty() {
            store.forget_deleted(topic.id, &gone)?;
        }
    }
    Ok(())
}
