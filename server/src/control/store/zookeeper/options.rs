//! How a node reaches ZooKeeper and who it says it is.
//!
//! Owns: the options, what makes them wrong, and their translation for the client library.
//! Not here: the names of the configuration keys (`config/`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zookeeper_client::{Acls, Connector, SaslOptions, TlsOptions};

/// A secret that does not show in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// How to prove who we are. With either, every znode is made for its creator alone, so all nodes of a cluster need the
/// same name and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZookeeperAuth {
    /// ZooKeeper's own scheme `digest`: nothing to set up on the servers; the password travels in the clear unless TLS
    /// is on.
    Digest {
        /// Name, without a colon.
        user: String,
        /// Password.
        password: Secret,
    },
    /// SASL with DIGEST-MD5: the servers know names and passwords (a JAAS file); the password does not travel.
    SaslDigest {
        /// Name.
        user: String,
        /// Password.
        password: Secret,
    },
}

/// Certificates for an encrypted connection (`secureClientPort` of the servers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZookeeperTls {
    /// PEM file with the authorities that signed the servers' certificates.
    pub ca_file: PathBuf,
    /// PEM files with our own certificate and its key, if the servers ask for one.
    pub identity: Option<TlsIdentityFiles>,
}

/// Our own certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsIdentityFiles {
    /// PEM file with the certificate and what it rests on.
    pub certificate_file: PathBuf,
    /// PEM file with its key.
    pub key_file: PathBuf,
}

/// How to reach ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZookeeperOptions {
    /// `HOST:PORT` of every server of the ensemble, separated by commas.
    pub connect: String,
    /// The znode below which everything of this cluster lies, such as `/corelog`; made if it is not there.
    pub root: String,
    /// How long the servers wait for a silent node before it counts as dead. The servers may move it into their own
    /// range (2 to 20 ticks by default).
    pub session_timeout_ms: u64,
    /// Who we are, if the servers are to know.
    pub auth: Option<ZookeeperAuth>,
    /// Whether and how to encrypt.
    pub tls: Option<ZookeeperTls>,
}

impl ZookeeperOptions {
    /// The session timeout that nodes use unless told otherwise: three missed heartbeats of 2 s.
    pub const SESSION_TIMEOUT_MS: u64 = 6_000;

    /// Plain options for these servers.
    pub fn new(connect: impl Into<String>) -> Self {
        Self {
            connect: connect.into(),
            root: "/corelog".to_owned(),
            session_timeout_ms: Self::SESSION_TIMEOUT_MS,
            auth: None,
            tls: None,
        }
    }
}

