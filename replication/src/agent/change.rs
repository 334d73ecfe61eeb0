//! Changes that somebody asks for: decide on the newest picture, commit, see it come back.
//!
//! Owns: the loop around a pure decision (`crate::controller::admin`), and how often it is tried.
//! Invariant: when a change is answered as done, the picture of this node shows it.
//! Cancel: dropping it may leave the first commits of several done; the same change asked for again goes on.

use super::run::note_awaited;
use super::{Agent, Clock};
use crate::cluster::ClusterState;
use crate::coordination::{CommitError, Coordination, Op};

/// How often a decision is made again after it lost a race or its answer.
const ATTEMPTS_MAX: usize = 20;

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError<E> {
    /// It makes no sense in the newest picture.
    #[error(transparent)]
    Refused(E),
    /// The coordination service does not answer: nothing is known to have changed; ask again later.
    #[error("the coordination service does not answer; try again when it does")]
    NoSession,
    /// Others were faster each time: try again.
    #[error("others changed the same things again and again; try again")]
    Contended,
    /// The coordination service refused.
    #[error("the coordination service refused: {0}")]
    Store(String),
}

impl<C: Coordination, K: Clock> Agent<C, K> {
    /// Makes a change: `decide` turns the newest picture into commits, done in order; none: nothing to do. It is
    /// asked again when a commit conflicts, so it must find what an earlier attempt has already done.
    pub async fn change<E>(
        &self,
        mut decide: impl FnMut(&ClusterState) -> Result<Vec<Vec<Op>>, E>,
    ) -> Result<(), ChangeError<E>> {
        for _ in 0..ATTEMPTS_MAX {
            if !self.is_connected() {
                return Err(ChangeError::NoSession);
            }
            let commits = self.cluster(&mut decide).map_err(ChangeError::Refused)?;
            match self.commit_all(commits).await {
                Ok(()) => return Ok(()),
                Err(CommitError::Conflict { .. }) => self.wait_for_news().await,
                // The next picture tells whether it happened.
                Err(CommitError::Unknown) => self.wait_for_news().await,
                Err(CommitError::NoSession) => return Err(ChangeError::NoSession),
                Err(CommitError::Refused(reason)) => return Err(ChangeError::Store(reason)),
            }
        }
        Err(ChangeError::Contended)
    }

    async fn commit_all(&self, commits: Vec<Vec<Op>>) -> Result<(), CommitError> {
        for ops in commits {
            let versions = self.0.store.commit(ops.clone()).await?;
            note_awaited(&mut self.0.state.borrow_mut(), &ops, &versions);
            let keys: Vec<&str> = ops.iter().map(Op::key).collect();
            loop {
                let changed = self.changed();
                if !keys.iter().any(|key| self.0.state.borrow().awaited.contains_key(*key)) {
                    break;
                }
                changed.await;
            }
        }
        Ok(())
    }

    /// Waits for an event, or for a while.
    async fn wait_for_news(&self) {
        let changed = std::pin::pin!(self.changed());
        let patience = std::pin::pin!(self.0.clock.sleep(self.0.options.retry_ms));
        futures_util::future::select(changed, patience).await;
    }
}
