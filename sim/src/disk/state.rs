//! What a simulated machine has stored: names and bytes, each as seen now and as a power loss would leave them.
//!
//! Owns: the effect of every completed operation ([`State::apply`]), and which of them are durable.
//! Invariant: `durable` with all `changes` applied in order gives what is seen now, but for changes that a
//! failed sync has lost.
//! Not here: time, order of completion, injected faults (`mod.rs`), what a crash keeps (`crash.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use corelog_engine::buffer::DmaSlice;
use corelog_engine::disk::{DirEntry, OpenMode};

use super::content::{Content, PAGE_BYTES};
use super::fault::ENOSPC;

/// Number of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) u64);

pub(super) const ROOT: NodeId = NodeId(0);

#[derive(Clone)]
pub(super) struct State {
    pub(super) nodes: BTreeMap<NodeId, Node>,
    next_node: u64,
    /// Counts completed changes and started syncs, so that a sync knows what it covers.
    next_change: u64,
    /// Bytes that files may take; `None` is no limit.
    pub(super) capacity_bytes: Option<u64>,
}

#[derive(Clone)]
pub(super) enum Node {
    File(FileNode),
    Dir(DirNode),
}

#[derive(Clone, Default)]
pub(super) struct FileNode {
    pub(super) now: Content,
    pub(super) durable: Content,
    pub(super) changes: Vec<FileChange>,
    /// Open handles; a file without names lives on while it is open.
    pub(super) open: u64,
}

#[derive(Clone)]
pub(super) struct FileChange {
    number: u64,
    pub(super) edit: Edit,
}

#[derive(Clone)]
pub(super) enum Edit {
    Write { position: u64, bytes: Rc<[u8]> },
    Zero { start: u64, end: u64 },
    SetLength(u64),
}

#[derive(Clone, Default)]
pub(super) struct DirNode {
    pub(super) now: BTreeMap<String, NodeId>,
    pub(super) durable: BTreeMap<String, NodeId>,
    pub(super) changes: Vec<NameChange>,
}

#[derive(Clone)]
pub(super) struct NameChange {
    /// Changes of one operation share it: in one directory they survive together or not at all.
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) to: Option<NodeId>,
    /// The other half in another directory becomes durable together with this one: a directory never has two
    /// names, not even after a crash.
    whole: bool,
}

/// An operation that the disk has been asked for.
pub(super) enum Effect {
    Open { path: PathBuf, mode: OpenMode, truncate: bool },
    Rename { from: PathBuf, to: PathBuf },
    RemoveFile { path: PathBuf },
    RemoveDir { path: PathBuf },
    MakeDir { path: PathBuf },
    SyncDir { path: PathBuf, before: u64 },
    List { path: PathBuf },
    Write { node: NodeId, position: u64, slices: Vec<DmaSlice> },
    WriteBytes { node: NodeId, bytes: Vec<u8> },
    Read { node: NodeId, position: u64, length: u64 },
    Sync { node: NodeId, before: u64 },
    Zero { node: NodeId, start: u64, end: u64 },
    SetLength { node: NodeId, length: u64 },
}

impl Effect {
    /// The open file that it works on, which must not go away before it.
    pub(super) fn node(&self) -> Option<NodeId> {
        match self {
            Effect::Write { node, .. }
            | Effect::WriteBytes { node, .. }
            | Effect::Read { node, .. }
            | Effect::Sync { node, .. }
            | Effect::Zero { node, .. }
            | Effect::SetLength { node, .. } => Some(*node),
            Effect::Open { .. }
            | Effect::Rename { .. }
            | Effect::RemoveFile { .. }
            | Effect::RemoveDir { .. }
            | Effect::MakeDir { .. }
            | Effect::SyncDir { .. }
            | Effect::List { .. } => None,
        }
    }
}

/// What an operation answers.
pub(super) enum Answer {
    Nothing,
    Node(NodeId),
    Bytes(Vec<u8>),
    Entries(Vec<DirEntry>),
}

impl State {
    pub(super) fn new(capacity_bytes: Option<u64>) -> Self {
        let root = BTreeMap::from([(ROOT, Node::Dir(DirNode::default()))]);
        Self { nodes: root, next_node: 1, next_change: 0, capacity_bytes }
    }

