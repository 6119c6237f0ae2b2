//! The segment log from outside: what is appended comes back byte for byte, and nothing else.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

#[path = "log/damage.rs"]
mod damage;
#[path = "log/directory.rs"]
mod directory;
#[path = "log/fixture.rs"]
mod fixture;
#[path = "log/footers.rs"]
mod footers;
#[path = "log/inspect.rs"]
mod inspect;
#[path = "log/model.rs"]
mod model;
#[path = "log/recycling.rs"]
mod recycling;
#[path = "log/space.rs"]
mod space;

use fixture::{Content, Log, Message, SMALL, decision, resource_spans, scope_spans, span, trace};
use tailring::log::{
    Disk, DiskOp, GoneTrace, ReadError, RealDisk, Recovered, SimulatedDisk, Space, SpaceConfig,
    Writer, recover,
};
use tailring::model::{Extent, FragmentHash, Moment, SegmentId};

fn appends_and_reads_back<D: Disk>(disk: D) {
    let (mut log, _, _) = Log::open(disk, SMALL);
    let mut written = Vec::new();
    for n in 0..60_u64 {
        let scopes: &[&str] = if n % 3 == 0 { &["a", "b", ""] } else { &["a"] };
        let resource = ["", "shop", "search"][n as usize % 3];
        let message = Message::of(
            trace(n),
            resource,
            scopes,
            1 + n as usize % 4,
            n as usize * 7,
        );
        let view = message.view();
        let arrival = Moment::from_unix_millis(n);
        let previous = written.last().map(|it: &Content| it.extent);
        let shard = n as usize % 2;
        let extent = log.writers[shard].fragment(&view, arrival, previous);
        written.push(Content::of(&view, arrival, previous, extent));
        if n % 5 == 0 {
            log.flush(shard).unwrap();
        }
    }
    log.flush(0).unwrap();
    log.flush(1).unwrap();
    assert!(log.space.segments() > 4, "the test is to cross segments");

    // In an order that is neither that of the offsets nor its reverse, and one of them twice.
    let mut asked: Vec<Content> = (0..60).map(|n| written[n * 37 % 60].clone()).collect();
    asked.push(written[7].clone());
    let extents: Vec<Extent> = asked.iter().map(|it| it.extent).collect();
    assert_eq!(log.read(&extents), asked);
    for one in &written {
        assert_eq!(log.read(&[one.extent]), std::slice::from_ref(one));
    }
    assert!(log.read(&[]).is_empty());
}

#[test]
fn fragments_come_back_as_they_were_from_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    appends_and_reads_back(RealDisk {
        dir: dir.path().to_path_buf(),
    });
}

#[test]
fn fragments_come_back_as_they_were_from_a_simulated_disk() {
    appends_and_reads_back(SimulatedDisk::new(1));
}

#[test]
fn a_restart_finds_every_record_of_every_shard_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = || RealDisk {
        dir: dir.path().to_path_buf(),
    };
    std::fs::write(dir.path().join("notes.txt"), "not ours").unwrap();
    std::fs::write(dir.path().join("12.seg"), "not ours either").unwrap();
    let mut expected: [Vec<Recovered>; 2] = [vec![], vec![]];
    let (mut log, _, report) = Log::open(disk(), SMALL);
    assert_eq!(report.foreign_files, 2);
    for n in 0..40_u32 {
        let shard = n as usize % 2;
        let content = log.fragment(shard, &Message::of(trace(1), "shop", &["a"], 2, 100));
        let writer = &mut log.writers[shard];
        writer.verdict(&decision(n));
        let hashes = vec![FragmentHash(u128::from(n)); n as usize % 3];
        writer.exported(trace(9), &hashes);
        let decisions: Vec<_> = (0..n % 4).map(decision).collect();
        writer.checkpoint(&decisions);
        expected[shard].extend([
            content.recovered(),
            Recovered::Verdict(decision(n)),
            Recovered::Exported {
                trace: trace(9),
                fragments: hashes,
            },
            Recovered::Checkpoint(decisions),
        ]);
        log.flush(shard).unwrap();
    }
    let newest = log.writers[0].segment().max(log.writers[1].segment());
    drop(log);

    // More shards than before: all segments are read all the same.
    let (mut log, mut records, report) = Log::open(disk(), SpaceConfig { shards: 5, ..SMALL });
    assert_eq!(report.fragments, 40);
    assert_eq!((report.torn_tails, report.damaged_records), (0, 0));
    assert_eq!(report.bytes, log.space.used_bytes());
    // Within a shard in order; the shards' segments are mixed.
    for expected in &expected {
        let mut rest = records.iter();
        for record in expected {
            assert!(rest.any(|found| found == record), "{record:?}");
        }
    }
    records.retain(|record| !expected.concat().contains(record));
    assert_eq!(records, []);

    let fresh = log.fragment(4, &Message::of(trace(1), "shop", &["a"], 1, 0));
    assert!(
        Some(fresh.extent.segment) > newest,
        "an ID is never used again"
    );
    log.flush(4).unwrap();
    assert_eq!(log.read(&[fresh.extent]), [fresh]);
    assert!(dir.path().join("notes.txt").exists());
}

