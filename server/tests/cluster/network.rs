//! A network of its own for a test: one namespace a host, a bridge between them, cuts in either direction.
//!
//! Owns: the namespaces. The test's thread moves into a namespace that holds the bridge and stands for the clients;
//! each host is a namespace held open by a sleeping process, so that nothing is left when the test ends, however.
//! Invariant: a cut drops what arrives (nftables in the receiver's namespace): both ends see silence, not an error.
//! Needs: root, `ip` (iproute2) and `nft` (nftables); `scripts/setup.sh` installs them.

use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::zookeeper::Launcher;

/// Address prefix of the network: 10.77.0.0/24, seen by nobody outside.
const PREFIX: &str = "10.77.0";
/// Last byte of the address of the test's own thread.
const CLIENTS: u8 = 254;

/// A host in the network, by the last byte of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostId(pub(crate) u8);

impl HostId {
    /// The test's own end.
    pub(crate) const CLIENTS: Self = Self(CLIENTS);

    pub(crate) fn address(self) -> String {
        format!("{PREFIX}.{}", self.0)
    }
}

/// A namespace, held open until it is dropped.
struct Host {
    id: HostId,
    holder: Child,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The network. Dropping it ends the holders; the namespaces go with the last process in them.
pub(crate) struct Network {
    hosts: Vec<Host>,
}

impl Network {
    /// Moves the calling thread, and whatever it starts from now on, into a namespace of its own, and makes hosts there.
    pub(crate) fn new(hosts: &[HostId]) -> io::Result<Self> {
        // SAFETY: no memory is involved. The thread alone changes its network namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "bridge", "type", "bridge"]);
        run("ip", &["address", "add", &format!("{}/24", HostId::CLIENTS.address()), "dev", "bridge"]);
        run("ip", &["link", "set", "bridge", "up"]);
        let mut network = Self { hosts: Vec::new() };
        accept_all(|arguments| run("nft", arguments));
        for id in hosts {
            network.add(*id);
        }
        Ok(network)
    }

    fn add(&mut self, id: HostId) {
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare (util-linux) is there");
        let host = Host { id, holder };
        host.wait_until_separate();
        let (outside, pid) = (format!("host{}", id.0), host.holder.id().to_string());
        run("ip", &["link", "add", &outside, "type", "veth", "peer", "name", "eth", "netns", &pid]);
        run("ip", &["link", "set", &outside, "master", "bridge", "up"]);
        let inside = |program: &str, arguments: &[&str]| {
            let mut all = vec!["--net", "--target", &pid, program];
            all.extend(arguments);
            run("nsenter", &all);
        };
        inside("ip", &["link", "set", "lo", "up"]);
        inside("ip", &["address", "add", &format!("{}/24", id.address()), "dev", "eth"]);
        inside("ip", &["link", "set", "eth", "up"]);
        accept_all(|arguments| inside("nft", arguments));
        self.hosts.push(host);
    }

    /// A command that runs `program` on a host.
    pub(crate) fn command(&self, on: HostId, program: &str) -> Command {
        (self.launcher(on))(program)
    }

    /// Makes commands that run on a host, for as long as the network is there.
    pub(crate) fn launcher(&self, on: HostId) -> Launcher {
        let host = self.hosts.iter().find(|host| host.id == on).expect("a host of this network");
        let pid = host.holder.id().to_string();
        Arc::new(move |program| {
            let mut command = Command::new("nsenter");
            command.args(["--net", "--target", &pid, program]);
            command
        })
    }

    /// What `from` sends does not arrive at `to` any more.
    pub(crate) fn cut(&self, from: HostId, to: HostId) {
        let rule = ["add", "rule", "inet", "test", "arriving", "ip", "saddr", &from.address(), "drop"];
        self.nft(to, &rule);
    }

    /// Nothing goes either way between two hosts any more.
    pub(crate) fn cut_both(&self, a: HostId, b: HostId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Everything arrives everywhere again.
    pub(crate) fn heal(&self) {
        let ids: Vec<HostId> = self.hosts.iter().map(|host| host.id).chain([HostId::CLIENTS]).collect();
        for id in ids {
            self.nft(id, &["flush", "chain", "inet", "test", "arriving"]);
        }
    }

    fn nft(&self, on: HostId, arguments: &[&str]) {
        if on == HostId::CLIENTS {
            return run("nft", arguments);
        }
        let output = self.command(on, "nft").args(arguments).output().expect("nft is there");
        assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Host {
    /// The holder has its namespace a moment after it was started.
    fn wait_until_separate(&self) {
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("this thread has a namespace");
        let path = format!("/proc/{}/ns/net", self.holder.id());
        for _ in 0..2_000 {
            if std::fs::read_link(&path).is_ok_and(|there| there != own) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("no namespace for host {}", self.id.0);
    }
}

/// A table with one chain for what arrives, empty: everything does.
fn accept_all(nft: impl Fn(&[&str])) {
    nft(&["add", "table", "inet", "test"]);
    nft(&[
        "add",
        "chain",
        "inet",
        "test",
        "arriving",
        "{ type filter hook input priority 0; policy accept; }",
    ]);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program} cannot be run ({e}); run scripts/setup.sh"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
