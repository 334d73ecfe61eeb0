//! Three nodes as real processes in network namespaces of their own, with a real ZooKeeper, under faults.
//!
//! Must never happen: an acked record that is lost, repeated or moved; two leaders in one epoch; a reader that goes
//! back or reads what a later leader does not have.

mod network;

use std::io::{Read, Write};
use std::time::Duration;

use network::{HostId, Network};

#[test]
fn a_cut_is_silent_and_has_a_direction() {
    let (a, b) = (HostId(1), HostId(2));
    let network = Network::new(&[a, b]).expect("root may make namespaces");
    let mut server = network.command(b, "python3");
    server.args(["-uc", "import socket\ns = socket.create_server(('10.77.0.2', 7000))\nprint('up')\nwhile True:\n c, _ = s.accept()\n c.sendall(b'x')\n c.close()"]);
    let mut server = server.stdout(std::process::Stdio::piped()).spawn().expect("it starts");
    let mut up = [0; 3];
    server.stdout.take().expect("piped").read_exact(&mut up).expect("it says so");
    let reach = || {
        let address = "10.77.0.2:7000".parse().expect("an address");
        let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok()?;
        stream.write_all(b"?").ok()?;
        stream.read_exact(&mut [0]).ok()
    };
    assert!(reach().is_some());
    network.cut(HostId::CLIENTS, b);
    assert!(reach().is_none());
    network.heal();
    assert!(reach().is_some());
    network.cut(b, HostId::CLIENTS);
    assert!(reach().is_none());
    network.heal();
    network.cut_both(a, HostId::CLIENTS);
    assert!(reach().is_some(), "other hosts are not touched");
    server.kill().expect("killed");
    server.wait().expect("waited for");
}
