//! A real node for tests of the command line: the binary's `serve`, on free ports, in a temporary directory.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::{Ran, binary, run_with};

/// The node; killed by its process id when dropped.
pub struct Node {
    child: Child,
    pub address: String,
    dir: tempfile::TempDir,
}

impl Node {
    /// Starts a node with a new data directory; returns once it is ready.
    pub fn start() -> Self {
        let dir =
            tempfile::Builder::new().prefix("corelog-cli-").tempdir_in("/var/tmp").expect("a directory");
        let (child, address) = serve(dir.path(), "127.0.0.1:0");
        Self { child, address, dir }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Kills it without warning and starts it again on the same address.
    pub fn crash_and_restart(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was killed");
        let (child, address) = serve(self.dir.path(), &self.address);
        assert_eq!(address, self.address);
        self.child = child;
    }

    /// Stops it as an operator does; it must end well.
    pub fn stop(&mut self) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("process ids are positive 32-bit numbers");
        // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }

    /// Runs a command against it.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, b"")
    }

    /// Runs a command against it, with this standard input.
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut args = args.to_vec();
        args.extend(["--server", &self.address]);
        run_with(&args, input)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `serve` and waits for its ready line, which names the address.
fn serve(dir: &Path, listen: &str) -> (Child, String) {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).expect("a log file");
    let mut command = binary();
    command
        .arg("serve")
        .arg("--data")
        .arg(dir.join("data"))
        .args(["--listen", listen, "--http", "127.0.0.1:0"])
        .env("CORELOG_MEMORY_PER_SHARD", "64MiB")
        .env("CORELOG_DATA_FREE_BYTES_MIN", "0B")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    let mut child = command.spawn().expect("the binary was built");
    let stdout = child.stdout.take().expect("piped");
    let line = BufReader::new(stdout).lines().map_while(Result::ok).find(|line| line.starts_with("ready "));
    let address =
        line.as_deref().and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("listen=")));
    match address {
        Some(address) => (child, address.to_owned()),
        None => {
            let ended = child.wait();
            panic!("{ended:?}\n{}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
        }
    }
}
