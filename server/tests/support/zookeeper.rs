//! A private ZooKeeper ensemble on loopback, and a way to it that can be cut.
//!
//! Needs the Debian package `zookeeper` (scripts/setup.sh installs it). Servers are ended by their process ids, and
//! their files removed, when the ensemble is dropped.

// Each test binary uses a part of it.
#![allow(dead_code, reason = "shared by several test binaries")]

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a server may take to start: Java on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(60);
const SCRIPT: &str = "/usr/share/zookeeper/bin/zkServer.sh";
/// What an encrypted server needs; Debian's own class path lacks a part of Netty.
const ENCRYPTED_CLASS_PATH: &str = "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar:/usr/share/java/netty-codec.jar:\
    /usr/share/java/netty-resolver.jar:/usr/share/java/netty-transport-native-unix-common.jar";

/// Ports below those that the kernel gives to outgoing connections, so that nobody takes one before we do.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + u16::try_from(std::process::id() % 8_000).expect("small");
    for _ in 0..8_000 {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

struct Server {
    dir: PathBuf,
    ip: IpAddr,
    port: u16,
    /// For encrypted connections.
    secure_port: u16,
    child: Option<Child>,
}

/// Makes a command that runs a program somewhere, for example in a network namespace.
pub(crate) type Launcher = Arc<dyn Fn(&str) -> Command + Send + Sync>;

/// How servers run, and what they ask of their clients.
#[derive(Clone, Default)]
pub(crate) struct EnsembleOptions {
    /// Name and password that SASL digest wants.
    pub(crate) sasl: Option<(String, String)>,
    /// Whether connections are encrypted.
    pub(crate) is_encrypted: bool,
    /// Where they run, and the address that they have there; loopback by default.
    pub(crate) place: Option<(IpAddr, Launcher)>,
}

/// One or three servers.
pub(crate) struct Ensemble {
    dir: tempfile::TempDir,
    servers: Vec<Server>,
    launcher: Launcher,
}

impl Ensemble {
    /// Starts servers and waits until they serve.
    pub(crate) fn start(count: usize) -> Self {
        Self::start_with(count, &EnsembleOptions::default())
    }

    pub(crate) fn start_with(count: usize, options: &EnsembleOptions) -> Self {
        assert!(Path::new(SCRIPT).exists(), "ZooKeeper is not installed: run scripts/setup.sh");
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
        let (ip, launcher) = options
            .place
            .clone()
            .unwrap_or_else(|| (Ipv4Addr::LOCALHOST.into(), Arc::new(|program: &str| Command::new(program))));
        let ports: Vec<[u16; 4]> = (0..count).map(|_| std::array::from_fn(|_| free_port())).collect();
        let mut members = String::new();
        if count > 1 {
            for (number, [_, _, quorum, election]) in (1..).zip(&ports) {
                writeln!(members, "server.{number}={ip}:{quorum}:{election}").expect("written");
            }
        }
        let servers = (1..).zip(&ports).map(|(number, [port, secure_port, ..])| {
            let dir = dir.path().join(format!("server-{number}"));
            let server = Server { dir, ip, port: *port, secure_port: *secure_port, child: None };
            configure(&server, number, &members, options);
            server
        });
        let mut ensemble = Self { servers: servers.collect(), dir, launcher };
        for server in 0..count {
            ensemble.restart(server);
        }
        for server in 0..count {
            ensemble.await_serving(server);
        }
        ensemble
    }

    /// Every server's address, as `zookeeper.connect` wants them.
    pub(crate) fn connect(&self) -> String {
        let addresses: Vec<String> =
            (0..self.servers.len()).map(|server| self.address(server).to_string()).collect();
        addresses.join(",")
    }

    /// The first server's address for encrypted connections, by the name in its certificate.
    pub(crate) fn connect_encrypted(&self) -> String {
        format!("localhost:{}", self.servers[0].secure_port)
    }

    /// The first server's certificate, which vouches for itself.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.servers[0].dir.join("server.pem")
    }

    pub(crate) fn address(&self, server: usize) -> SocketAddr {
        SocketAddr::new(self.servers[server].ip, self.servers[server].port)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, server: usize) {
        if let Some(mut child) = self.servers[server].child.take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a server that was killed; does not wait for it.
    pub(crate) fn restart(&mut self, server: usize) {
        let server = &mut self.servers[server];
        assert!(server.child.is_none(), "it runs");
        let log = std::fs::File::options().create(true).append(true).open(server.dir.join("out.log"));
        let log = log.expect("a log file");
        let mut flags = "-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1".to_owned();
        let jaas = server.dir.join("jaas.conf");
        if jaas.exists() {
            write!(flags, " -Djava.security.auth.login.config={}", jaas.display()).expect("written");
        }
        if server.dir.join("server.pem").exists() {
            write!(flags, " -cp {ENCRYPTED_CLASS_PATH}").expect("written");
        }
        let child = (self.launcher)(SCRIPT)
            .arg("start-foreground")
            .arg(server.dir.join("zoo.cfg"))
            .env("ZOO_LOG_DIR", &server.dir)
            .env("JVMFLAGS", flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("cloned"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        server.child = Some(child);
    }

    pub(crate) fn await_serving(&self, server: usize) {
        let began = Instant::now();
        while self.mode(server).is_none() {
            let log = || std::fs::read_to_string(self.servers[server].dir.join("out.log"));
            assert!(began.elapsed() < START_PATIENCE, "ZooKeeper does not start: {:?}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `standalone`, `leader` or `follower`; `None` while it does not serve.
    pub(crate) fn mode(&self, server: usize) -> Option<String> {
        let answer = self.four_letters(server, "srvr")?;
        answer.lines().find_map(|line| line.strip_prefix("Mode: ").map(str::to_owned))
    }

    /// Asks a server one of its four-letter questions.
    pub(crate) fn four_letters(&self, server: usize, question: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address(server), Duration::from_secs(5)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(question.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The server that leads; waits for one.
    pub(crate) fn leader(&self) -> usize {
        let began = Instant::now();
        loop {
            let leader = (0..self.servers.len()).find(|server| {
                self.mode(*server).is_some_and(|mode| mode == "leader" || mode == "standalone")
            });
            if let Some(leader) = leader {
                return leader;
            }
            assert!(began.elapsed() < START_PATIENCE, "no leader");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGSTOP: it answers nobody, and its connections stay open.
    pub(crate) fn pause(&self, server: usize) {
        self.signal(server, libc::SIGSTOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self, server: usize) {
        self.signal(server, libc::SIGCONT);
    }

    fn signal(&self, server: usize, signal: libc::c_int) {
        let child = self.servers[server].child.as_ref().expect("it runs");
        let pid = libc::pid_t::try_from(child.id()).expect("a process id");
        // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        for server in 0..self.servers.len() {
            self.kill(server);
        }
    }
}

fn configure(server: &Server, number: usize, members: &str, options: &EnsembleOptions) {
    let Server { dir, ip, port, secure_port, .. } = server;
    let data = dir.join("data");
    std::fs::create_dir_all(&data).expect("made");
    std::fs::write(data.join("myid"), number.to_string()).expect("written");
    let mut config = format!(
        "tickTime=500\ninitLimit=20\nsyncLimit=10\ndataDir={}\nclientPort={port}\nclientPortAddress={ip}\n\
         admin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n{members}",
        data.display()
    );
    if let Some((user, password)) = &options.sasl {
        config += "authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider\n\
                   enforce.auth.enabled=true\nenforce.auth.schemes=sasl\n";
        let jaas = format!(
            "Server {{ org.apache.zookeeper.server.auth.DigestLoginModule required user_{user}=\"{password}\"; }};\n"
        );
        std::fs::write(dir.join("jaas.conf"), jaas).expect("written");
    }
    if options.is_encrypted {
        let store = make_certificate(dir);
        config += &format!(
            "secureClientPort={secure_port}\nsecureClientPortAddress={ip}\n\
             serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
             ssl.keyStore.location={}\nssl.keyStore.password={STORE_PASSWORD}\nssl.keyStore.type=PKCS12\n\
             ssl.clientAuth=none\n",
            store.display()
        );
    }
    std::fs::write(dir.join("zoo.cfg"), config).expect("written");
}

const STORE_PASSWORD: &str = "not-a-secret";

/// Makes a key and a certificate that vouches for itself (`server.pem`); returns the key store.
fn make_certificate(dir: &Path) -> PathBuf {
    let store = dir.join("server.p12");
    let keytool = |arguments: &[&str]| {
        let output = Command::new("keytool")
            .args(arguments)
            .args(["-alias", "server", "-storetype", "PKCS12", "-storepass", STORE_PASSWORD])
            .arg("-keystore")
            .arg(&store)
            .output()
            .expect("keytool comes with Java");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        output.stdout
    };
    let subject = ["-dname", "CN=localhost", "-ext", "san=dns:localhost"];
    keytool(&[&["-genkeypair", "-keyalg", "EC", "-validity", "2"], &subject[..]].concat());
    let certificate = keytool(&["-exportcert", "-rfc"]);
    std::fs::write(dir.join("server.pem"), certificate).expect("written");
    store
}

/// A way to one server that can be cut without either side noticing at once.
pub(crate) struct Way {
    address: SocketAddr,
    state: Arc<WayState>,
}

struct WayState {
    /// Nothing passes, new connections end at once.
    is_cut: AtomicBool,
    /// What the server says does not pass.
    is_deaf: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Way {
    /// Opens one to a server.
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(WayState {
            is_cut: AtomicBool::new(false),
            is_deaf: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let of_thread = Arc::downgrade(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Some(state)) = (client, of_thread.upgrade()) else { return };
                if !state.is_cut.load(Ordering::SeqCst)
                    && let Ok(server) = TcpStream::connect(server)
                {
                    state.join(client, server);
                }
            }
        });
        Self { address, state }
    }

    pub(crate) fn connect(&self) -> String {
        self.address.to_string()
    }

    /// Breaks every connection and lets none through.
    pub(crate) fn cut(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
        self.break_all();
    }

    /// Breaks every connection; new ones go through.
    pub(crate) fn break_all(&self) {
        for connection in self.state.connections.lock().expect("nobody panics").drain(..) {
            // It may be closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// The server hears, but is not heard.
    pub(crate) fn silence(&self) {
        self.state.is_deaf.store(true, Ordering::SeqCst);
    }

    /// Lets everything through again; connections that missed something are broken.
    pub(crate) fn restore(&self) {
        self.state.is_deaf.store(false, Ordering::SeqCst);
        self.state.is_cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.cut();
        // Wakes the thread, which finds the state gone.
        let _ = TcpStream::connect(self.address);
    }
}

impl WayState {
    fn join(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let mut connections = self.connections.lock().expect("nobody panics");
        for (from, to, is_answer) in [(&client, &server, false), (&server, &client, true)] {
            let (mut from, mut to) = (from.try_clone().expect("cloned"), to.try_clone().expect("cloned"));
            connections.push(from.try_clone().expect("cloned"));
            let state = self.clone();
            std::thread::spawn(move || {
                let mut bytes = [0; 16 << 10];
                while let Ok(read) = from.read(&mut bytes) {
                    let is_lost = is_answer && state.is_deaf.load(Ordering::SeqCst);
                    if read == 0 || (!is_lost && to.write_all(&bytes[..read]).is_err()) {
                        break;
                    }
                }
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    }
}
