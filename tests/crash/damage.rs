//! What comes back from a medium that changed under a worker, and from a newer version's log.

use tailring::log::{
    Disk, ReadError, Recovered, SimulatedDisk, Space, SpaceConfig, Volume, recover,
};
use tailring::wire::{span_id_of, spans_in};
use tailring::worker::StartError;

use crate::life::{Stage, run_until, start};
use crate::plan::{Plan, SpanKey};

/// The spans that lie in one segment.
fn spans_of(disk: &SimulatedDisk, plan: &Plan, file: &str) -> Vec<SpanKey> {
    let space = Space::new(SpaceConfig {
        segment_bytes: plan.segment_bytes,
        log_max_bytes: u64::MAX,
        shards: 1,
    });
    let volume = Volume::new(disk.copy(1));
    let mut fragments = Vec::new();
    let whole = recover(&volume, &space, &mut |record| {
        if let Recovered::Fragment { extent, trace, .. } = record
            && format!("{:010}.seg", extent.segment.0) == file
        {
            fragments.push((trace, extent));
        }
    });
    whole.expect("nothing is damaged yet");
    let mut spans = Vec::new();
    for (trace, extent) in fragments {
        let number = plan.traces.iter().position(|it| *it == trace);
        let stored = volume.read(&[extent]).expect("nothing is damaged yet");
        for section in stored.iter().flat_map(|it| it.scopes.iter()) {
            for (_, span) in spans_in(&section.spans) {
                let id = span_id_of(span).expect("all have one");
                spans.extend(number.map(|it| (it, u64::from_be_bytes(*id.as_bytes()) - 1)));
            }
        }
    }
    spans
}

/// Whether a start reads the footer of this file instead of the place.
fn is_behind_a_footer(disk: &SimulatedDisk, file: &str, at: usize) -> bool {
    let bytes = disk.content(file).expect("it is there");
    // The trailer: 9 bytes of a frame's head with its kind in the fifth, and the footer's offset.
    let Some((_, trailer)) = bytes.split_last_chunk::<13>() else {
        return false;
    };
    let footer = trailer.last_chunk().map_or(0, |it| u32::from_le_bytes(*it));
    trailer[4] == 10 && (64..footer as usize).contains(&at)
}

#[test]
fn a_flipped_bit_is_counted_and_costs_nothing_outside_its_segment() {
    let stage = Stage::new();
    let (mut flips, mut costs, mut seen_late) = (0, 0, 0);
    for seed in 1..=300 {
        let mut plan = Plan::new(seed);
        // The process ends and the medium changes: two faults are enough. And a verdict that is
        // lost with its record is made again, so all of them have to be the same.
        plan.host_dies = false;
        plan.keeps_all = true;
        let mut lives = run_until(&plan, &stage, 20 + seed % 40);
        let Some((file, bit)) = lives.draw_bit() else {
            continue;
        };
        let touched = spans_of(lives.disk(), &plan, &file);
        let behind_a_footer = is_behind_a_footer(lives.disk(), &file, bit / 8);
        lives.disk().flip_bit(&file, bit);
        assert!(lives.rise(None), "seed {seed}: a damaged log is refused");
        let report = lives.recovery();
        // What a footer vouches for is looked at when it is needed.
        assert!(
            report.damaged_records + report.torn_tails > 0 || behind_a_footer,
            "seed {seed}, {file}, bit {bit}: {report:?}"
        );
        seen_late += u32::from(report.damaged_records + report.torn_tails == 0);
        lives.settle();
        flips += 1;
        let books = lives.into_books();
        for key in &books.acknowledged {
            if !books.delivered.contains_key(key) {
                costs += 1;
                assert!(
                    touched.contains(key),
                    "seed {seed}, {file}, bit {bit}: {key:?}"
                );
            }
        }
    }
    assert!(
        flips > 200 && costs > 20 && (5..100).contains(&seen_late),
        "{flips} flips cost {costs} spans, {seen_late} were not seen at the start"
    );
}

#[test]
fn a_log_of_a_newer_version_is_refused_and_left_as_it_is() {
    let stage = Stage::new();
    let plan = Plan::new(1);
    let lives = run_until(&plan, &stage, 30);
    let disk = lives.disk();
    let names = disk.list().expect("a disk that is well");
    let last = names.last().expect("a segment").clone();
    let mut bytes = disk.content(&last).expect("it is there");
    if bytes.len() < 64 {
        bytes = disk.content(&names[0]).expect("it is there");
    }
    bytes[8..12].copy_from_slice(&3_u32.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), &bytes[24..64]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    let newer = if disk.content(&last).is_some_and(|it| it.len() >= 64) {
        last
    } else {
        names[0].clone()
    };
    disk.set_content(&newer, bytes);
    let all = || -> Vec<_> { names.iter().map(|name| disk.content(name)).collect() };
    let before = all();
    let refused = start(&plan, &stage, disk, 2, 7, 1, lives.now());
    match refused.err() {
        Some(error @ StartError::Log(ReadError::Version { found: 3, .. })) => {
            assert!(error.to_string().contains("newer"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(all(), before);
}
