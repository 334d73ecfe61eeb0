//! The coordination service of a cluster: ZooKeeper.

mod options;

pub use options::{
    Secret, TlsIdentityFiles, ZookeeperAuth, ZookeeperOptions, ZookeeperOptionsError, ZookeeperTls,
};
