//! Which segments go, when, and the byte bound.

use tailring::log::{
    Disk, DiskOp, RealDisk, SimulatedDisk, Space, SpaceConfig, Volume, Writer, recover,
};
use tailring::model::Moment;
use tailring::model::{Extent, SegmentId};

use crate::fixture::{Log, Message, SMALL, decision, trace};

/// Fills one segment of a shard with two fragments and a verdict, and seals it.
fn segment(log: &mut Log<SimulatedDisk>, shard: usize) -> Vec<Extent> {
    let extents = (0..2)
        .map(|n| {
            log.fragment(shard, &Message::of(trace(n), "shop", &["a"], 1, 20))
                .extent
        })
        .collect();
    log.writers[shard].verdict(&decision(1));
    log.seal(shard);
    extents
}

#[test]
fn a_segment_goes_when_nothing_in_it_is_live_and_no_older_one_of_its_shard_is_there() {
    let (mut log, _, _) = Log::open(SimulatedDisk::new(1), SMALL);
    let a1 = segment(&mut log, 0); // segment 1
    let a2 = segment(&mut log, 0); // segment 2
    let b3 = segment(&mut log, 1); // segment 3
    assert!(log.free().is_empty());
    assert_eq!(log.space.next_to_free(0), Some(SegmentId(1)));
    assert_eq!(log.space.next_to_free(1), Some(SegmentId(3)));

    log.space.release(a2);
    assert!(log.free().is_empty(), "its tombstones may cover segment 1");
    log.space.release(b3);
    assert_eq!(log.free(), [3], "another shard's does not wait");
    assert_eq!(log.space.next_to_free(1), None);
    log.space.release(a1[..1].iter().copied());
    assert!(log.free().is_empty());
    log.space.release(a1[1..].iter().copied());
    assert_eq!(log.free(), [1, 2]);
    assert_eq!((log.space.segments(), log.space.used_bytes()), (0, 0));
    assert!(log.free().is_empty(), "each once");
}

#[test]
fn an_open_segment_never_goes() {
    let (mut log, _, _) = Log::open(SimulatedDisk::new(1), SMALL);
    let content = log.fragment(0, &Message::of(trace(1), "shop", &["a"], 1, 20));
    log.space.release([content.extent]); // before its batch was even taken
    log.flush(0).unwrap();
    assert!(log.free().is_empty());
    log.seal(0);
    assert_eq!(log.free(), [1]);
}

#[test]
fn segments_of_earlier_lives_go_first_and_in_the_order_of_their_ids() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let old_a = segment(&mut log, 0); // 1
    let old_b = segment(&mut log, 1); // 2
    log.fragment(0, &Message::of(trace(1), "shop", &["a"], 1, 20)); // 3, not sealed
    log.flush(0).unwrap();
    drop(log);
    let (mut log, _, _) = Log::open(disk, SMALL);
    let (new_a, new_b) = (segment(&mut log, 0), segment(&mut log, 1)); // 4, 5
    assert_eq!(log.space.next_to_free(1), Some(SegmentId(1)));
    log.space.release(new_a.into_iter().chain(new_b));
    assert!(log.free().is_empty());
    log.space.release(old_b);
    assert!(
        log.free().is_empty(),
        "2 waits for 1: shard 1 may have had shard 0's traces then"
    );
    log.space.release(old_a);
    assert_eq!(log.free(), [1, 2]);
    assert_eq!(log.space.next_to_free(1), Some(SegmentId(3)));
}

#[test]
fn what_one_shard_is_unlinking_another_shards_younger_segment_waits_for() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let old = segment(&mut log, 0); // 1
    drop(log);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let new = segment(&mut log, 1); // 2
    log.space.release(old);
    let first = log.space.take_freed(0);
    assert_eq!(first, [SegmentId(1)]);
    let used = log.space.used_bytes();
    log.space.release(new);
    assert!(log.space.take_freed(1).is_empty(), "1 is still on disk");
    let younger = DiskOp::Unlink {
        segment: SegmentId(2),
    };
    assert!(log.volume.apply(younger).is_err());

    // A failed unlink is handed out again.
    disk.fail_syncs(true);
    let older = || DiskOp::Unlink {
        segment: SegmentId(1),
    };
    assert!(log.volume.apply(older()).is_err());
    disk.fail_syncs(false);
    assert_eq!(log.space.used_bytes(), used);
    assert_eq!(log.free(), [1, 2]);
    assert_eq!(log.space.used_bytes(), 0);
    assert!(disk.list().unwrap().is_empty());
}

