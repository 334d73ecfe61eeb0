//! Whether this node still hears the coordination service. Pure: told of events and times, asked for a verdict.
//!
//! Owns: since when the service has been silent, and when that counts as isolation.
//! Invariant: isolation begins at most one session timeout after the connection was lost, whoever else may have been
//! elected meanwhile: from then on this node serves no reads and no `acks = 1`. `acks = all` needs no clock.
//! Crash story: the process is stopped (SIGSTOP) longer than its session and wakes up. The gap between two looks at
//! the clock tells it, before any event of the service can, that it may have been deposed.

/// What is known about the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contact {
    /// No session has been there yet.
    Never,
    /// The service answers.
    Connected,
    /// It was last known to answer at this time.
    Silent { since_ms: u64 },
    /// The session is gone, or may well be.
    Lost,
}

/// Contact with the coordination service over time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    contact: Contact,
    timeout_ms: u64,
    looked_ms: u64,
}

impl Session {
    /// Before the first contact. `timeout_ms`: of the session.
    pub(super) fn new(timeout_ms: u64, now_ms: u64) -> Self {
        Self { contact: Contact::Never, timeout_ms, looked_ms: now_ms }
    }

    /// The service answered: a new state, or a commit.
    pub(super) fn answered(&mut self, now_ms: u64) {
        self.contact = Contact::Connected;
        self.looked_ms = now_ms;
    }

    /// The connection is lost.
    pub(super) fn suspended(&mut self, now_ms: u64) {
        if self.contact == Contact::Connected {
            self.contact = Contact::Silent { since_ms: now_ms };
        }
    }

    /// The session is lost.
    pub(super) fn expired(&mut self) {
        if self.contact != Contact::Never {
            self.contact = Contact::Lost;
        }
    }

    /// Looks at the clock. Returns whether the service should be asked for a sign of life: this process has slept
    /// for longer than a session lasts.
    pub(super) fn look(&mut self, now_ms: u64) -> bool {
        let slept = now_ms.saturating_sub(self.looked_ms) >= self.timeout_ms;
        self.looked_ms = now_ms;
        match self.contact {
            Contact::Connected if slept => {
                self.contact = Contact::Lost;
                true
            }
            Contact::Silent { since_ms } if now_ms.saturating_sub(since_ms) >= self.timeout_ms => {
                self.contact = Contact::Lost;
                false
            }
            Contact::Never | Contact::Connected | Contact::Silent { .. } | Contact::Lost => false,
        }
    }

    /// Whether reads and `acks = 1` have to be refused. Before the first contact there is nothing to refuse.
    pub(super) fn is_isolated(&self) -> bool {
        self.contact == Contact::Lost
    }

    /// Whether the service answers now, as far as is known.
    pub(super) fn is_connected(&self) -> bool {
        self.contact == Contact::Connected
    }

    /// How often to look: often enough to keep the bound.
    pub(super) fn look_interval_ms(&self) -> u64 {
        (self.timeout_ms / 4).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_for_a_session_timeout_is_isolation_and_an_answer_ends_it() {
        let mut session = Session::new(1_000, 0);
        assert!(!session.is_isolated(), "nobody has led anything yet");
        session.answered(100);
        session.look(350);
        session.suspended(400);
        session.look(650);
        session.look(1_399);
        assert!(!session.is_isolated());
        session.look(1_400);
        assert!(session.is_isolated());
        session.answered(1_500);
        assert!(!session.is_isolated() && session.is_connected());
    }

    #[test]
    fn a_process_that_slept_longer_than_its_session_is_isolated_before_it_hears_of_it() {
        let mut session = Session::new(1_000, 0);
        session.answered(10);
        assert!(!session.look(500));
        assert!(session.look(1_500), "it should ask the service");
        assert!(session.is_isolated());
        session.answered(1_510);
        assert!(!session.is_isolated());
    }

    #[test]
    fn an_expired_session_is_isolation_at_once() {
        let mut session = Session::new(1_000, 0);
        session.answered(10);
        session.expired();
        assert!(session.is_isolated());
    }
}