#[test]
fn bytes_are_as_the_top_of_the_folder_says() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let content = log.fragment(1, &Message::of(trace(5), "shop", &["a"], 2, 3));
    let verdict = log.writers[1].verdict(&decision(6));
    let gone = [(8, vec![]), (9, vec![64, 200])].map(|(n, live)| GoneTrace {
        trace: trace(n),
        live,
    });
    let gone = log.writers[1].gone(SegmentId(7), &gone);
    log.flush(1).unwrap();
    let file = disk.content("0000000001.seg").unwrap();

    let crc = |parts: &[&[u8]]| crc32c::crc32c(&parts.concat()).to_le_bytes();
    let frame = |offset: u32, kind: u8, payload: &[u8]| {
        let len = (payload.len() as u32).to_le_bytes();
        let seed = [1_u32.to_le_bytes(), offset.to_le_bytes(), len].concat();
        let crc = crc(&[&seed, &[kind], payload]);
        [&len[..], &[kind], &crc, payload].concat()
    };
    let mut expected = b"TAILRLOG".to_vec();
    expected.extend([2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]); // version, segment, shard, zero
    let rest = [
        1_u64.to_le_bytes(),
        content.arrival.unix_nanos.to_le_bytes(),
        [0; 8],
        [0; 8],
        [0; 8],
    ]
    .concat();
    expected.extend(crc(&[&expected, &rest]));
    expected.extend(rest);
    let mut headers = Vec::new();
    for bytes in [&content.resource, &content.scopes[0].0] {
        headers.push(expected.len() as u32);
        let hash = xxhash_rust::xxh3::xxh3_128(bytes).to_le_bytes();
        let payload = [&hash[..], bytes].concat();
        expected.extend(frame(expected.len() as u32, 2, &payload));
    }
    let spans = &content.scopes[0].1;
    let payload = [
        trace(5).as_bytes(),
        &content.hash.0.to_le_bytes()[..],
        &content.arrival.unix_nanos.to_le_bytes(),
        &[0; 12], // no previous one
        &[2, 0, 0, 0, 1],
        &headers[0].to_le_bytes(),
        &[1, 0, 0, 0],
        &headers[1].to_le_bytes(),
        &(spans.len() as u32).to_le_bytes(),
        spans,
    ]
    .concat();
    assert_eq!(content.extent.offset as usize, expected.len());
    expected.extend(frame(expected.len() as u32, 1, &payload));
    assert_eq!(verdict.offset as usize, expected.len());
    let payload = [
        trace(6).as_bytes(),
        &[1_u8, 6, 0, 0, 0][..],
        &(6_u64 << 20).to_le_bytes(),
        &[0xff, 0xff],
        &3_u64.to_le_bytes(),
        &6_000_000_u64.to_le_bytes(),
    ]
    .concat();
    expected.extend(frame(expected.len() as u32, 3, &payload));
    let payload = [
        &[7, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0][..], // segment, live offsets, traces
        trace(8).as_bytes(),
        &[0; 4],
        trace(9).as_bytes(),
        &[2, 0, 0, 0],
        &[64, 0, 0, 0, 200, 0, 0, 0],
    ]
    .concat();
    assert_eq!(gone[0].0.offset as usize, expected.len());
    expected.extend(frame(expected.len() as u32, 11, &payload));
    assert_eq!(file, expected);
}