    /// The number that a sync starting now covers all changes below.
    pub(super) fn number(&mut self) -> u64 {
        self.next_change += 1;
        self.next_change
    }

    /// Does the operation.
    pub(super) fn apply(&mut self, effect: &Effect) -> io::Result<Answer> {
        match effect {
            Effect::Open { path, mode, truncate } => self.open(path, *mode, *truncate).map(Answer::Node),
            Effect::Rename { from, to } => self.rename(from, to).map(|()| Answer::Nothing),
            Effect::RemoveFile { path } => self.remove(path, false).map(|()| Answer::Nothing),
            Effect::RemoveDir { path } => self.remove(path, true).map(|()| Answer::Nothing),
            Effect::MakeDir { path } => self.make_dir(path).map(|()| Answer::Nothing),
            Effect::SyncDir { path, before } => self.sync_dir(path, *before).map(|()| Answer::Nothing),
            Effect::List { path } => self.list(path).map(Answer::Entries),
            Effect::Write { node, position, slices } => {
                let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                self.write(*node, *position, bytes).map(|()| Answer::Nothing)
            }
            Effect::WriteBytes { node, bytes } => {
                self.write(*node, 0, bytes.clone()).map(|()| Answer::Nothing)
            }
            Effect::Read { node, position, length } => {
                Ok(Answer::Bytes(self.file(*node).now.read(*position, *length)))
            }
            Effect::Sync { node, before } => {
                self.file_mut(*node).make_durable(*before);
                Ok(Answer::Nothing)
            }
            Effect::Zero { node, start, end } => {
                self.charge(*node, *start, *end)?;
                if start == end {
                    return Ok(Answer::Nothing);
                }
                self.edit(*node, Edit::Zero { start: *start, end: *end });
                Ok(Answer::Nothing)
            }
            Effect::SetLength { node, length } => {
                self.edit(*node, Edit::SetLength(*length));
                Ok(Answer::Nothing)
            }
        }
    }

    pub(super) fn file(&self, node: NodeId) -> &FileNode {
        match self.nodes.get(&node) {
            Some(Node::File(file)) => file,
            _ => unreachable!("an open file stays as long as it is open"),
        }
    }

    pub(super) fn file_mut(&mut self, node: NodeId) -> &mut FileNode {
        match self.nodes.get_mut(&node) {
            Some(Node::File(file)) => file,
            _ => unreachable!("an open file stays as long as it is open"),
        }
    }

    fn dir_mut(&mut self, node: NodeId) -> &mut DirNode {
        match self.nodes.get_mut(&node) {
            Some(Node::Dir(dir)) => dir,
            _ => unreachable!("a directory that was just looked up"),
        }
    }

    /// Writes what fits; the rest fails with `StorageFull`, as a real disk does.
    fn write(&mut self, node: NodeId, position: u64, mut bytes: Vec<u8>) -> io::Result<()> {
        let end = position + bytes.len() as u64;
        let result = self.charge(node, position, end);
        if result.is_err() {
            // A prefix of whole pages may have gone through before space ran out.
            bytes.truncate((bytes.len() as u64 / 2 / PAGE_BYTES * PAGE_BYTES) as usize);
            if self.charge(node, position, position + bytes.len() as u64).is_err() {
                return result;
            }
        }
        if !bytes.is_empty() {
            self.edit(node, Edit::Write { position, bytes: bytes.into() });
        }
        result
    }

    fn edit(&mut self, node: NodeId, edit: Edit) {
        let number = self.number();
        let file = self.file_mut(node);
        edit.apply_to(&mut file.now);
        file.changes.push(FileChange { number, edit });
    }

