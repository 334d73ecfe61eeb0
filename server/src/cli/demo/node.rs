//! The demo's own node: this binary with `serve`, as a child process on free loopback ports.
//!
//! Owns: the child. Invariant: it does not outlive the demo. Whoever drops the guard ends it by its own process id;
//! should the demo itself be killed, the kernel ends the child (`PR_SET_PDEATHSIG`).

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use corelog_client::{Client, ClientConfig};

use super::super::{CliError, CliResult, Exit};

/// How long a start may take, recovery included.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a graceful stop may take before the child is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Tries to find ports that stay free until the child has them.
const PORT_TRIES: u32 = 50;
/// Lines of the child's log that are shown if it fails.
const LOG_LINES: usize = 15;

/// Where the node runs, the same for each start.
pub(super) struct Place {
    dir: PathBuf,
    port: u16,
    http_port: u16,
    cores: Option<String>,
}

/// A running node.
pub(super) struct Node {
    child: Child,
    place: Place,
}

impl Place {
    /// A place below `dir`, on loopback ports that are free now.
    pub(super) fn choose(dir: &Path, cores: Option<String>) -> CliResult<Self> {
        // One port a shard, and there are at most as many shards as processors.
        let shards = std::thread::available_parallelism().map_or(1, |count| count.get() as u16);
        for _ in 0..PORT_TRIES {
            // Below the ports that the kernel gives to outgoing connections (from 32,768 on): one of those could take
            // the node's port while it is dead.
            let port = 20_000 + (rand_u16() % 12_000);
            let all = (port..=port + shards).map(|port| TcpListener::bind(("127.0.0.1", port)));
            if all.collect::<Result<Vec<_>, _>>().is_ok() {
                return Ok(Self { dir: dir.to_owned(), port, http_port: port + shards, cores });
            }
        }
        Err(CliError::new(Exit::Failure, "no free ports on 127.0.0.1"))
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts the node and waits until it answers.
    pub(super) async fn start(self) -> CliResult<Node> {
        let binary = std::env::current_exe()
            .map_err(|error| CliError::new(Exit::Failure, format!("cannot find my own binary: {error}")))?;
        let log = File::options().create(true).append(true).open(self.dir.join("server.log"));
        let log = log.map_err(|error| self.failed(&error.to_string()))?;
        let mut command = Command::new(binary);
        command
            .arg("serve")
            .arg("--data")
            .arg(self.dir.join("data"))
            .args(["--listen", &self.address()])
            .args(["--http", &format!("127.0.0.1:{}", self.http_port)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| self.failed(&error.to_string()))?)
            .stderr(log);
        if let Some(cores) = &self.cores {
            command.args(["--cores", cores]);
        }
        die_with_parent(&mut command);
        let child = command.spawn().map_err(|error| self.failed(&error.to_string()))?;
        let mut node = Node { child, place: self };
        node.wait_until_ready().await?;
        Ok(node)
    }

    fn failed(&self, reason: &str) -> CliError {
        let log = std::fs::read_to_string(self.dir.join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES)..];
        let text = format!("the demo's node failed: {reason}\n{}", shown.join("\n"));
        CliError::new(Exit::Failure, text.trim_end())
            .advise("`corelog serve --data DIR` in a terminal shows what this host lacks")
    }
}

impl Node {
    pub(super) fn address(&self) -> String {
        self.place.address()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects to it.
    pub(super) async fn client(&self, client_id: &str) -> CliResult<Client> {
        let mut config = ClientConfig::new([self.address()]);
        config.client_id = format!("corelog demo {client_id}");
        Client::connect(config).await.map_err(|error| self.place.failed(&error.to_string()))
    }

    async fn wait_until_ready(&mut self) -> CliResult {
        let started = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.place.failed(&format!("it ended with {status}")));
            }
            let mut config = ClientConfig::new([self.address()]);
            config.connect_timeout_ms = 1_000;
            match Client::connect(config).await {
                Ok(_) => return Ok(()),
                Err(error) if started.elapsed() > START_TIMEOUT => {
                    return Err(self.place.failed(&format!("it does not answer: {error}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Ends it as a crash does: SIGKILL, nothing is told, nothing is synced. Yields the place for the next start.
    pub(super) fn kill(mut self) -> CliResult<Place> {
        self.child.kill().map_err(|error| self.place.failed(&error.to_string()))?;
        self.child.wait().map_err(|error| self.place.failed(&error.to_string()))?;
        let (dir, cores) = (self.place.dir.clone(), self.place.cores.clone());
        Ok(Place { dir, cores, ..self.place })
    }

    /// Ends it as an operator does: SIGTERM, and waits until it has drained and synced.
    pub(super) async fn stop(mut self) -> CliResult {
        let pid = libc::pid_t::try_from(self.child.id()).expect("process ids are positive 32-bit numbers");
        // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let started = Instant::now();
        while started.elapsed() < STOP_TIMEOUT {
            match self.child.try_wait() {
                Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.place.failed(&format!("it ended with {status}"))),
                Err(error) => return Err(self.place.failed(&error.to_string())),
            }
        }
        Err(self.place.failed("it did not stop in time"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets the kernel kill the child when this thread ends, however that happens.
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl, getppid and _exit are called, which are async-signal-safe; nothing is
    // allocated, no lock is taken.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have gone between fork and prctl.
            if libc::getppid().cast_unsigned() != parent {
                libc::_exit(1);
            }
            Ok(())
        });
    }
}

/// Not for secrets: only spreads the ports of demos that start together.
fn rand_u16() -> u16 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() as u16
}
