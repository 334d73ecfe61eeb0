//! Small disks for the nodes: ext4 on a loop device each, that can be filled up, slowed down and frozen.
//!
//! Owns: the mounts, in a mount namespace of the calling thread, so that they go with the last process in it. Needs root
//! and loop devices; without them a node has a plain directory and these faults are left out.
//! A slow disk is one that is frozen (`fsfreeze`) nine tenths of the time: that works on every kernel, unlike dm-delay
//! and the block throttling of cgroups, and stalls writes and syncs just as a failing disk does, in bursts.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Size of a disk. The image is sparse: what is not written takes nothing.
const DISK_BYTES: u64 = 2 << 30;
/// A slow disk stands still for so long,
const FROZEN: Duration = Duration::from_millis(180);
/// and then works for so long.
const THAWED: Duration = Duration::from_millis(20);

/// Moves the calling thread, and whatever it starts from now on, into a mount namespace of its own.
pub(crate) fn separate_mounts() -> io::Result<()> {
    // SAFETY: no memory is involved. The thread alone changes its mount namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    run("mount", &["--make-rprivate".as_ref(), "/".as_ref()])
}

/// Where a node keeps its data.
pub(crate) struct NodeDisk {
    path: PathBuf,
    is_mounted: bool,
    slowing: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl NodeDisk {
    /// A disk below `dir`, or a plain directory if there are no loop devices.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let path = dir.join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        let image = dir.join(format!("{name}.ext4"));
        let is_mounted = Self::mount(&image, &path).is_ok();
        Self { path, is_mounted, slowing: None }
    }

    fn mount(image: &Path, path: &Path) -> io::Result<()> {
        File::create(image)?.set_len(DISK_BYTES)?;
        let options = ["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-J", "size=16"];
        let mut all: Vec<&Path> = options.iter().map(Path::new).collect();
        all.push(image);
        run("mkfs.ext4", &all)?;
        run("mount", &["-o".as_ref(), "loop".as_ref(), image, path])
    }

    /// Whether it can be filled, slowed down and frozen.
    pub(crate) fn is_own(&self) -> bool {
        self.is_mounted
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Takes all free space.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a file to fill the disk with");
        let free = fs4::available_space(&self.path).expect("it is a file system");
        // Reserving is enough, and quick; what is left goes in small pieces.
        // SAFETY: no memory is involved; the descriptor is open.
        let reserved = unsafe {
            use std::os::fd::AsRawFd;
            libc::fallocate(file.as_raw_fd(), 0, 0, libc::off_t::try_from(free).expect("small"))
        };
        if reserved != 0 {
            while file.write_all(&[0; 64 << 10]).is_ok() {}
        }
    }

    /// Gives back what `fill` took.
    pub(crate) fn empty(&self) {
        // It may not be there.
        let _ = std::fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Stands still most of the time, until [`NodeDisk::speed_up`].
    pub(crate) fn slow_down(&mut self) {
        if self.slowing.is_some() {
            return;
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, path) = (is_over.clone(), self.path.clone());
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let _ = run("fsfreeze", &["-f".as_ref(), &path]);
                std::thread::sleep(FROZEN);
                let _ = run("fsfreeze", &["-u".as_ref(), &path]);
                std::thread::sleep(THAWED);
            }
        });
        self.slowing = Some((is_over, thread));
    }

    /// Works as it should.
    pub(crate) fn speed_up(&mut self) {
        if let Some((is_over, thread)) = self.slowing.take() {
            is_over.store(true, Ordering::Relaxed);
            thread.join().expect("it does not panic");
        }
    }
}

impl Drop for NodeDisk {
    fn drop(&mut self) {
        self.speed_up();
        if self.is_mounted {
            // Lazily: a node that is about to end may still hold it.
            let _ = run("umount", &["-l".as_ref(), &self.path]);
        }
    }
}

fn run(program: &str, arguments: &[&Path]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&output.stderr))))
}
