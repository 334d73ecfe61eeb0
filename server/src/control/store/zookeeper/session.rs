//! The life of the session: connecting, following it, resuming or replacing it.
//!
//! Owns: when the node is told that its session is suspended or gone.
//! Invariant: a session is given up only when a server says that it is gone. Nobody answering for long is no proof: the
//! servers may have lost their quorum, and keep the session when they have it again.
//! Crash story: the servers forget the session while this process sleeps (SIGSTOP). The first answer after waking says
//! so; until then commits fail, because requests of a session that is gone are refused.

use std::rc::Rc;
use std::time::{Duration, Instant};

use corelog_replication::coordination::Event;
use zookeeper_client::{Client, Error, SessionInfo};

use super::Shared;
use super::follow::{Ended, follow};

/// Pause between attempts to connect.
const PAUSE: Duration = Duration::from_millis(300);
/// How often the log repeats that nobody answers.
const WARN_EVERY: Duration = Duration::from_secs(30);

/// Says what is wrong, but not again and again.
#[derive(Default)]
struct Warner {
    last: Option<Instant>,
}

impl Warner {
    fn is_due(&mut self) -> bool {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= WARN_EVERY);
        if is_due {
            self.last = Some(Instant::now());
        }
        is_due
    }
}

/// Keeps a session until the store is closed.
pub(super) async fn run(shared: Rc<Shared>) {
    let mut resumed = None;
    while !shared.is_closing.get() {
        let connected = tokio::select! {
            connected = connect(&shared, resumed.clone()) => connected,
            () = shared.closing.notified() => continue,
        };
        let Some(client) = connected else {
            tracing::warn!(
                "the session with ZooKeeper has expired: the others take this node for dead; registering anew"
            );
            shared.outbox.push(Event::Expired);
            resumed = None;
            continue;
        };
        resumed = Some(client.session().clone());
        if let Ended::Closing = live(&shared, client).await {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    shared.closed.notify_one();
}

/// Connects, as often as it takes; `None` if the session to resume is gone.
async fn connect(shared: &Shared, resumed: Option<SessionInfo>) -> Option<Client> {
    let mut warner = Warner::default();
    let options = &shared.options;
    loop {
        let mut connector = shared.connector.clone();
        if let Some(session) = &resumed {
            connector = connector.with_session(session.clone());
        }
        let connected = match &options.tls {
            Some(_) => connector.secure_connect(&options.connect).await,
            None => connector.connect(&options.connect).await,
        };
        let error = match connected {
            Ok(client) => return Some(client),
            Err(Error::SessionExpired) if resumed.is_some() => return None,
            Err(error) => error,
        };
        if warner.is_due() {
            warn_unreachable(&options.connect, &error);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn warn_unreachable(connect: &str, error: &Error) {
    match error {
        Error::AuthFailed => tracing::warn!(
            connect,
            "ZooKeeper refuses our name or password; look at zookeeper.user and zookeeper.password_file; trying on"
        ),
        _ => tracing::warn!(
            connect, %error,
            "no ZooKeeper server takes us: is the ensemble running with a quorum, are zookeeper.connect and zookeeper.tls \
             right? Trying on; RUST_LOG=info,zookeeper_client=debug shows each attempt"
        ),
    }
}

/// Sees a connected session to its end.
async fn live(shared: &Rc<Shared>, client: Client) -> Ended {
    warn_of_timeout(shared, &client);
    let mut states = client.state_watcher();
    let ended = tokio::select! {
        ended = follow(shared, client) => ended,
        () = shared.closing.notified() => Ended::Closing,
    };
    shared.ready.borrow_mut().take();
    if let Ended::Closing = ended {
        // The last handle is gone: the client library ends the session and says when that is done.
        while !states.state().is_terminated() {
            states.changed().await;
        }
    }
    ended
}

fn warn_of_timeout(shared: &Shared, client: &Client) {
    let timeout_ms = client.session_timeout().as_millis();
    let wanted_ms = u128::from(shared.options.session_timeout_ms);
    if timeout_ms < wanted_ms {
        tracing::warn!(
            timeout_ms,
            wanted_ms,
            "ZooKeeper allows shorter sessions only: lower zookeeper.session_timeout, or raise maxSessionTimeout there"
        );
    }
    tracing::info!(session = %client.session_id(), timeout_ms, "session with ZooKeeper");
}
