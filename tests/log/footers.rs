//! Footers of sealed segments: a start that reads them finds what it would find in the segments, damage
//! to them costs nothing but time, and what an earlier version wrote without them is read all the same.

use std::path::Path;

use tailring::log::{
    Disk, ReadError, RealDisk, Recovered, RecoveryReport, SimulatedDisk, SpaceConfig,
};
use tailring::model::FragmentHash;

use crate::fixture::{Content, Log, Message, SMALL, decision, handoff, trace};

const MIDDLE: &str = "0000000002.seg";

/// One shard's log of some segments with every kind of record; all but the last are sealed.
type Written = (
    SimulatedDisk,
    Log<SimulatedDisk>,
    Vec<Recovered>,
    Vec<Content>,
);

fn write() -> Written {
    write_to(SimulatedDisk::new(1))
}

fn write_to(disk: SimulatedDisk) -> Written {
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let (mut records, mut fragments) = (Vec::new(), Vec::new());
    for n in 0..12_u32 {
        let scopes: &[&str] = if n % 2 == 0 { &["a", "b"] } else { &["a"] };
        let content = log.fragment(0, &Message::of(trace(n.into()), "shop", scopes, 2, 30));
        records.push(content.recovered());
        fragments.push(content);
        let writer = &mut log.writers[0];
        writer.verdict(&decision(n));
        records.push(Recovered::Verdict(decision(n)));
        let hashes = vec![FragmentHash(n.into()), FragmentHash(1)];
        writer.exported(trace(n.into()), &hashes);
        records.push(Recovered::Exported {
            trace: trace(n.into()),
            fragments: hashes,
        });
        let decisions = vec![decision(n), decision(n + 1)];
        writer.checkpoint(&decisions);
        records.push(Recovered::Checkpoint(decisions));
    }
    log.flush(0).unwrap();
    (disk, log, records, fragments)
}

/// The same with footers, and how long the middle segment is without its own.
fn footed() -> (SimulatedDisk, Vec<Recovered>, Vec<Content>, usize) {
    let (disk, log, records, fragments) = write();
    let before = disk.content(MIDDLE).unwrap().len();
    log.append_footers();
    assert!(disk.content(MIDDLE).unwrap().len() > before);
    let names = disk.list().unwrap();
    let lens: Vec<usize> = names
        .iter()
        .map(|it| disk.content(it).unwrap().len())
        .collect();
    let (open, sealed) = lens.split_last().unwrap();
    // The open segment counts in whole steps.
    let open = open.next_multiple_of(SMALL.segment_bytes as usize);
    let used = open + sealed.iter().sum::<usize>();
    assert_eq!(log.space.used_bytes() as usize, used);
    (disk, records, fragments, before)
}

fn start(disk: &SimulatedDisk) -> (Log<SimulatedDisk>, Vec<Recovered>, RecoveryReport) {
    Log::open(disk.clone(), SMALL)
}

#[test]
fn a_footer_says_what_its_segment_does() {
    let (plain, _, records, _) = write();
    let (_, found, report) = start(&plain);
    assert_eq!((found, report.segments_by_footer), (records.clone(), 0));

    let (disk, same, fragments, _) = footed();
    assert_eq!(same, records);
    let (log, found, report) = start(&disk);
    assert_eq!(found, records);
    assert_eq!(report.segments_by_footer, report.segments - 1);
    assert!(report.segments >= 4);
    assert_eq!((report.torn_tails, report.damaged_records), (0, 0));
    assert_eq!(report.fragments, 12);
    let extents: Vec<_> = fragments.iter().map(|it| it.extent).collect();
    assert_eq!(log.read(&extents), fragments);
    log.space.release(extents);
    assert_eq!(log.free().len() as u64, report.segments);
    assert!(disk.list().unwrap().is_empty());
    assert_eq!(log.space.used_bytes(), 0);
}