#[test]
fn frames_of_unknown_kinds_are_skipped_when_they_check() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    log.writers[0].verdict(&decision(1));
    let second = log.writers[0].verdict(&decision(2));
    log.flush(0).unwrap();
    let mut file = disk.content("0000000001.seg").unwrap();
    let at = second.offset as usize;
    file[at + 4] = 7;
    let seed = [1_u32.to_le_bytes(), second.offset.to_le_bytes()].concat();
    let crc = crc32c::crc32c(&[&seed, &file[at..at + 5], &file[at + 9..]].concat());
    file[at + 5..at + 9].copy_from_slice(&crc.to_le_bytes());
    disk.set_content("0000000001.seg", file);
    let (_, records, report) = Log::open(disk, SMALL);
    assert_eq!(records, [Recovered::Verdict(decision(1))]);
    assert_eq!((report.torn_tails, report.damaged_records), (0, 0));
}

#[test]
fn a_fragment_costs_at_most_90_bytes_beside_its_spans_once_its_headers_are_there() {
    let (mut log, _, _) = Log::open(SimulatedDisk::new(1), SMALL);
    for (scopes, bound) in [(&["a"][..], 82), (&["a", "b"], 90)] {
        log.fragment(0, &Message::of(trace(1), "shop", scopes, 1, 5));
        let content = log.fragment(0, &Message::of(trace(2), "shop", scopes, 3, 5));
        assert_eq!(content.extent.len as usize - content.span_bytes(), bound);
    }
}

#[test]
fn headers_are_stored_once_a_segment() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let resource = "a-service-name-that-occurs-nowhere-else";
    for n in 0..30 {
        log.fragment(
            0,
            &Message::of(trace(n), resource, &["the-only-scope"], 2, 40),
        );
        if n % 4 == 0 {
            log.flush(0).unwrap(); // a header may have left the writer's memory
        }
    }
    log.flush(0).unwrap();
    let segments = disk.list().unwrap();
    assert!(segments.len() >= 3);
    for name in segments {
        let file = disk.content(&name).unwrap();
        for header in [resource, "the-only-scope"] {
            let copies = file
                .windows(header.len())
                .filter(|it| *it == header.as_bytes());
            assert_eq!(copies.count(), 1, "{header} in {name}");
        }
    }
}

#[test]
fn equal_headers_read_back_share_one_allocation() {
    let (mut log, _, _) = Log::open(SimulatedDisk::new(1), SMALL);
    let extents: Vec<Extent> = (0..30)
        .map(|n| {
            log.fragment(0, &Message::of(trace(n), "shop", &["a"], 2, 100))
                .extent
        })
        .collect();
    log.flush(0).unwrap();
    assert_ne!(extents[0].segment, extents[29].segment);
    let found = log.volume.read(&extents).unwrap();
    for stored in &found {
        assert_eq!(
            stored.resource_header.as_ptr(),
            found[0].resource_header.as_ptr()
        );
        assert_eq!(
            stored.scopes[0].header.as_ptr(),
            found[0].scopes[0].header.as_ptr()
        );
    }
}

#[test]
fn a_giant_record_gets_a_segment_of_its_own_size_and_others_share_its_header() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let mut written = vec![log.fragment(0, &Message::of(trace(1), "shop", &["a"], 1, 10))];
    // One resource of twice a segment above three traces, as one request brings it.
    let giant = "g".repeat(2 * SMALL.segment_bytes as usize);
    let spans = (2..5).map(|n| span(trace(n), 0, 10));
    let message = Message::new(vec![resource_spans(&giant, vec![scope_spans("a", spans)])]);
    for view in message.views() {
        let extent = log.writers[0].fragment(&view, Moment::ZERO, None);
        written.push(Content::of(&view, Moment::ZERO, None, extent));
    }
    // A fragment whose spans are too long.
    written.push(log.fragment(0, &Message::of(trace(9), "shop", &["a"], 1, 5000)));
    written.push(log.fragment(0, &Message::of(trace(10), "shop", &["a"], 1, 1000)));
    log.flush(0).unwrap();
    let segments: Vec<u32> = written.iter().map(|it| it.extent.segment.0).collect();
    assert_eq!(segments, [1, 2, 2, 2, 3, 4]);
    let extents: Vec<Extent> = written.iter().map(|it| it.extent).collect();
    assert_eq!(log.read(&extents), written);
    drop(log);
    let (log, records, _) = Log::open(disk, SMALL);
    let expected: Vec<_> = written.iter().map(Content::recovered).collect();
    assert_eq!(records, expected);
    assert_eq!(log.read(&extents), written);
}

