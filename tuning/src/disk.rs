//! What lies below a directory: file system, device, space, and whether direct I/O works there.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::files::Warning;

/// Alignment of the engine's direct I/O.
const BLOCK_BYTES: usize = 4096;

/// A directory's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// File system type, such as `ext4`.
    pub file_system: String,
    /// Device or source of the mount, such as `/dev/vda`.
    pub device: String,
    /// Preferred block size of the file system.
    pub block_bytes: u64,
    /// Smallest unit that the device addresses; `None` if there is no block device.
    pub logical_block_bytes: Option<u64>,
    /// Size of the file system.
    pub total_bytes: u64,
    /// What an ordinary user may still write.
    pub free_bytes: u64,
}

/// Looks at the disk of a directory, which must be there. Writes nothing.
pub fn detect(dir: &Path) -> io::Result<DiskInfo> {
    let dir = fs::canonicalize(dir)?;
    let stat = statvfs(&dir)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let (file_system, device) =
        mount_of(&mounts, &dir.to_string_lossy()).unwrap_or_else(|| ("unknown".into(), "unknown".into()));
    let device_number = fs::metadata(&dir)?.dev();
    let queue = |name: &str| queue_value(device_number, name);
    Ok(DiskInfo {
        file_system,
        device,
        block_bytes: stat.f_bsize,
        logical_block_bytes: queue("logical_block_size"),
        total_bytes: stat.f_blocks * stat.f_frsize,
        free_bytes: stat.f_bavail * stat.f_frsize,
    })
}

impl DiskInfo {
    /// What an operator should know about this disk.
    pub fn warnings(&self, dir: &Path) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut warn = |text: String| warnings.push(Warning(format!("{}: {text}", dir.display())));
        match self.file_system.as_str() {
            "ext4" | "xfs" => {}
            "tmpfs" | "ramfs" => warn("lies in memory, so nothing survives a restart of the machine".into()),
            other => warn(format!("lies on {other}; Corelog is tested on ext4 and xfs")),
        }
        if self.logical_block_bytes.is_some_and(|bytes| bytes > BLOCK_BYTES as u64) {
            warn(format!("the device's blocks are larger than {BLOCK_BYTES} bytes; direct I/O will fail"));
        }
        warnings
    }
}

/// What an operator should know about the disk of a directory, which must be there: what it is, and whether direct I/O
/// works on it. Writes one block, and leaves nothing.
pub fn warnings_of(dir: &Path) -> Vec<Warning> {
    let mut warnings = match detect(dir) {
        Ok(disk) => disk.warnings(dir),
        Err(error) => vec![Warning(format!("{}: {error}", dir.display()))],
    };
    if let Err(error) = probe_direct_io(dir) {
        warnings.push(Warning(format!(
            "{}: a direct write fails ({error}); choose a directory on ext4 or XFS, and look at its free space",
            dir.display()
        )));
    }
    warnings
}

/// Writes one block with direct I/O to an unnamed file in `dir`, which vanishes at once. Errors: direct I/O does not
/// work there (`InvalidInput`), or the directory cannot be written.
pub fn probe_direct_io(dir: &Path) -> io::Result<()> {
    #[repr(align(4096))]
    struct Block([u8; BLOCK_BYTES]);
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | libc::O_DIRECT)
        .mode(0o600)
        .open(dir)?;
    let block = Box::new(Block([0; BLOCK_BYTES]));
    // SAFETY: the block is alive and as long as said for the whole call.
    let written = unsafe { libc::pwrite(file.as_raw_fd(), block.0.as_ptr().cast(), BLOCK_BYTES, 0) };
    match usize::try_from(written) {
        Ok(BLOCK_BYTES) => Ok(()),
        Ok(short) => Err(io::Error::other(format!("a direct write took {short} of {BLOCK_BYTES} bytes"))),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn statvfs(path: &Path) -> io::Result<libc::statvfs> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte, and `stat` is a valid place for the answer.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the kernel has filled it.
    Ok(unsafe { stat.assume_init() })
}

