//! The tuning files against a made-up host: what is refused, what is warned about, and that the examples fit.

use super::*;
use crate::{Cores, Memory, Ring};

fn host() -> Host {
    Host {
        kernel: "6.18.0".into(),
        cores: Cores { allowed: vec![0, 1, 2, 3], quota: None },
        memory: Memory {
            total_bytes: 8 << 30,
            available_bytes: 0,
            limit_bytes: None,
            locked_bytes_max: 8 << 20,
        },
        ring: Ring { refused: None, lacking: vec![] },
        open_files_max: 1 << 20,
    }
}

fn disk_info(device: &str) -> DiskInfo {
    DiskInfo {
        file_system: "ext4".into(),
        device: device.into(),
        block_bytes: 4096,
        logical_block_bytes: Some(512),
        total_bytes: 1 << 40,
        free_bytes: 1 << 39,
    }
}

fn load_cores(text: &str) -> Result<CoresFile, TuningError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("cores.toml");
    fs::write(&path, text).expect("the directory takes a file");
    CoresFile::load(&path, &host())
}

fn load_disk(text: &str) -> Result<DiskFile, TuningError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("disk.toml");
    fs::write(&path, text).expect("the directory takes a file");
    DiskFile::load(&path)
}

#[test]
fn the_examples_in_the_source_tree_are_read() {
    let cores: CoresFile = toml::from_str(include_str!("../../cores.toml")).expect("the example is sound");
    assert_eq!(cores.data, [0, 1, 2]);
    assert!(cores.control.is_some() && cores.memory_bytes_per_core.is_some() && cores.measured.is_some());
    let disk: DiskFile = toml::from_str(include_str!("../../disk.toml")).expect("the example is sound");
    assert!(disk.of(Path::new("/var/lib/corelog")).is_some_and(|disk| disk.measured.is_some()));
    assert_eq!(disk.faults(), Vec::<String>::new());
}

#[test]
fn an_empty_file_keeps_every_default() {
    assert_eq!(load_cores("").expect("it is sound"), CoresFile::default());
    assert_eq!(load_disk("").expect("it is sound"), DiskFile::default());
}

#[test]
fn an_unknown_key_is_an_error_that_names_the_known_ones() {
    let error = load_cores("dato = [1]").expect_err("there is no such key").to_string();
    assert!(error.contains("dato") && error.contains("`data`"), "{error}");
    let error = load_disk("[[disk]]\ndir = \"d\"\ndepth = 1").expect_err("there is no such key").to_string();
    assert!(error.contains("depth") && error.contains("commit_depth_max"), "{error}");
}

#[test]
fn all_faults_are_told_at_once() {
    let error = load_cores("data = [1, 1, 9]\nmemory_bytes_per_core = 1").expect_err("three faults");
    assert!(matches!(&error, TuningError::Values { faults, .. } if faults.len() == 3), "{error}");
    let text =
        "[[disk]]\ndir = \"d\"\ncommit_depth_max = 0\n[[disk]]\ndir = \"d\"\ncold_read_depth_max = 4096";
    let error = load_disk(text).expect_err("three faults");
    assert!(matches!(&error, TuningError::Values { faults, .. } if faults.len() == 3), "{error}");
}

#[test]
fn a_missing_file_names_its_path() {
    let error = DiskFile::load(Path::new("no/such/disk.toml")).expect_err("it is not there").to_string();
    assert!(error.contains("no/such/disk.toml"), "{error}");
}

#[test]
fn another_host_is_warned_about() {
    let text = "data = [0, 1]\ncontrol = 1\nmemory_bytes_per_core = 4294967296\n\
                [measured]\ndate = \"2026-01-01\"\nkernel = \"5.15\"\ncores = 8";
    let warnings = load_cores(text).expect("it is sound").warnings(&host());
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    let same = "data = [0]\ncontrol = 3\n[measured]\ndate = \"2026-01-01\"\nkernel = \"6.18.0\"\ncores = 4";
    assert_eq!(load_cores(same).expect("it is sound").warnings(&host()), []);
}

#[test]
fn another_disk_is_warned_about() {
    let text = "[[disk]]\ndir = \"a\"\n[disk.measured]\ndate = \"2026-01-01\"\ndevice = \"/dev/sda\"\n\
                file_system = \"ext4\"\n[[disk]]\ndir = \"gone\"";
    let file = load_disk(text).expect("it is sound");
    let warnings = file.warnings(&[("a".into(), disk_info("/dev/sdb"))]);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].0.contains("/dev/sda") && warnings[1].0.contains("gone"), "{warnings:?}");
    assert_eq!(file.warnings(&[("a".into(), disk_info("/dev/sda")), ("gone".into(), disk_info("x"))]), []);
}
