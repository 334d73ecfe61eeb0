//! `corelog inspect` on files made here: sound logs, damaged ones, torn ends.
//!
//! Must never happen: damage that is not told with file, position and offset; a torn end of an active segment told
//! as damage.

mod cli;

use std::path::{Path, PathBuf};

use cli::run;
use corelog_engine::batch::{BatchBuilder, BatchFields, NewRecord, Stamp, stamp};
use corelog_engine::checkpoint::{self, EpochTable, LogCheckpoint};
use corelog_engine::{LeaderEpoch, LogId, Offset, TimestampMs};

fn batch(base: u64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 20);
    for i in 0..10 {
        let value = format!("value {:02}", base + i);
        let timestamp = TimestampMs(1_000);
        let record = NewRecord { key: Some(b"k"), value: Some(value.as_bytes()), timestamp, headers: &[] };
        builder.push(&record).expect("fits");
    }
    let mut bytes = builder.finish(&BatchFields::default()).expect("has records");
    let leader_epoch = LeaderEpoch(3);
    stamp(&mut bytes, Stamp { base_offset: Offset(base), leader_epoch, append_time: None });
    bytes
}

/// A data directory with one log of two segments, 50 records each; the second one written ahead.
struct Data {
    dir: tempfile::TempDir,
}

impl Data {
    fn make() -> Self {
        let data = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        let log = data.log();
        std::fs::create_dir_all(&log).expect("made");
        std::fs::write(log.join(segment_name(0)), batches(0)).expect("written");
        let mut active = batches(50);
        active.resize(active.len() + 8192, 0);
        std::fs::write(log.join(segment_name(50)), active).expect("written");
        data
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("topics").join("orders-0a1b2c3d").join("0")
    }

    fn segment(&self, base: u64) -> PathBuf {
        self.log().join(segment_name(base))
    }

    fn change(&self, base: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.segment(base);
        let mut bytes = std::fs::read(&path).expect("read");
        change(&mut bytes);
        std::fs::write(&path, bytes).expect("written");
    }
}

fn segment_name(base: u64) -> String {
    format!("{base:020}.log")
}