#[test]
fn client_bytes_are_refused_while_the_volume_has_no_more_than_the_reserve() {
    let (log, _, _) = Log::open(SimulatedDisk::new(1), SMALL);
    let reserve = SMALL.reserve_bytes();
    assert!(log.space.admits(1024), "nobody has looked yet");
    log.space.volume_has(reserve + 1024);
    assert!(log.space.admits(1024));
    assert!(!log.space.admits(1025));
    log.space.volume_has(0);
    assert!(!log.space.admits(0));
    log.space.volume_has(u64::MAX);
    assert!(log.space.admits(1024), "there is room again");
}

#[test]
fn client_bytes_are_refused_at_the_bound_minus_the_reserve_and_control_records_are_not() {
    let config = SpaceConfig {
        segment_bytes: 2048,
        log_max_bytes: 20 * 2048,
        shards: 2,
    };
    assert_eq!(config.reserve_bytes(), 4 * 2048);
    let (mut log, _, _) = Log::open(SimulatedDisk::new(1), config);
    assert!(log.space.admits(16 * 2048));
    assert!(!log.space.admits(16 * 2048 + 1));
    assert!(!log.space.admits(u64::MAX));
    let mut live = Vec::new();
    while log.space.admits(1024) {
        live.push(
            log.fragment(0, &Message::of(trace(1), "shop", &["a"], 1, 900))
                .extent,
        );
        assert!(log.space.used_bytes() <= 16 * 2048 + 2048);
    }
    log.flush(0).unwrap();
    // The bound is reached, and what was exported can still be noted, which frees the rest.
    for n in 0..50 {
        log.writers[1].verdict(&decision(n));
        log.writers[1].exported(trace(1), &[]);
    }
    log.flush(1).unwrap();
    assert!(log.space.used_bytes() <= config.log_max_bytes);
    log.seal(0);
    log.space.release(live);
    assert!(!log.free().is_empty());
    assert!(log.space.admits(8 * 2048));
}

#[test]
fn a_nearly_empty_segment_occupies_a_step_and_a_sealed_one_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpaceConfig {
        segment_bytes: 64 << 20,
        log_max_bytes: 1 << 40,
        shards: 1,
    };
    let disk = RealDisk {
        dir: dir.path().to_path_buf(),
    };
    let (mut log, _, _) = Log::open(disk, config);
    log.fragment(0, &Message::of(trace(1), "shop", &["a"], 1, 20));
    log.flush(0).unwrap();
    assert_eq!(log.space.used_bytes(), 8 << 20);
    let file = dir.path().join("0000000001.seg");
    let blocks = |file: &std::path::Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(file).unwrap().blocks() * 512
    };
    let len = std::fs::metadata(&file).unwrap().len();
    assert!(len < 1024, "preallocation is not length");
    assert!(blocks(&file) <= 8 << 20);
    log.seal(0);
    assert_eq!(log.space.used_bytes(), len);
    assert!(blocks(&file) <= 64 << 10, "the surplus was given back");
}