    /// Whether `[start, end)` of a file fits the space that is left.
    fn charge(&self, node: NodeId, start: u64, end: u64) -> io::Result<()> {
        let wanted = self.file(node).now.pages_missing(start, end) * PAGE_BYTES;
        if wanted > 0 && wanted > self.free_bytes() {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        Ok(())
    }

    pub(super) fn free_bytes(&self) -> u64 {
        let Some(capacity_bytes) = self.capacity_bytes else { return u64::MAX / 2 };
        let linked = self.reachable(|dir| dir.now.values().copied().collect());
        let used: u64 = self
            .nodes
            .iter()
            .filter_map(|(id, node)| match node {
                Node::File(file) if file.open > 0 || linked.contains(id) => Some(file.now.pages()),
                _ => None,
            })
            .sum();
        capacity_bytes.saturating_sub(used * PAGE_BYTES)
    }

    /// All nodes that the names lead to.
    pub(super) fn reachable(&self, names: impl Fn(&DirNode) -> Vec<NodeId>) -> BTreeSet<NodeId> {
        let mut seen = BTreeSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(id) = open.pop() {
            let Some(Node::Dir(dir)) = self.nodes.get(&id) else { continue };
            open.extend(names(dir).into_iter().filter(|inner| seen.insert(*inner)));
        }
        seen
    }

    /// Forgets what has neither name nor handle, now or after a power loss.
    pub(super) fn sweep(&mut self) {
        let alive = self.reachable(|dir| {
            let pending = dir.changes.iter().filter_map(|change| change.to);
            dir.now.values().chain(dir.durable.values()).copied().chain(pending).collect()
        });
        self.nodes.retain(|id, node| alive.contains(id) || matches!(node, Node::File(file) if file.open > 0));
    }
}

/// Names.
impl State {
    /// The node at a path, as seen now.
    pub(super) fn look_up(&self, path: &Path) -> io::Result<NodeId> {
        let mut at = ROOT;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let name = name.to_str().ok_or(ErrorKind::InvalidInput)?;
            let Some(Node::Dir(dir)) = self.nodes.get(&at) else {
                return Err(ErrorKind::NotADirectory.into());
            };
            at = *dir.now.get(name).ok_or(ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    /// All files that have a name, sorted.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, id)) = open.pop() {
            let Some(Node::Dir(dir)) = self.nodes.get(&id) else { continue };
            for (name, inner) in &dir.now {
                match self.nodes.get(inner) {
                    Some(Node::Dir(_)) => open.push((path.join(name), *inner)),
                    Some(Node::File(_)) => found.push(path.join(name)),
                    None => {}
                }
            }
        }
        found.sort();
        found
    }

