//! The follower's writer: questions, reports, credit.
//!
//! Owns: when something is sent. At once when an end moved that the leader waits for: one message for all partitions
//! that moved, whoever woke it. No timer, no batching delay: while a message is being sent, the next reports gather.

use std::rc::Rc;

use corelog_engine::disk::Disk;
use corelog_engine::log::{FlushPolicy, Stage};
use corelog_schemas::messages::{STREAM_ENTRIES_MAX, StreamMessage, StreamReport};
use futures_util::FutureExt;

use super::work::Work;
use super::{Fetcher, Leaving, Live, Phase};
use crate::stream::link::{Host, LinkError};

impl<D: Disk, H: Host> Fetcher<D, H> {
    /// Sends until the connection ends.
    pub(super) async fn write(self: Rc<Self>, live: Rc<Live<H>>) {
        let mut reports = Vec::new();
        while !live.session.is_closed() {
            let woken = self.dirty.woken();
            match self.write_once(&live, &mut reports).await {
                Ok(true) => {}
                Ok(false) => woken.await,
                Err(_) => break,
            }
        }
        live.session.close();
    }

    /// One turn; says whether there was anything to send.
    async fn write_once(
        self: &Rc<Self>,
        live: &Live<H>,
        reports: &mut Vec<StreamReport>,
    ) -> Result<bool, LinkError> {
        for _ in 0..STREAM_ENTRIES_MAX {
            let Some(place) = self.dirty.pop() else { break };
            reports.extend(self.visit(place));
        }
        let mut has_sent = self.send_questions(live).await?;
        let is_due = live.session.heartbeat_is_due() && !has_sent;
        if !reports.is_empty() || live.credit.is_worth_it() || is_due {
            let credit_bytes = live.credit.due.take();
            let message = StreamMessage::Reports { reports: std::mem::take(reports), credit_bytes };
            live.session.send(&message, &[]).await?;
            // The memory of the list is used again.
            if let StreamMessage::Reports { reports: mut sent, .. } = message {
                sent.clear();
                *reports = sent;
            }
            has_sent = true;
        }
        while let Some((message, slices)) = live.session.ranges.pop_outgoing() {
            live.session.send(&message, &slices).await?;
            has_sent = true;
        }
        if self.leaving.get() == Leaving::Asked {
            live.session.send(&StreamMessage::Leave, &[]).await?;
            self.leaving.set(Leaving::Said);
            self.left.notify_all();
            has_sent = true;
        }
        Ok(has_sent || self.dirty.len() > 0)
    }

    async fn send_questions(&self, live: &Live<H>) -> Result<bool, LinkError> {
        let mut unfollows = std::mem::take(&mut *self.unfollows.borrow_mut());
        let mut questions = std::mem::take(&mut *self.questions.borrow_mut());
        let has_any = !unfollows.is_empty() || !questions.is_empty();
        while !unfollows.is_empty() {
            let rest = unfollows.split_off(unfollows.len().min(STREAM_ENTRIES_MAX));
            live.session.send(&StreamMessage::Unfollow(unfollows), &[]).await?;
            unfollows = rest;
        }
        while !questions.is_empty() {
            let rest = questions.split_off(questions.len().min(STREAM_ENTRIES_MAX));
            live.session.send(&StreamMessage::Follow(questions), &[]).await?;
            questions = rest;
        }
        Ok(has_any)
    }

    /// Looks what a partition has to say: asks, or returns what is to be reported.
    fn visit(self: &Rc<Self>, place: u32) -> Option<StreamReport> {
        let phase = self.followed.borrow().get(place).map(|f| (f.phase, f.is_working))?;
        match phase {
            (Phase::ToAsk, false) => {
                self.ask(place);
                None
            }
            (Phase::Copying, _) => self.report(place),
            (Phase::ToAsk, true) | (Phase::Asked | Phase::Paused | Phase::Stalled | Phase::Stopped, _) => {
                None
            }
        }
    }

    fn ask(self: &Rc<Self>, place: u32) {
        let found = self.followed.borrow().get(place).map(|f| (f.partition.clone(), f.epoch, f.serial));
        let Some((partition, epoch, serial)) = found else { return };
        match partition.ask(epoch).now_or_never() {
            Some(Ok(asked)) => self.asked(place, serial, &asked),
            Some(Err(error)) => self.failed(place, &error),
            None => self.queue(place, Work::Ask),
        }
    }

    fn report(&self, place: u32) -> Option<StreamReport> {
        let (partition, epoch) = {
            let followed = self.followed.borrow();
            let followed = followed.get(place)?;
            (followed.partition.clone(), followed.epoch)
        };
        let ends = partition.replica_ends();
        let stage = match partition.log().options().flush {
            FlushPolicy::Commit => Stage::Durable,
            FlushPolicy::Interval { .. } => Stage::Written,
        };
        let mut followed = self.followed.borrow_mut();
        let followed = followed.get_mut(place)?;
        let stream = followed.stream?;
        if let Some(known) = followed.reported
            && ends.at(stage) <= known.at(stage)
        {
            // Nobody waits for the other end, but the leader may be asked how far its followers are.
            if ends != known {
                self.lazy.add(place);
            }
            return None;
        }
        followed.reported = Some(ends);
        Some(StreamReport { stream, leader_epoch: epoch.0, written: ends.written.0, durable: ends.durable.0 })
    }
}