#[test]
fn a_footer_torn_at_any_byte_is_cut_and_its_segment_read() {
    let (disk, records, _, before) = footed();
    let whole = disk.content(MIDDLE).unwrap();
    for cut in before..whole.len() {
        for zeros in [0, 40] {
            let mut torn = whole[..cut].to_vec();
            if cut == before {
                torn.resize(cut + zeros, 0);
            }
            disk.set_content(MIDDLE, torn.clone());
            let (_, found, report) = start(&disk);
            assert!(found == records, "cut at {cut}");
            let kept = disk.content(MIDDLE).unwrap();
            let is_whole_frame = kept.len() == torn.len();
            // Zeroes are how a segment ends that is written over an older one.
            let is_stale = report.stale_bytes > 0;
            assert_eq!(is_stale, cut == before && zeros > 0);
            assert_eq!(
                (report.torn_tails, report.damaged_records),
                (u64::from(!is_whole_frame && !is_stale), 0),
                "cut at {cut}"
            );
            assert!(kept.len() >= before && torn.starts_with(&kept));
        }
    }
}

#[test]
fn a_byte_changed_in_a_segment_with_a_footer_is_met_when_it_is_read() {
    let (disk, records, fragments, before) = footed();
    let whole = disk.content(MIDDLE).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        disk.set_content(MIDDLE, bytes);
        let (log, found, report) = start(&disk);
        if at >= before {
            assert!(found == records, "byte {at}");
            let seen = report.damaged_records + report.torn_tails;
            assert_eq!(seen, 1, "byte {at}");
        } else if at >= 64 {
            assert!(found == records, "byte {at}");
        }
        let mut unread = 0;
        for fragment in &fragments {
            match log.volume.read(&[fragment.extent]) {
                Ok(found) => assert_eq!(Content::from(&found[0]), *fragment),
                Err(ReadError::Damaged { segment, .. }) => {
                    assert_eq!(segment.0, 2);
                    unread += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        let of_segment = fragments.iter().filter(|it| it.extent.segment.0 == 2);
        let is_hit = of_segment
            .map(|it| it.extent.offset as usize..(it.extent.offset + it.extent.len) as usize)
            .any(|range| range.contains(&at));
        assert!(!is_hit || unread == 1, "byte {at}");
    }
}

#[test]
fn a_footer_that_would_be_too_long_is_left_out() {
    let disk = SimulatedDisk::new(1);
    let config = SpaceConfig {
        segment_bytes: 8 << 20,
        ..SMALL
    };
    let (mut log, _, _) = Log::open(disk.clone(), config);
    let hashes: Vec<_> = (0..300_000).map(FragmentHash).collect();
    log.writers[0].exported(trace(1), &hashes);
    log.seal(0);
    // The next segment's is not.
    log.writers[0].exported(trace(2), &hashes[..100]);
    log.seal(0);
    log.append_footers();
    let (_, records, report) = Log::open(disk.clone(), config);
    assert_eq!((report.segments, report.segments_by_footer), (2, 1));
    assert_eq!((report.torn_tails, report.damaged_records), (0, 0));
    let found: usize = records
        .iter()
        .map(|record| match record {
            Recovered::Exported { fragments, .. } => fragments.len(),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(found, 300_100);
}

#[test]
fn a_full_log_and_a_full_disk_get_no_footers() {
    let config = SpaceConfig {
        log_max_bytes: 0,
        ..SMALL
    };
    for is_disk_full in [false, true] {
        let disk = SimulatedDisk::new(1);
        let (mut log, _, _) = Log::open(disk.clone(), if is_disk_full { SMALL } else { config });
        log.writers[0].verdict(&decision(1));
        log.seal(0);
        let name = disk.list().unwrap().remove(0);
        let before = disk.content(&name).unwrap();
        if is_disk_full {
            disk.limit_bytes(Some(before.len() as u64 + 20));
        }
        log.append_footers();
        assert_eq!(disk.content(&name).unwrap(), before);
        assert_eq!(log.space.used_bytes(), before.len() as u64);
    }
}

/// Fragments that a start holds after the host died and that cannot be read, over many deaths.
fn held_and_unreadable() -> usize {
    let mut unreadable = 0;
    for seed in 0..100 {
        // Written, sealed, never synced by anybody but who appends footers.
        let (disk, log, _, _) = write_to(SimulatedDisk::new(seed));
        log.append_footers();
        disk.crash();
        let (log, found, _) = start(&disk);
        for record in found {
            if let Recovered::Fragment { extent, .. } = record {
                unreadable += usize::from(log.volume.read(&[extent]).is_err());
            }
        }
    }
    unreadable
}

#[test]
fn a_footer_does_not_speak_for_what_the_host_took_with_it() {
    assert_eq!(held_and_unreadable(), 0);
    #[cfg(debug_assertions)]
    {
        use tailring::log::PlantedBug;
        PlantedBug::plant(Some(PlantedBug::FooterBeforeSync));
        let found = held_and_unreadable();
        PlantedBug::plant(None);
        assert!(found > 0, "this test would not see it");
    }
}

#[test]
fn what_a_handoff_leaves_in_a_segment_comes_back_with_and_without_its_footer() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let mut expected = Vec::new();
    for n in 1..10_u32 {
        let content = log.received(0, &Message::of(trace(n.into()), "shop", &["a"], 1, 3));
        let (commit, moved) = handoff(n);
        log.writers[0].commit(&commit);
        log.writers[0].moved(&moved);
        expected.extend([
            content.recovered(),
            Recovered::Commit(commit),
            Recovered::Moved(moved),
        ]);
        log.flush(0).unwrap();
        assert_eq!(log.read(&[content.extent]), [content]);
    }
    log.seal(0);
    let first = disk.list().unwrap().remove(0);
    let mut file = disk.content(&first).unwrap();
    let (_, records, report) = start(&disk);
    assert_eq!((&records, report.segments_by_footer), (&expected, 0));
    log.append_footers();
    let (_, records, report) = start(&disk);
    assert_eq!(records, expected);
    assert!(report.segments_by_footer > 0);
    // Behind the first COMMIT, which no longer checks, the search finds the MOVED.
    let damaged = SimulatedDisk::new(2);
    let commit = commit_at(&file);
    file[commit + 20] ^= 1;
    damaged.set_content(&first, file);
    let (_, found, report) = start(&damaged);
    assert_eq!(report.damaged_records, 1);
    assert_eq!(found[..2], [expected[0].clone(), expected[2].clone()]);
}

/// Where the first COMMIT begins.
fn commit_at(file: &[u8]) -> usize {
    let mut at = 64;
    while file[at + 4] != 6 {
        at += 9 + u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    }
    at
}

/// Written by the build before footers, `tests/log/inspect.rs` says what is in it.
#[test]
fn a_dir_that_an_earlier_version_wrote_is_read_and_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/log/version-1");
    for file in std::fs::read_dir(old).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let disk = || RealDisk {
        dir: dir.path().to_path_buf(),
    };
    let (mut log, old, report) = Log::open(disk(), SMALL);
    assert_eq!((report.segments, report.segments_by_footer), (9, 0));
    assert_eq!((report.torn_tails, report.damaged_records), (0, 0));
    let mut kinds = [0; 6];
    for record in &old {
        kinds[match record {
            Recovered::Fragment { .. } => 0,
            Recovered::Verdict(_) => 1,
            Recovered::Exported { .. } => 2,
            Recovered::Checkpoint(_) => 3,
            Recovered::Moved(_) => 4,
            Recovered::Commit(_) => 5,
        }] += 1;
    }
    assert_eq!(kinds, [18, 5, 2, 1, 0, 0]);
    let spans = |it: &Recovered| match it {
        Recovered::Fragment { spans, .. } => *spans,
        _ => 0,
    };
    assert_eq!(old.iter().map(spans).sum::<u32>(), 9 * 8);
    let new = log.fragment(0, &Message::of(trace(99), "shop", &["a"], 2, 30));
    log.seal(0);
    log.append_footers();
    let (_, all, report) = Log::open(disk(), SMALL);
    assert_eq!((report.segments, report.segments_by_footer), (10, 1));
    assert_eq!(all[..old.len()], old);
    assert_eq!(all[old.len()..], [new.recovered()]);
}