#[test]
fn long_lists_become_several_records() {
    let disk = SimulatedDisk::new(1);
    let config = SpaceConfig {
        segment_bytes: 4 << 20,
        ..SMALL
    };
    let (mut log, _, _) = Log::open(disk.clone(), config);
    let hashes: Vec<_> = (0..150_000).map(FragmentHash).collect();
    log.writers[0].exported(trace(1), &hashes);
    let decisions: Vec<_> = (0..40_000).map(decision).collect();
    log.writers[0].checkpoint(&decisions);
    log.flush(0).unwrap();
    let (_, records, _) = Log::open(disk, config);
    assert_eq!(records.len(), 3 + 3);
    let (mut found_hashes, mut found_decisions) = (vec![], vec![]);
    for record in records {
        match record {
            Recovered::Exported { fragments, .. } => found_hashes.extend(fragments),
            Recovered::Checkpoint(decisions) => found_decisions.extend(decisions),
            other => panic!("{other:?}"),
        }
    }
    assert!(found_hashes == hashes && found_decisions == decisions);
}

#[test]
fn a_warm_writer_reuses_the_buffers_it_is_given_back() {
    let space = Space::new(SpaceConfig {
        segment_bytes: 64 << 20,
        ..SMALL
    });
    let mut writer = Writer::new(0, space, 7);
    let message = Message::of(trace(1), "shop", &["a", "b"], 20, 300);
    let mut places = Vec::new();
    for _ in 0..20 {
        for _ in 0..10 {
            writer.fragment(&message.view(), Moment::ZERO, None);
        }
        let pending = writer.pending_bytes();
        let mut bytes_taken = 0;
        for op in writer.take() {
            if let DiskOp::Write { bytes, .. } = op {
                bytes_taken += bytes.len();
                places.push(bytes.as_ptr());
                writer.recycle(bytes);
            }
        }
        assert_eq!(bytes_taken, pending);
        assert_eq!(writer.pending_bytes(), 0);
    }
    // Two buffers take turns once both have grown.
    let warm = &places[6..];
    assert!(
        warm.iter().all(|place| warm[..2].contains(place)),
        "{places:?}"
    );
}

#[test]
fn a_newer_format_version_is_refused_and_nothing_is_touched() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    log.writers[0].verdict(&decision(1));
    log.flush(0).unwrap();
    let mut file = disk.content("0000000001.seg").unwrap();
    file.push(0xee); // a torn tail that would be cut
    file[8] = 3;
    let crc = crc32c::crc32c(&[&file[..20], &file[24..64]].concat());
    file[20..24].copy_from_slice(&crc.to_le_bytes());
    disk.set_content("0000000001.seg", file.clone());
    let volume = tailring::log::Volume::new(disk.clone());
    let error = recover(&volume, &Space::new(SMALL), &mut |_| panic!("no record")).unwrap_err();
    assert!(matches!(
        error,
        ReadError::Version {
            found: 3,
            known: 2,
            segment: SegmentId(1)
        }
    ));
    assert!(error.to_string().contains("newer tailring"), "{error}");
    assert_eq!(disk.content("0000000001.seg").unwrap(), file);
}

#[test]
fn a_wrong_extent_is_an_error_and_asks_for_no_memory() {
    let (mut log, _, _) = Log::open(SimulatedDisk::new(1), SMALL);
    let good = log
        .fragment(0, &Message::of(trace(1), "shop", &["a"], 1, 10))
        .extent;
    let verdict = log.writers[0].verdict(&decision(1));
    log.flush(0).unwrap();
    for wrong in [
        Extent {
            offset: good.offset + 1,
            ..good
        },
        Extent {
            len: good.len - 1,
            ..good
        },
        Extent {
            len: u32::MAX,
            ..good
        },
        Extent {
            offset: u32::MAX,
            ..good
        },
        Extent { len: 0, ..good },
        Extent {
            segment: SegmentId(9),
            ..good
        },
        verdict,
    ] {
        assert!(log.volume.read(&[good, wrong]).is_err(), "{wrong:?}");
    }
}
