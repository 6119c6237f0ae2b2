//! `tailring log inspect` on real directories: sound ones, torn ones, damaged ones, one in use.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tailring::app::inspect::look;
use tailring::log::{DirLock, RealDisk};
use tailring::model::{Decision, Moment};

use crate::fixture::{Log, Message, SMALL, decision, trace};

fn disk(dir: &Path) -> RealDisk {
    RealDisk {
        dir: dir.to_path_buf(),
    }
}

/// Twelve traces of two fragments each in several segments of two shards: 0 to 2 undecided, 4, 6 and 8
/// kept, 3, 5 and 7 dropped; of trace 4 all is exported, and of trace 6 the first fragment.
fn written(dir: &Path) {
    let (mut log, _, _) = Log::open(disk(dir), SMALL);
    for n in 0..9_u32 {
        let shard = n as usize % 2;
        let one = log.fragment(shard, &Message::of(trace(n.into()), "shop", &["a"], 2, 100));
        let two = log.fragment(
            shard,
            &Message::of(trace(n.into()), "shop", &["a", "b"], 3, 150),
        );
        let writer = &mut log.writers[shard];
        match n {
            0..=2 => {}
            4 => {
                writer.verdict(&decision(n));
                writer.exported(trace(n.into()), &[one.hash, two.hash]);
            }
            6 => {
                // Its verdict went with its segment, and was carried forward.
                let carried: [Decision; 2] = [decision(n), decision(100)];
                writer.checkpoint(&carried);
                writer.exported(trace(n.into()), &[one.hash]);
            }
            _ => {
                writer.verdict(&decision(n));
            }
        }
    }
    log.flush(0).unwrap();
    log.flush(1).unwrap();
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap();
    files
        .map(|file| {
            let file = file.unwrap();
            let name = file.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(file.path()).unwrap())
        })
        .collect()
}

fn tool(dir: &Path, output: &str) -> (i32, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_tailring"))
        .args(["log", "inspect", "--output", output])
        .arg(dir)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        done.status.code().unwrap(),
        text(done.stdout),
        text(done.stderr),
    )
}

#[test]
fn traces_are_told_by_what_became_of_them_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let before = contents(dir.path());
    let (code, text, _) = tool(dir.path(), "json");
    assert_eq!(code, 0);
    assert_eq!(contents(dir.path()), before);

    let found: Value = serde_json::from_str(&text).unwrap();
    let group = |name: &str| {
        let group = &found["traces"][name];
        ["traces", "fragments", "spans"].map(|it| group[it].as_u64().unwrap())
    };
    assert_eq!(group("undecided"), [3, 6, 3 * 8]);
    // Of trace 6 the second fragment is left, of 8 both.
    assert_eq!(group("kept_not_exported"), [2, 3, 6 + 8]);
    assert_eq!(group("kept_exported"), [1, 3, 8 + 2]);
    assert_eq!(group("dropped"), [3, 6, 3 * 8]);
    assert_eq!(found["traces"]["verdicts_only"], 1);

    let files: u64 = before.values().map(|it| it.len() as u64).sum();
    assert_eq!(found["bytes"], files);
    let bytes = |name: &str| found["traces"][name]["bytes"].as_u64().unwrap();
    assert_eq!(
        found["live_bytes"],
        bytes("undecided") + bytes("kept_not_exported")
    );
    let segments = found["segments"].as_array().unwrap();
    assert!(segments.len() > 3);
    let sum = |name: &str| -> u64 { segments.iter().map(|it| it[name].as_u64().unwrap()).sum() };
    assert_eq!(sum("live_bytes"), found["live_bytes"].as_u64().unwrap());
    assert_eq!(
        ["fragments", "verdicts", "exported", "checkpoints", "other"].map(sum),
        [18, 5, 2, 1, 0]
    );
    // Headers once a segment: a resource and one or two scopes.
    assert!(sum("headers") <= 3 * segments.len() as u64);
    assert_eq!(
        (&found["damaged"], &found["torn_tails"]),
        (&0.into(), &0.into())
    );

    let (code, text, _) = tool(dir.path(), "text");
    assert_eq!(code, 0);
    assert!(text.contains("every record checks"), "{text}");
    let row = text.lines().find(|it| it.starts_with("undecided")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[1..4], ["3", "6", "24"], "{text}");
    // Columns stand below each other.
    let table: Vec<&str> = text
        .lines()
        .skip_while(|it| !it.starts_with("segment"))
        .collect();
    assert_eq!(table[0].len(), table[1].len(), "{text}");
}

