//! What io_uring can do on this host.

use std::io;

use io_uring::{IoUring, Probe, opcode};

use crate::files::Warning;

/// What the kernel offers through io_uring.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Why no ring can be opened, if none can.
    pub refused: Option<String>,
    /// Operations that the engine needs and the kernel lacks.
    pub lacking: Vec<&'static str>,
}

/// Operations of the engine's file ring, by number and name.
const NEEDED: &[(u8, &str)] = &[
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::Writev::CODE, "writev"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::PollAdd::CODE, "poll"),
];

impl Ring {
    /// Opens a small ring and asks it.
    pub fn detect() -> Self {
        match probe() {
            Ok(lacking) => Self { refused: None, lacking },
            Err(e) => Self { refused: Some(e.to_string()), lacking: Vec::new() },
        }
    }

    /// Whether the engine can run here.
    pub fn is_fit(&self) -> bool {
        self.refused.is_none() && self.lacking.is_empty()
    }

    pub(crate) fn warnings(&self) -> Option<Warning> {
        if let Some(why) = &self.refused {
            return Some(Warning(format!(
                "io_uring is refused ({why}); look at the sysctl kernel.io_uring_disabled (must be 0), at the \
                 container's seccomp profile, and at the kernel's age (5.15 or newer)"
            )));
        }
        (!self.lacking.is_empty())
            .then(|| Warning(format!("io_uring lacks {:?} on this kernel; use 5.15 or newer", self.lacking)))
    }
}

fn probe() -> io::Result<Vec<&'static str>> {
    let ring = IoUring::new(8)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    Ok(NEEDED.iter().filter(|(code, _)| !probe.is_supported(*code)).map(|(_, name)| *name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_is_told_with_what_to_look_at() {
        let ring = Ring { refused: Some("Operation not permitted".into()), lacking: vec![] };
        assert!(!ring.is_fit());
        let warning = ring.warnings().expect("it is not fit");
        assert!(warning.0.contains("kernel.io_uring_disabled"), "{}", warning.0);
    }

    #[test]
    fn this_host_has_what_the_engine_needs() {
        let ring = Ring::detect();
        assert!(ring.is_fit(), "{ring:?}");
        assert_eq!(ring.warnings(), None);
    }
}