    /// The directory that holds the last name of a path, and that name.
    fn look_up_parent(&self, path: &Path) -> io::Result<(NodeId, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(ErrorKind::InvalidInput)?;
        let dir = self.look_up(path.parent().unwrap_or(Path::new("")))?;
        match self.nodes.get(&dir) {
            Some(Node::Dir(_)) => Ok((dir, name.to_owned())),
            _ => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn new_node(&mut self, node: Node) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        self.nodes.insert(id, node);
        id
    }

    fn change_name(&mut self, dir: NodeId, number: u64, name: String, to: Option<NodeId>, whole: bool) {
        let dir = self.dir_mut(dir);
        match to {
            Some(node) => dir.now.insert(name.clone(), node),
            None => dir.now.remove(&name),
        };
        dir.changes.push(NameChange { number, name, to, whole });
    }

    /// The node, opened: the caller closes it with [`State::close`].
    fn open(&mut self, path: &Path, mode: OpenMode, truncate: bool) -> io::Result<NodeId> {
        let node = match (self.look_up(path), mode) {
            (Ok(_), OpenMode::CreateNew) if !truncate => return Err(ErrorKind::AlreadyExists.into()),
            (Err(error), OpenMode::CreateNew) if error.kind() == ErrorKind::NotFound => {
                let (dir, name) = self.look_up_parent(path)?;
                let node = self.new_node(Node::File(FileNode::default()));
                let number = self.number();
                self.change_name(dir, number, name, Some(node), false);
                node
            }
            (found, _) => found?,
        };
        match self.nodes.get_mut(&node) {
            Some(Node::File(file)) => file.open += 1,
            _ => return Err(ErrorKind::IsADirectory.into()),
        }
        if truncate {
            self.edit(node, Edit::SetLength(0));
        }
        Ok(node)
    }

    pub(super) fn close(&mut self, node: NodeId) {
        let file = self.file_mut(node);
        assert!(file.open > 0, "closed more often than opened");
        file.open -= 1;
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.look_up(from)?;
        let (from_dir, from_name) = self.look_up_parent(from)?;
        let (to_dir, to_name) = self.look_up_parent(to)?;
        let is_dir = matches!(self.nodes.get(&node), Some(Node::Dir(_)));
        match self.look_up(to).ok().and_then(|there| Some((there, self.nodes.get(&there)?))) {
            Some((there, _)) if there == node => return Ok(()),
            Some((_, Node::Dir(dir))) if !is_dir || !dir.now.is_empty() => {
                return Err(ErrorKind::DirectoryNotEmpty.into());
            }
            Some((_, Node::File(_))) if is_dir => return Err(ErrorKind::NotADirectory.into()),
            _ => {}
        }
        let number = self.number();
        self.change_name(from_dir, number, from_name, None, is_dir);
        self.change_name(to_dir, number, to_name, Some(node), is_dir);
        Ok(())
    }

    fn remove(&mut self, path: &Path, directory: bool) -> io::Result<()> {
        match (self.nodes.get(&self.look_up(path)?), directory) {
            (Some(Node::Dir(_)), false) => return Err(ErrorKind::IsADirectory.into()),
            (Some(Node::File(_)), true) => return Err(ErrorKind::NotADirectory.into()),
            (Some(Node::Dir(dir)), true) if !dir.now.is_empty() => {
                return Err(ErrorKind::DirectoryNotEmpty.into());
            }
            _ => {}
        }
        let (dir, name) = self.look_up_parent(path)?;
        let number = self.number();
        self.change_name(dir, number, name, None, false);
        Ok(())
    }

    fn make_dir(&mut self, path: &Path) -> io::Result<()> {
        match self.look_up(path) {
            Ok(node) if matches!(self.nodes.get(&node), Some(Node::Dir(_))) => return Ok(()),
            Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        let (dir, name) = self.look_up_parent(path)?;
        let node = self.new_node(Node::Dir(DirNode::default()));
        let number = self.number();
        self.change_name(dir, number, name, Some(node), false);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let Some(Node::Dir(dir)) = self.nodes.get(&self.look_up(path)?) else {
            return Err(ErrorKind::NotADirectory.into());
        };
        let is_dir = |node| matches!(self.nodes.get(node), Some(Node::Dir(_)));
        Ok(dir.now.iter().map(|(name, node)| DirEntry { name: name.clone(), is_dir: is_dir(node) }).collect())
    }

    fn sync_dir(&mut self, path: &Path, before: u64) -> io::Result<()> {
        let id = self.look_up(path)?;
        let Some(Node::Dir(dir)) = self.nodes.get_mut(&id) else {
            return Err(ErrorKind::NotADirectory.into());
        };
        let whole: BTreeSet<u64> = dir
            .changes
            .iter()
            .filter(|change| change.whole && change.number < before)
            .map(|change| change.number)
            .collect();
        dir.make_durable(|change| change.number < before);
        for node in self.nodes.values_mut() {
            if let Node::Dir(other) = node {
                other.make_durable(|change| whole.contains(&change.number));
            }
        }
        self.sweep();
        Ok(())
    }
}

impl FileNode {
    /// Makes durable what was completed before a sync started.
    fn make_durable(&mut self, before: u64) {
        let later = self.changes.partition_point(|change| change.number < before);
        for change in self.changes.drain(..later) {
            change.edit.apply_to(&mut self.durable);
        }
    }

    /// What a failed sync does: each change that it covered is on the medium or lost for good, and no later
    /// sync tries again, though reads still see it.
    pub(super) fn lose_changes(&mut self, before: u64, mut is_kept: impl FnMut() -> bool) {
        let later = self.changes.partition_point(|change| change.number < before);
        for change in self.changes.drain(..later) {
            if is_kept() {
                change.edit.apply_to(&mut self.durable);
            }
        }
    }
}

impl DirNode {
    /// Makes the chosen changes durable, in their order.
    pub(super) fn make_durable(&mut self, is_chosen: impl Fn(&NameChange) -> bool) {
        let (chosen, rest) =
            std::mem::take(&mut self.changes).into_iter().partition(|change| is_chosen(change));
        self.changes = rest;
        let chosen: Vec<NameChange> = chosen;
        for change in chosen {
            match change.to {
                Some(node) => self.durable.insert(change.name, node),
                None => self.durable.remove(&change.name),
            };
        }
    }
}

impl Edit {
    pub(super) fn apply_to(&self, content: &mut Content) {
        match self {
            Edit::Write { position, bytes } => content.write(*position, bytes),
            Edit::Zero { start, end } => content.zero(*start, *end),
            Edit::SetLength(length) => content.set_length(*length),
        }
    }
}