/// What a start would find in a copy of the dir.
fn start(dir: &Path) -> tailring::log::RecoveryReport {
    let copy = tempfile::tempdir().unwrap();
    for (name, bytes) in contents(dir) {
        std::fs::write(copy.path().join(name), bytes).unwrap();
    }
    Log::open(disk(copy.path()), SMALL).2
}

#[test]
fn torn_and_damaged_segments_are_told_as_a_start_would_count_them() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let sound = contents(dir.path());
    let mut damages = 0;
    let mut tears = 0;
    for (name, bytes) in &sound {
        let path = dir.path().join(name);
        for at in (0..bytes.len()).step_by(31) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            for changed in [flipped, bytes[..at].to_vec()] {
                std::fs::write(&path, &changed).unwrap();
                let expected = start(dir.path());
                let found = look(dir.path()).unwrap();
                assert_eq!(
                    (found.damaged, found.torn_tails),
                    (expected.damaged_records, expected.torn_tails),
                    "{name} at {at}"
                );
                let fragments: u64 = found.segments.iter().map(|it| it.fragments).sum();
                assert_eq!(fragments, expected.fragments, "{name} at {at}");
                let torn: u64 = found
                    .segments
                    .iter()
                    .filter_map(|it| it.torn_tail)
                    .map(|it| u64::from(it.bytes))
                    .sum();
                assert_eq!(torn, expected.torn_bytes, "{name} at {at}");
                assert_eq!(std::fs::read(&path).unwrap(), changed);
                damages += found.damaged;
                tears += found.torn_tails;
            }
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(damages > 100 && tears > 20, "{damages} {tears}");
}

#[test]
fn the_exit_status_tells_torn_from_damaged_from_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let last = contents(dir.path()).into_iter().next_back().unwrap();
    let path = dir.path().join(&last.0);
    let mut torn = last.1.clone();
    torn.extend_from_slice(b"half a rec");
    std::fs::write(&path, &torn).unwrap();
    let (code, text, _) = tool(dir.path(), "text");
    assert_eq!(code, 0, "{text}");
    let place = format!("from {} on, 10 bytes", last.1.len());
    assert!(text.contains(&place), "{text}");

    let first = dir.path().join("0000000001.seg");
    let mut damaged = std::fs::read(&first).unwrap();
    damaged[100] ^= 1;
    std::fs::write(&first, &damaged).unwrap();
    let (code, text, _) = tool(dir.path(), "text");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("damage    segment 1 at "), "{text}");
    assert!(text.contains("DAMAGED"), "{text}");

    damaged[8] = 99;
    let crc = crc32c::crc32c(&[&damaged[..20], &damaged[24..64]].concat());
    damaged[20..24].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&first, &damaged).unwrap();
    let (code, _, complaint) = tool(dir.path(), "text");
    assert_eq!(code, 2);
    assert!(complaint.contains("newer tailring"), "{complaint}");

    let (code, _, complaint) = tool(&dir.path().join("nowhere"), "text");
    assert_eq!(code, 2);
    assert!(complaint.contains("cannot list"), "{complaint}");
}

#[test]
fn a_dir_in_use_is_told_beside_its_worker() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let lock = DirLock::acquire(dir.path()).unwrap();
    let identity = lock.next_life(Moment::from_unix_millis(7)).unwrap();
    let found = look(dir.path()).unwrap();
    assert_eq!(found.lock_names, Some(std::process::id().to_string()));
    assert_eq!(found.store, Some(format!("{:032x}", identity.store)));
    assert_eq!(found.incarnation, Some(identity.incarnation.0));
    assert!(found.to_text().contains("names process"));
    drop(lock);
    assert_eq!(look(dir.path()).unwrap().lock_names, None);
}
