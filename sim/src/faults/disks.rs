//! Disks that fail, fill up, slow down, forget or rot.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Faults;
use crate::cluster::{Node, log_directory};
use crate::disk::{Fault, FaultEffect, FaultKind, SimDisk};

impl Faults {
    fn any_disk(&self, node: &Rc<Node>) -> SimDisk {
        let disks = node.disks();
        disks[self.handle.random(0..disks.len() as u64) as usize].clone()
    }

    pub(super) async fn disk_error(&self) -> bool {
        let node = self.any_node();
        let kind = if self.handle.one_in(2) { FaultKind::Sync } else { FaultKind::Write };
        let count = self.handle.random(1..20);
        self.any_disk(&node).inject(Fault::eio(kind, "/topics").at(count));
        self.pause(1_000, 4_000).await;
        // What has failed stays failed until the process is started anew, as an operator would.
        for disk in node.disks() {
            disk.heal();
        }
        self.kill(&node).await;
        true
    }

    pub(super) async fn disk_full(&self) -> bool {
        let node = self.any_node();
        for disk in node.disks() {
            disk.set_capacity_bytes(Some(0));
        }
        self.pause(500, 5_000).await;
        for disk in node.disks() {
            disk.set_capacity_bytes(None);
        }
        true
    }

    pub(super) async fn slow_disk(&self) -> bool {
        let node = if self.handle.one_in(2) {
            self.any_node()
        } else {
            self.any_leader().unwrap_or_else(|| self.any_node())
        };
        let disk = self.any_disk(&node);
        let us = self.handle.random(5_000..600_000);
        for kind in [FaultKind::Write, FaultKind::Sync] {
            disk.inject(Fault::eio(kind, "").times(u64::MAX).with(FaultEffect::Delay { us }));
        }
        self.hold().await;
        disk.heal();
        true
    }

    /// A disk of the victim is replaced by an empty one, while the others have all.
    pub(super) async fn wipe_disk(&self) -> bool {
        let node = self.cluster.node(self.victim).clone();
        let world = &self.cluster.world;
        if !node.is_up() || !self.others_have_all(node.id) {
            return false;
        }
        node.kill(world);
        // A change of the ISR may be on its way.
        self.pause(200, 500).await;
        if self.others_have_all(node.id) {
            let dir = self.handle.random(0..node.disks().len() as u64) as usize;
            node.replace_disk(world, dir, world.options.disk.clone());
        }
        self.pause(100, 3_000).await;
        node.start(world);
        true
    }

    /// Files of the victim's logs whose names end so.
    fn files(&self, node: &Rc<Node>, suffix: &str) -> Vec<(SimDisk, PathBuf)> {
        let mut found = Vec::new();
        for disk in node.disks() {
            let files = disk
                .files()
                .into_iter()
                .filter(|path| path.starts_with("/topics") && path.to_string_lossy().ends_with(suffix));
            found.extend(files.map(|path| (disk.clone(), path)));
        }
        found
    }

    /// A bit flips in a closed segment of the victim, all of which is committed and in sync elsewhere.
    pub(super) async fn bit_rot(&self) -> bool {
        let node = self.cluster.node(self.victim).clone();
        if !self.others_have_all(node.id) {
            return false;
        }
        let Some(process) = node.process() else { return false };
        let mut closed = Vec::new();
        for (partition, disk) in process.partitions_with_disks() {
            let high_watermark = partition.high_watermark().0;
            let dir = log_directory(partition.id(), partition.me().log);
            let mut segments: Vec<PathBuf> =
                disk.files().into_iter().filter(|path| path.starts_with(&dir) && is_segment(path)).collect();
            segments.sort();
            let pairs = segments
                .windows(2)
                .filter(|pair| base_of(&pair[1]).is_some_and(|next| next <= high_watermark));
            closed.extend(pairs.map(|pair| (disk.clone(), pair[0].clone())));
        }
        if closed.is_empty() {
            return false;
        }
        let (disk, path) = &closed[self.handle.random(0..closed.len() as u64) as usize];
        let length = disk.peek(path).len() as u64;
        if length == 0 {
            return false;
        }
        disk.rot(path, self.handle.random(0..length), 1 << self.handle.random(0..8));
        self.pause(500, 3_000).await;
        true
    }

    /// Indexes of a node are damaged while it is down.
    pub(super) async fn index_damage(&self) -> bool {
        let node = self.any_node();
        node.kill(&self.cluster.world);
        let indexes: Vec<(SimDisk, PathBuf)> = self
            .files(&node, "index")
            .into_iter()
            .filter(|(disk, path)| !disk.peek(path).is_empty())
            .collect();
        for (disk, path) in &indexes {
            let length = disk.peek(path).len() as u64;
            let at = self.handle.random(0..length);
            if self.handle.one_in(2) {
                disk.rot(path, at, 0xff);
            } else {
                disk.cut(path, at);
            }
        }
        self.pause(50, 1_000).await;
        node.start(&self.cluster.world);
        !indexes.is_empty()
    }

    /// The victim loses its power, and garbage stands behind the tails of its logs.
    pub(super) async fn garbage_behind_tail(&self) -> bool {
        let node = self.cluster.node(self.victim).clone();
        let world = &self.cluster.world;
        if !self.others_have_all(node.id) {
            return false;
        }
        node.lose_power(world);
        let mut struck = false;
        // A change of the ISR may be on its way.
        self.pause(200, 500).await;
        if self.others_have_all(node.id) {
            for (disk, path) in self.files(&node, ".log") {
                let bytes = disk.peek(&path);
                // A record may end with a zero, and a sector that holds data stays as it is.
                let tail =
                    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| (at + 2).next_multiple_of(512));
                if self.handle.one_in(2) && tail < bytes.len() {
                    let count = self.handle.random(1..3_000).min((bytes.len() - tail) as u64);
                    let garbage: Vec<u8> = (0..count).map(|_| self.handle.random(0..256) as u8).collect();
                    disk.poke(&path, tail as u64, &garbage);
                    struck = true;
                }
            }
        }
        self.pause(50, 2_000).await;
        node.power_on(world);
        node.start(world);
        struck
    }
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

fn base_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}
