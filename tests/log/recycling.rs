//! The file of a segment that went becomes another one's.

use tailring::log::{Disk, Footed, Sealed, SimulatedDisk, SpaceConfig};

use crate::fixture::{Content, Log, Message, trace};

const CONFIG: SpaceConfig = SpaceConfig {
    segment_bytes: 64 << 10,
    log_max_bytes: 1 << 30,
    shards: 1,
};

/// Fills a segment with ten fragments, seals it, and lets it go.
fn fill_and_free(log: &mut Log<SimulatedDisk>) {
    let fragments: Vec<_> = (0..10)
        .map(|n| log.fragment(0, &Message::of(trace(n), "old", &["a"], 10, 500)))
        .collect();
    log.seal(0);
    log.space.release(fragments.iter().map(|it| it.extent));
    assert_eq!(log.free().len(), 1);
}

fn one(log: &mut Log<SimulatedDisk>, n: u64) -> Content {
    let content = log.fragment(0, &Message::of(trace(n), "new", &["a"], 3, 700));
    log.flush(0).unwrap();
    content
}

#[test]
fn a_segment_is_written_over_one_that_went_and_a_start_takes_nothing_of_that() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), CONFIG);
    fill_and_free(&mut log);
    assert_eq!(disk.list().unwrap(), ["0000000001.seg.spare"]);
    let old_len = log.space.used_bytes();
    let contents = [one(&mut log, 100), one(&mut log, 101), one(&mut log, 102)];
    assert_eq!(disk.list().unwrap(), ["0000000002.seg"]);
    assert!(log.space.used_bytes() >= old_len, "it is as long as it was");
    let extents = contents.each_ref().map(|it| it.extent);
    assert_eq!(log.read(&extents), contents);
    drop(log);
    disk.kill();

    let (log, found, report) = Log::open(disk.clone(), CONFIG);
    assert_eq!(found, contents.each_ref().map(Content::recovered));
    assert_eq!((report.torn_tails, report.damaged_records), (0, 0));
    assert_eq!(report.stale_bytes, old_len - report.bytes);
    assert_eq!(log.space.used_bytes(), report.bytes, "the rest is cut off");
    assert_eq!(log.read(&extents), contents);
}

#[test]
fn a_file_that_became_a_segment_before_its_first_write_is_an_empty_one() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), CONFIG);
    fill_and_free(&mut log);
    disk.fail_writes_after(Some(0));
    log.fragment(0, &Message::of(trace(1), "new", &["a"], 3, 700));
    log.writers[0]
        .take()
        .into_iter()
        .find_map(|op| log.volume.apply(op).err())
        .expect("the write fails");
    drop(log);
    disk.kill();
    disk.fail_writes_after(None);
    let (mut log, found, report) = Log::open(disk.clone(), CONFIG);
    assert_eq!(found, []);
    assert_eq!((report.torn_tails, report.damaged_records), (0, 0));
    assert_eq!(log.free(), [2]);
    one(&mut log, 5);
}

#[test]
fn a_write_that_was_cut_off_over_old_records_is_a_torn_tail() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), CONFIG);
    fill_and_free(&mut log);
    let first = one(&mut log, 100);
    let before = disk.content("0000000002.seg").unwrap();
    let second = one(&mut log, 101);
    let mut torn = before.clone();
    let middle = (second.extent.offset + second.extent.len / 2) as usize;
    torn[..middle].copy_from_slice(&disk.content("0000000002.seg").unwrap()[..middle]);
    disk.set_content("0000000002.seg", torn);
    drop(log);
    let (_, found, report) = Log::open(disk, CONFIG);
    assert_eq!(found, [first.recovered()]);
    assert_eq!((report.torn_tails, report.damaged_records), (1, 0));
    assert!(report.torn_bytes > 0);
}

#[test]
fn files_of_segments_that_went_are_removed_by_the_next_start_and_near_the_bound() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), CONFIG);
    fill_and_free(&mut log);
    drop(log);
    let (_, found, report) = Log::open(disk.clone(), CONFIG);
    assert_eq!((found.len(), report.foreign_files), (0, 0));
    assert!(report.stale_bytes > 50_000);
    assert!(disk.list().unwrap().is_empty());

    let near = SpaceConfig {
        log_max_bytes: 64 << 10,
        ..CONFIG
    };
    let (mut log, _, _) = Log::open(disk.clone(), near);
    fill_and_free(&mut log);
    assert!(disk.list().unwrap().is_empty());
    assert_eq!(log.space.used_bytes(), 0);
}

#[test]
fn a_footer_that_comes_late_does_not_hit_the_segment_that_has_the_file_by_then() {
    for footer_is_there in [false, true] {
        let (mut log, _, _) = Log::open(SimulatedDisk::new(1), CONFIG);
        let fragments: Vec<_> = (0..10)
            .map(|n| log.fragment(0, &Message::of(trace(n), "old", &["a"], 10, 500)))
            .collect();
        log.seal(0);
        let sealed = log.volume.unfinished().try_take().expect("it was sealed");
        let late = if footer_is_there {
            Late::Trailer(log.volume.append_footer(sealed).expect("it is there"))
        } else {
            Late::Footer(sealed)
        };
        log.space.release(fragments.iter().map(|it| it.extent));
        assert_eq!(log.free(), [1]);
        // As long as the first, so that the footer would lie in it.
        let contents: Vec<_> = (0..30).map(|n| one(&mut log, 200 + n)).collect();
        match late {
            Late::Footer(sealed) => assert!(log.volume.append_footer(sealed).is_none()),
            Late::Trailer(footed) => log.volume.append_trailer(footed),
        }
        let extents: Vec<_> = contents.iter().map(|it| it.extent).collect();
        assert_eq!(log.read(&extents), contents);
    }
}

enum Late {
    Footer(Sealed),
    Trailer(Footed),
}