fn batches(base: u64) -> Vec<u8> {
    (0..5).flat_map(|i| batch(base + 10 * i)).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn a_sound_directory_is_counted_at_every_level() {
    let data = Data::make();
    for path in [data.dir.path(), &data.log()] {
        let found = run(&["inspect", text(path), "--json"]).json();
        let total = &found["total"];
        assert_eq!((&total["records"], &total["damages"]), (&100.into(), &0.into()), "{found}");
        let segments = &found["logs"][0]["segments"];
        assert_eq!(segments[1]["tail"], "written_ahead");
        assert_eq!(segments[1]["next_offset"], 100);
        assert_eq!(segments[0]["leader_epoch"], 3);
    }
    let shown = run(&["inspect", text(data.dir.path())]).exits(0);
    assert!(shown.contains("[50, 100)") && shown.contains("8.2 kB written ahead"), "{shown}");
    assert!(shown.contains("all sound"), "{shown}");
}

#[test]
fn batches_and_records_are_listed() {
    let data = Data::make();
    let segment = data.segment(0);
    let shown = run(&["inspect", text(&segment), "--batches"]).exits(0);
    assert_eq!(shown.lines().filter(|line| line.contains("none")).count(), 5, "{shown}");
    let records = run(&["inspect", text(&segment), "--records"]).exits(0);
    assert_eq!(records.lines().count(), 50);
    let last: serde_json::Value = serde_json::from_str(records.lines().last().expect("lines")).expect("JSON");
    assert_eq!((&last["offset"], &last["value"]), (&49.into(), &"value 49".into()));
    assert_eq!((&last["topic"], &last["partition"]), (&"orders-0a1b2c3d".into(), &0.into()));
}

#[test]
fn damage_is_told_with_file_position_and_offset() {
    let data = Data::make();
    let size = batch(0).len();
    data.change(0, |bytes| bytes[2 * size + 100] ^= 8);
    let name = segment_name(0);
    let ran = run(&["inspect", text(data.dir.path())]);
    let place = format!("byte {} offset 20", 2 * size);
    let (code, shown) = (ran.code, ran.stdout);
    assert_eq!(code, 6, "{shown}");
    let line = shown.lines().find(|line| line.starts_with("DAMAGE")).expect("a line for it");
    for part in [&name, &place, "checksum", "offset 30: 10 offsets lost"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let json = run(&["inspect", text(data.dir.path()), "--json"]);
    assert_eq!(json.code, 6);
    let found: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(found["logs"][0]["segments"][0]["damages"][0]["position"], 2 * size as u64);
}

#[test]
fn a_missing_segment_is_a_gap_and_a_torn_active_end_is_none() {
    let data = Data::make();
    let size = batch(0).len();
    data.change(50, |bytes| bytes[5 * size - 20..].fill(0));
    let shown = run(&["inspect", text(&data.log())]).exits(0);
    assert!(shown.contains("torn"), "{shown}");
    data.change(0, |bytes| bytes.truncate(3 * size));
    run(&["inspect", text(&data.log())]).fails(6, &["1 damages found"]);
    let shown = run(&["inspect", text(&data.log()), "--quiet"]).stdout;
    assert!(shown.contains("the next segment begins at offset 50"), "{shown}");
}

#[test]
fn an_exported_segment_ends_with_its_last_batch() {
    let data = Data::make();
    let target = data.dir.path().join("trimmed.log");
    let segment = data.segment(50);
    let args = ["inspect", text(&segment), "--export", text(&target)];
    run(&args).exits(0);
    assert_eq!(std::fs::read(&target).expect("made"), batches(50));
    run(&args).fails(2, &["trimmed.log", "exists"]);
    run(&["inspect", text(&data.log()), "--export", "x"]).fails(2, &["one segment file"]);
}

#[test]
fn lost_and_damaged_side_files_are_notes() {
    let data = Data::make();
    std::fs::write(data.log().join("00000000000000000000.index"), [1, 2, 3]).expect("written");
    std::fs::write(data.log().join("log.checkpoint"), "garbage").expect("written");
    let shown = run(&["inspect", text(&data.log())]).exits(0);
    assert_eq!(shown.lines().filter(|line| line.contains("note:")).count(), 2, "{shown}");
}

#[test]
fn closed_is_what_checkpoint_last_segment_and_marker_agree_on() {
    let data = Data::make();
    let checkpoint = LogCheckpoint {
        log_id: LogId(7),
        log_start_offset: Offset(0),
        recovery_point: Offset(100),
        segment_base_offset: Offset(50),
        segment_position: batches(50).len() as u64,
        clean: true,
        boot_id: None,
        epochs: EpochTable::default(),
    };
    std::fs::write(data.log().join("log.checkpoint"), checkpoint::encode(&checkpoint)).expect("written");
    let log = data.log();
    let state_is = |state: &str, path: &Path| {
        let shown = run(&["inspect", text(path)]).exits(0);
        assert!(shown.contains(&format!("  {state}  starts at 0")), "{state} in {shown}");
        let json = run(&["inspect", text(path), "--json"]).json();
        assert_eq!(json["logs"][0]["closed"], state == "closed", "{json}");
    };
    let marker = data.dir.path().join("clean");
    std::fs::write(&marker, "clean\n").expect("written");
    state_is("not closed", data.dir.path());
    data.change(50, |bytes| bytes.truncate(batches(50).len()));
    state_is("closed", data.dir.path());
    state_is("closed", &log);
    std::fs::remove_file(&marker).expect("removed");
    state_is("not closed", data.dir.path());
    state_is("not closed", &log);
}

#[test]
fn a_newer_data_directory_is_refused_at_every_level() {
    let data = Data::make();
    std::fs::write(data.dir.path().join("corelog.json"), r#"{"format": 99, "logs": []}"#).expect("written");
    for path in [data.dir.path(), &data.log(), &data.segment(0)] {
        run(&["inspect", text(path)]).fails(2, &["has format 99", "run the newer version"]);
    }
    std::fs::write(data.dir.path().join("corelog.json"), "garbage").expect("written");
    run(&["inspect", text(data.dir.path())]).exits(0);
}