/// What is wrong with the options.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZookeeperOptionsError {
    /// Not a list of servers.
    #[error("{connect:?} is not a list of ZooKeeper servers; write HOST:PORT,HOST:PORT")]
    Connect {
        /// What was given.
        connect: String,
    },
    /// Not a path.
    #[error("{root:?} cannot be the root in ZooKeeper; write a path such as /corelog")]
    Root {
        /// What was given.
        root: String,
    },
    /// Out of range.
    #[error("a ZooKeeper session timeout of {timeout_ms} ms is outside 200 ms to 10 min")]
    SessionTimeout {
        /// What was given.
        timeout_ms: u64,
    },
    /// The scheme splits name and password at a colon.
    #[error("the ZooKeeper user {user:?} must not be empty or hold a colon")]
    User {
        /// What was given.
        user: String,
    },
    /// A file of certificates cannot be used.
    #[error("the TLS file {} for ZooKeeper cannot be used: {problem}", path.display())]
    TlsFile {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

fn read(path: &Path) -> Result<String, ZookeeperOptionsError> {
    std::fs::read_to_string(path).map_err(|error| tls_problem(path, &error))
}

fn tls_problem(path: &Path, problem: &dyn fmt::Display) -> ZookeeperOptionsError {
    ZookeeperOptionsError::TlsFile { path: path.to_owned(), problem: problem.to_string() }
}

fn is_server(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// A path of one or more parts, none of them empty or a dot.
fn is_root(root: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let parts = root.strip_prefix('/').map(|rest| rest.split('/').all(part));
    // ZooKeeper keeps its own things there.
    parts == Some(true) && root.split('/').nth(1) != Some("zookeeper")
}

impl ZookeeperTls {
    fn options(&self) -> Result<TlsOptions, ZookeeperOptionsError> {
        let ca = read(&self.ca_file)?;
        let options =
            TlsOptions::new().with_pem_ca(&ca).map_err(|error| tls_problem(&self.ca_file, &error))?;
        let Some(own) = &self.identity else { return Ok(options) };
        let (certificate, key) = (read(&own.certificate_file)?, read(&own.key_file)?);
        options
            .with_pem_identity(&certificate, &key)
            .map_err(|error| tls_problem(&own.certificate_file, &error))
    }
}

impl ZookeeperOptions {
    /// What a connection is made with.
    ///
    /// Errors: what is wrong with the options, for the operator; the files of certificates are read here.
    pub(super) fn connector(&self) -> Result<Connector, ZookeeperOptionsError> {
        if !self.connect.split(',').all(is_server) {
            return Err(ZookeeperOptionsError::Connect { connect: self.connect.clone() });
        }
        if !is_root(&self.root) {
            return Err(ZookeeperOptionsError::Root { root: self.root.clone() });
        }
        if !(200..=600_000).contains(&self.session_timeout_ms) {
            return Err(ZookeeperOptionsError::SessionTimeout { timeout_ms: self.session_timeout_ms });
        }
        let timeout = Duration::from_millis(self.session_timeout_ms);
        // One round over the servers is one attempt, so that a failure is known soon; who connects tries again.
        let connector =
            zookeeper_client::Client::connector().with_session_timeout(timeout).with_fail_eagerly();
        let connector = match &self.auth {
            None => connector,
            Some(ZookeeperAuth::Digest { user, .. } | ZookeeperAuth::SaslDigest { user, .. })
                if user.is_empty() || user.contains(':') =>
            {
                return Err(ZookeeperOptionsError::User { user: user.clone() });
            }
            Some(ZookeeperAuth::Digest { user, password }) => {
                connector.with_auth("digest", format!("{user}:{}", password.0).as_bytes())
            }
            Some(ZookeeperAuth::SaslDigest { user, password }) => {
                connector.with_sasl(SaslOptions::digest_md5(user.clone(), password.0.clone()))
            }
        };
        match &self.tls {
            None => Ok(connector),
            Some(tls) => Ok(connector.with_tls(tls.options()?)),
        }
    }

    /// Who may see and change the znodes that we make.
    pub(super) fn acls(&self) -> Acls<'static> {
        if self.auth.is_some() { Acls::creator_all() } else { Acls::anyone_all() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(change: impl FnOnce(&mut ZookeeperOptions)) -> Option<ZookeeperOptionsError> {
        let mut options = ZookeeperOptions::new("a:1,b:2");
        change(&mut options);
        options.connector().err()
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        assert_eq!(problem(|_| ()), None);
        assert_eq!(problem(|options| options.root = "/a/b-1".to_owned()), None);
        for root in ["", "/", "a", "/a/", "//a", "/a b", "/.", "/zookeeper", "/zookeeper/x"] {
            let found = problem(|options| options.root = root.to_owned());
            assert_eq!(found, Some(ZookeeperOptionsError::Root { root: root.to_owned() }));
        }
        for connect in ["", "a", "a:0", "a:1,", ":1", "a:1/chroot", "a:1 b:2"] {
            let found = problem(|options| options.connect = connect.to_owned());
            assert_eq!(found, Some(ZookeeperOptionsError::Connect { connect: connect.to_owned() }));
        }
        let found = problem(|options| options.session_timeout_ms = 10);
        assert_eq!(found, Some(ZookeeperOptionsError::SessionTimeout { timeout_ms: 10 }));
        let user = || "a:b".to_owned();
        let auth = ZookeeperAuth::Digest { user: user(), password: Secret("p".to_owned()) };
        assert_eq!(
            problem(|options| options.auth = Some(auth)),
            Some(ZookeeperOptionsError::User { user: user() })
        );
        let tls = ZookeeperTls { ca_file: PathBuf::from("/nowhere/ca.pem"), identity: None };
        let found = problem(|options| options.tls = Some(tls));
        assert!(matches!(found, Some(ZookeeperOptionsError::TlsFile { .. })), "{found:?}");
    }

    #[test]
    fn passwords_do_not_show() {
        let password = Secret("hunter2".to_owned());
        let auth = ZookeeperAuth::Digest { user: "u".to_owned(), password };
        assert!(!format!("{auth:?}").contains("hunter2"));
    }
}
