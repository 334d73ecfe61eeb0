//! Finds the process behind a port of this machine, so that its CPU can be read.
//!
//! Source: proc_net(5) for the socket tables, proc_pid_fd(5) for who holds a socket.

use std::collections::BTreeSet;
use std::fs;
use std::net::ToSocketAddrs;

/// The process that listens on a loopback address; `None` for another machine, or for a process that may not be seen.
pub(crate) fn find_listener(address: &str) -> Option<u32> {
    let address = address.to_socket_addrs().ok()?.next()?;
    if !address.ip().is_loopback() {
        return None;
    }
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| listening_inode(&fs::read_to_string(table).ok()?, address.port()))?;
    let link = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut descriptors = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        descriptors
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == link.as_str()))
            .then_some(pid)
    })
}

/// The processes behind several addresses, each once.
pub(crate) fn find_listeners<'a>(addresses: impl Iterator<Item = &'a str>) -> Vec<u32> {
    let pids: BTreeSet<u32> = addresses.filter_map(find_listener).collect();
    pids.into_iter().collect()
}

/// State of a listening socket in the tables.
const LISTEN: &str = "0A";

/// Inode of the socket that listens on `port`: field 2 is the local address in hexadecimal, 4 the state, 10 the inode.
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, hex) = fields.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(hex, 16) == Ok(port) && *fields.get(3)? == LISTEN;
        if is_it { fields.get(9)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found_and_a_closed_port_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        assert_eq!(find_listener(&address), Some(std::process::id()));
        drop(listener);
        assert_eq!(find_listener(&address), None);
        assert_eq!(find_listener("192.0.2.1:9"), None);
    }

    #[test]
    fn a_connection_on_the_same_port_is_not_the_listener() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:25E4 0100007F:1234 01 0:0 00:0 0 0 0 111 1\n\
                     1: 0100007F:25E4 00000000:0000 0A 0:0 00:0 0 0 0 222 1\n";
        assert_eq!(listening_inode(table, 0x25e4), Some(222));
        assert_eq!(listening_inode(table, 1), None);
    }
}