#[test]
fn after_a_failed_write_the_pending_is_forgotten_and_a_new_segment_begins() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let sound = log.fragment(0, &Message::of(trace(1), "shop", &["a"], 1, 20));
    log.flush(0).unwrap();
    let sound_len = disk.content("0000000001.seg").unwrap().len();

    // The disk fills up in the middle of a write.
    disk.limit_bytes(Some(sound_len as u64 + 50));
    let failed = log.fragment(0, &Message::of(trace(2), "shop", &["a"], 1, 20));
    let ops = log.writers[0].take();
    assert!(
        ops.iter()
            .all(|op| Some(op.segment()) == log.writers[0].segment())
    );
    // Pending behind it: the rest of this segment and two more.
    let pending: Vec<_> = (0..30)
        .map(|n| {
            log.fragment(0, &Message::of(trace(n), "shop", &["a"], 1, 100))
                .extent
        })
        .collect();
    assert!(pending[29].segment.0 >= 3);
    let errors = ops.into_iter().filter_map(|op| log.volume.apply(op).err());
    assert_eq!(errors.count(), 1);
    disk.limit_bytes(None);

    log.writers[0].abandon();
    assert_eq!(log.writers[0].pending_bytes(), 0);
    // Whoever failed the requests releases what it had of them; the forgotten do no harm.
    log.space.release([failed.extent]);
    log.space.release(pending);
    log.flush(0).unwrap();
    assert_eq!(disk.content("0000000001.seg").unwrap().len(), sound_len);

    let next = log.fragment(0, &Message::of(trace(3), "shop", &["a"], 1, 20));
    assert!(next.extent.segment > SegmentId(3));
    log.flush(0).unwrap();
    let both = [next.extent, sound.extent];
    assert_eq!(log.read(&both), [next.clone(), sound.clone()]);
    assert!(log.free().is_empty(), "the sound fragment is live");
    log.space.release([sound.extent]);
    // Also those that the disk never heard of: decisions may have been meant for them.
    assert_eq!(log.free(), [1, 2, 3, 4]);
    drop(log);
    let (_, records, report) = Log::open(disk, SMALL);
    assert_eq!(records, [next.recovered()]);
    assert_eq!((report.torn_tails, report.damaged_records), (0, 0));
}

#[test]
fn nothing_is_written_behind_a_hole() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let mut batches = Vec::new();
    for n in 0..4 {
        log.writers[0].verdict(&decision(n));
        batches.push(log.writers[0].take());
    }
    // The second of four batches in flight fails.
    let mut results = Vec::new();
    for (n, batch) in batches.into_iter().enumerate() {
        disk.fail_writes_after((n == 1).then_some(0));
        let failed = batch.into_iter().any(|op| log.volume.apply(op).is_err());
        results.push(failed);
    }
    assert_eq!(results, [false, true, true, true]);
    let (_, records, _) = Log::open(disk, SMALL);
    assert_eq!(records.len(), 1);
}

#[test]
fn a_failed_sync_is_never_followed_by_a_good_one() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    log.writers[0].verdict(&decision(1));
    log.flush(0).unwrap();
    disk.fail_syncs(true);
    assert!(log.volume.sync(SegmentId(1)).is_err());
    disk.fail_syncs(false);
    assert!(log.volume.sync(SegmentId(1)).is_err());
    log.writers[0].verdict(&decision(2));
    assert!(log.flush(0).is_err(), "it takes no more writes either");
}

#[test]
fn a_segment_whose_creation_failed_is_freed_like_any_other() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    disk.fail_syncs(true);
    log.writers[0].verdict(&decision(1));
    assert!(log.flush(0).is_err());
    disk.fail_syncs(false);
    log.writers[0].abandon();
    log.flush(0).unwrap();
    assert_eq!(log.free(), [1]);
    assert!(disk.list().unwrap().is_empty());
    assert_eq!(log.space.used_bytes(), 0);
}

#[test]
fn a_space_without_recovery_counts_a_segment_as_gone_when_it_hands_it_out() {
    let space = Space::new(SMALL);
    let volume = Volume::new(SimulatedDisk::new(1));
    let mut writer = Writer::new(0, space.clone(), 1);
    let message = Message::of(trace(1), "shop", &["a"], 1, 20);
    for _ in 0..2 {
        let extent = writer.fragment(&message.view(), Moment::ZERO, None);
        writer.seal_current();
        for op in writer.take() {
            volume.apply(op).unwrap();
        }
        space.release([extent]);
        assert_eq!(space.take_freed(0), [extent.segment]);
        assert_eq!(space.used_bytes(), 0);
    }
    assert!(recover(&Volume::new(SimulatedDisk::new(2)), &space, &mut |_| {}).is_ok());
}

#[test]
fn a_checkpoint_of_several_records_is_placed_where_its_first_one_lies() {
    let (mut log, _, _) = Log::open(SimulatedDisk::new(1), SMALL);
    let decisions: Vec<_> = (0..40_000).map(decision).collect();
    let extent = log.writers[0].checkpoint(&decisions);
    // Each of the three fills a segment. Carried forward when the last one goes would be too late
    // for what is in the first.
    assert_eq!(extent.segment, SegmentId(1));
    assert_eq!(log.writers[0].segment(), Some(SegmentId(3)));
}
