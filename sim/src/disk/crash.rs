//! What a crash leaves.
//!
//! Kill: the process is gone, the kernel is not. All completed operations stay; of those in flight any, in any
//! order, run to their end. What was not synced is still not synced.
//! Power loss: only what was synced is sure. Each other write is kept, dropped, or torn at the grain of a
//! sector; each other name change is kept or dropped. One crash in eight keeps nothing that it may drop, and
//! one in eight keeps everything, since those two are the ends where mistakes hide.

use std::collections::BTreeSet;

use super::content::{Content, PAGE_BYTES, SECTOR_BYTES};
use super::state::{Edit, Effect, FileNode, Node, State};
use crate::executor::Handle;

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process dies (kill -9); the machine goes on.
    Kill,
    /// The machine loses power.
    PowerLoss,
}

/// How a power loss treats what it may drop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    DropAll,
    KeepAll,
    Mixed,
}

/// What is found after the crash, from what was stored and what was in flight.
pub(super) fn aftermath(state: &State, in_flight: Vec<&Effect>, crash: Crash, random: &Handle) -> State {
    let mut state = state.clone();
    finish_some(&mut state, in_flight, random);
    if crash == Crash::PowerLoss {
        let mood = match random.random(0..8) {
            0 => Mood::DropAll,
            1 => Mood::KeepAll,
            _ => Mood::Mixed,
        };
        lose_names(&mut state, mood, random);
        for node in state.nodes.values_mut() {
            if let Node::File(file) = node {
                lose_writes(file, mood, random);
            }
        }
    }
    for node in state.nodes.values_mut() {
        if let Node::File(file) = node {
            file.open = 0;
        }
    }
    state.sweep();
    state
}

/// Operations in flight: any of them, in any order, whole or in part.
fn finish_some(state: &mut State, mut in_flight: Vec<&Effect>, random: &Handle) {
    while !in_flight.is_empty() {
        let effect = in_flight.swap_remove(random.random(0..in_flight.len() as u64) as usize);
        if random.one_in(2) {
            continue;
        }
        // Its answer reaches nobody, not even if it failed.
        let _ = match effect {
            // A vector of many buffers goes down in several kernel calls, of which some may not have started.
            Effect::Write { node, position, slices } if random.one_in(4) => {
                let kept = random.random(0..slices.len() as u64 + 1) as usize;
                let slices = slices[..kept].to_vec();
                state.apply(&Effect::Write { node: *node, position: *position, slices })
            }
            other => state.apply(other),
        };
    }
}

fn lose_names(state: &mut State, mood: Mood, random: &Handle) {
    let mut numbers = BTreeSet::new();
    for node in state.nodes.values() {
        if let Node::Dir(dir) = node {
            numbers.extend(dir.changes.iter().map(|change| change.number));
        }
    }
    let kept: BTreeSet<u64> = numbers.into_iter().filter(|_| keeps(mood, random)).collect();
    for node in state.nodes.values_mut() {
        if let Node::Dir(dir) = node {
            dir.make_durable(|change| kept.contains(&change.number));
            dir.changes.clear();
            dir.now = dir.durable.clone();
        }
    }
}

fn keeps(mood: Mood, random: &Handle) -> bool {
    match mood {
        Mood::DropAll => false,
        Mood::KeepAll => true,
        Mood::Mixed => random.one_in(2),
    }
}

fn lose_writes(file: &mut FileNode, mood: Mood, random: &Handle) {
    let changes = std::mem::take(&mut file.changes);
    // Lengths go through a file system's journal, so a beginning of their history survives; the data beside
    // them survives on its own terms.
    let lengths_kept = match mood {
        Mood::DropAll => 0,
        Mood::KeepAll => changes.len(),
        Mood::Mixed => random.random(0..changes.len() as u64 + 1) as usize,
    };
    for (i, change) in changes.iter().enumerate() {
        let length_kept = i < lengths_kept;
        match &change.edit {
            Edit::SetLength(length) if length_kept => file.durable.set_length(*length),
            Edit::SetLength(_) => {}
            Edit::Write { position, bytes } => {
                let end = position + bytes.len() as u64;
                grow(&mut file.durable, end, length_kept);
                lose_write(&mut file.durable, *position, end, mood, random, |content, start, end| {
                    let within = (start - position) as usize..(end - position) as usize;
                    content.write(start, &bytes[within]);
                });
            }
            Edit::Zero { start, end } => {
                grow(&mut file.durable, *end, length_kept);
                lose_write(&mut file.durable, *start, *end, mood, random, Content::zero);
            }
        }
    }
    file.now = file.durable.clone();
}

fn grow(content: &mut Content, end: u64, length_kept: bool) {
    if length_kept && end > content.length() {
        content.set_length(end);
    }
}

/// Lets all, none or some sectors of `[start, end)` through, as far as the file reaches.
fn lose_write(
    content: &mut Content,
    start: u64,
    end: u64,
    mood: Mood,
    random: &Handle,
    put: impl Fn(&mut Content, u64, u64),
) {
    let end = end.min(content.length());
    let fate = match mood {
        Mood::DropAll => return,
        Mood::KeepAll => 0,
        Mood::Mixed => random.random(0..4),
    };
    if start >= end || fate == 1 {
        return;
    }
    if fate == 0 {
        return put(content, start, end);
    }
    // Torn: in a long one most pages are whole or missing, and sectors matter in few of them.
    let grain = if end - start > 64 * PAGE_BYTES { PAGE_BYTES } else { SECTOR_BYTES };
    // A beginning only (power fails in the middle of a sequential write), or any sectors.
    let sectors = (end - start).div_ceil(grain);
    let first_lost = if fate == 2 { random.random(0..sectors + 1) } else { sectors };
    for sector in 0..first_lost {
        let from = start + sector * grain;
        if fate == 2 || random.one_in(2) {
            put(content, from, end.min(from + grain));
        }
    }
}