/// A value of the device's request queue; a partition's queue is that of the disk above it.
fn queue_value(device_number: u64, name: &str) -> Option<u64> {
    let device = format!("/sys/dev/block/{}:{}", libc::major(device_number), libc::minor(device_number));
    [format!("{device}/queue/{name}"), format!("{device}/../queue/{name}")]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// File system type and source of the mount that holds `path`: the longest mount point above it, the last if
/// several lie on each other (proc_pid_mountinfo(5)).
fn mount_of(mountinfo: &str, path: &str) -> Option<(String, String)> {
    let mut best: Option<(usize, String, String)> = None;
    for line in mountinfo.lines() {
        let Some((mount, source)) = line.split_once(" - ") else { continue };
        let Some(point) = mount.split(' ').nth(4).map(unescape) else { continue };
        let mut source = source.split(' ');
        let (Some(kind), Some(device)) = (source.next(), source.next()) else { continue };
        let holds = point == "/" || path == point || path.starts_with(&format!("{point}/"));
        if holds && best.as_ref().is_none_or(|(length, ..)| point.len() >= *length) {
            best = Some((point.len(), kind.to_owned(), unescape(device)));
        }
    }
    best.map(|(_, kind, device)| (kind, device))
}

/// Undoes the octal escapes of mount points (space, tab, newline, backslash).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:5 / /proc rw - proc proc rw
23 21 259:1 / /data rw shared:1 - xfs /dev/nvme0n1 rw
24 23 0:40 / /data/fast\\040one rw - tmpfs tmpfs rw
";

    #[test]
    fn the_longest_mount_point_holds_the_path() {
        let table = [
            ("/", "ext4"),
            ("/database", "ext4"),
            ("/data", "xfs"),
            ("/data/topics", "xfs"),
            ("/data/fast one/a", "tmpfs"),
        ];
        for (path, expected) in table {
            assert_eq!(mount_of(MOUNTS, path).expect("root holds all").0, expected, "{path}");
        }
        assert_eq!(mount_of("", "/"), None);
    }

    #[test]
    fn a_real_directory_has_space_and_a_missing_one_an_error() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = detect(dir.path()).expect("it is there");
        assert!(disk.total_bytes >= disk.free_bytes && disk.total_bytes > 0, "{disk:?}");
        assert!(disk.block_bytes >= 512, "{disk:?}");
        let missing = detect(&dir.path().join("missing"));
        assert_eq!(missing.expect_err("it is not there").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_missing_directory_is_told_and_a_fit_one_is_not() {
        // Beside the binary: on a real disk, as `/tmp` may not be.
        let binary = std::env::current_exe().expect("a test knows its binary");
        let dir = tempfile::tempdir_in(binary.parent().expect("it lies in a directory"))
            .expect("a temporary directory");
        if detect(dir.path()).expect("it is there").file_system == "ext4" {
            assert_eq!(warnings_of(dir.path()), []);
        }
        let missing = warnings_of(&dir.path().join("missing"));
        assert!(missing.iter().any(|warning| warning.0.contains("direct write")), "{missing:?}");
    }

    #[test]
    fn the_direct_io_probe_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // A file system without direct I/O says so; what counts here is that neither answer leaves a file.
        let answer = probe_direct_io(dir.path());
        if detect(dir.path()).expect("it is there").file_system == "ext4" {
            answer.expect("ext4 has direct I/O");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn unusual_disks_are_told() {
        let disk = DiskInfo {
            file_system: "tmpfs".into(),
            device: "tmpfs".into(),
            block_bytes: 4096,
            logical_block_bytes: Some(16384),
            total_bytes: 1,
            free_bytes: 1,
        };
        assert_eq!(disk.warnings(Path::new("data")).len(), 2);
        let fit = DiskInfo { file_system: "xfs".into(), logical_block_bytes: Some(512), ..disk };
        assert_eq!(fit.warnings(Path::new("data")), []);
    }
}
