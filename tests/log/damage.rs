//! Files that are cut or changed: what is left comes back, the rest is counted, nothing panics and
//! nothing wrong is ever handed out.

use tailring::log::{ReadError, Recovered, SimulatedDisk};
use tailring::model::FragmentHash;

use crate::fixture::{Content, Log, Message, SMALL, decision, trace};

/// A record, its bytes in its file, and the fragment if it is one.
struct Written {
    file: String,
    start: usize,
    end: usize,
    record: Recovered,
    fragment: Option<Content>,
}

/// One shard's log of three segments with every kind of record; the last one is not sealed.
fn written() -> (SimulatedDisk, Vec<Written>) {
    let disk = SimulatedDisk::new(1);
    let (mut log, _, _) = Log::open(disk.clone(), SMALL);
    let mut all = Vec::new();
    for n in 0..9_u32 {
        let scopes: &[&str] = if n % 2 == 0 { &["a", "b"] } else { &["a"] };
        let message = Message::of(trace(n.into()), "shop", scopes, 2, 30);
        let content = log.fragment(0, &message);
        let hashes = vec![FragmentHash(n.into()), FragmentHash(1)];
        let decisions = vec![decision(n), decision(n + 1)];
        let records = [
            (content.extent, content.recovered(), Some(content)),
            (
                log.writers[0].verdict(&decision(n)),
                Recovered::Verdict(decision(n)),
                None,
            ),
            (
                log.writers[0].exported(trace(n.into()), &hashes),
                Recovered::Exported {
                    trace: trace(n.into()),
                    fragments: hashes,
                },
                None,
            ),
            (
                log.writers[0].checkpoint(&decisions),
                Recovered::Checkpoint(decisions),
                None,
            ),
        ];
        all.extend(records.map(|(extent, record, fragment)| Written {
            file: format!("{:010}.seg", extent.segment.0),
            start: extent.offset as usize,
            end: (extent.offset + extent.len) as usize,
            record,
            fragment,
        }));
    }
    log.flush(0).unwrap();
    assert!(all.iter().any(|it| it.file == MIDDLE));
    assert!(all.last().is_some_and(|it| it.file == LAST));
    (disk, all)
}

const MIDDLE: &str = "0000000002.seg";
const LAST: &str = "0000000003.seg";

fn records(written: &[Written], keep: impl Fn(&Written) -> bool) -> Vec<Recovered> {
    let kept = written.iter().filter(|it| keep(it));
    kept.map(|it| it.record.clone()).collect()
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_what_was_whole_comes_back() {
    let (disk, all) = written();
    let whole = disk.content(LAST).unwrap();
    for cut in 0..whole.len() {
        disk.set_content(LAST, whole[..cut].to_vec());
        let (mut log, found, report) = Log::open(disk.clone(), SMALL);
        assert_eq!(
            found,
            records(&all, |it| it.file != LAST || it.end <= cut),
            "cut at {cut}"
        );
        assert!(report.torn_tails <= 1 && report.damaged_records == 0);
        let kept = disk.content(LAST).unwrap();
        assert_eq!(report.torn_bytes as usize, cut - kept.len());
        assert!(cut < 64 || whole.starts_with(&kept));
        // Nothing is cut off an empty file: its life ended before the first write.
        let is_boundary = cut == kept.len();
        assert_eq!(report.torn_tails == 0, is_boundary, "cut at {cut}");

        // The log goes on, and the next start finds nothing torn.
        if cut % 16 == 0 {
            let next = log.writers[0].verdict(&decision(99));
            assert_eq!(next.segment.0, 4);
            log.flush(0).unwrap();
            let (_, again, report) = Log::open(disk.clone(), SMALL);
            assert_eq!(&again[..found.len()], &found[..]);
            assert_eq!(again[found.len()..], [Recovered::Verdict(decision(99))]);
            assert_eq!((report.torn_tails, report.damaged_records), (0, 0));
            tailring::log::Disk::unlink(&disk, "0000000004.seg").unwrap();
        }
    }
}

fn flip_every_byte(file: &str) {
    let (disk, all) = written();
    let whole = disk.content(file).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        disk.set_content(file, bytes);
        let (log, found, report) = Log::open(disk.clone(), SMALL);
        let is_hit = |it: &Written| it.file == file && (it.start..it.end).contains(&at);
        // A fragment is of no use without its headers.
        let is_headless = |it: &Written| {
            let fragment = it.fragment.as_ref().filter(|_| !is_hit(it));
            fragment.is_some_and(|it| log.volume.read(&[it.extent]).is_err())
        };
        let is_gone = |it: &Written| is_hit(it) || is_headless(it);
        assert_eq!(found, records(&all, |it| !is_gone(it)), "byte {at}");
        let headless = all.iter().filter(|it| is_headless(it)).count() as u64;
        let damaged = report.damaged_records + report.torn_tails;
        assert_eq!(damaged, 1 + headless, "byte {at}");
        let hits_last = all.last().is_some_and(is_hit);
        assert_eq!(
            report.torn_tails == 1,
            hits_last,
            "only an end can be torn; byte {at}"
        );

        // Of the others, only those whose header is hit cannot be read, and that is said.
        for fragment in all.iter().filter_map(|it| it.fragment.as_ref()) {
            match log.volume.read(&[fragment.extent]) {
                Ok(found) => assert_eq!(Content::from(&found[0]), *fragment),
                Err(ReadError::Damaged { segment, .. }) => {
                    assert_eq!(format!("{:010}.seg", segment.0), file);
                }
                Err(other) => panic!("{other}"),
            }
        }
        disk.set_content(file, whole.clone());
        if hits_last {
            // Recovery cut it; the others were left as they are.
            continue;
        }
        let (_, again, _) = Log::open(disk.clone(), SMALL);
        assert_eq!(again.len(), all.len());
    }
}

#[test]
fn a_byte_changed_in_a_sealed_segment_costs_one_record_and_what_refers_to_it() {
    flip_every_byte(MIDDLE);
}

#[test]
fn a_byte_changed_in_the_last_segment_costs_one_record_and_what_refers_to_it() {
    flip_every_byte(LAST);
}

#[test]
fn a_segment_of_another_place_or_of_garbage_yields_nothing() {
    let (disk, all) = written();
    let copy = disk.content(MIDDLE).unwrap();
    disk.set_content("0000000009.seg", copy.clone());
    disk.set_content("0000000010.seg", vec![0; 5000]);
    disk.set_content("0000000011.seg", vec![0xff; 5000]);
    disk.set_content("0000000012.seg", vec![]);
    disk.set_content("0000000013.seg", vec![7; 10]);
    // A moved frame: the whole content of a segment, one byte further.
    let mut shifted = copy[..64].to_vec();
    shifted.push(0);
    shifted.extend(&copy[64..]);
    disk.set_content(MIDDLE, shifted);
    let (log, found, report) = Log::open(disk, SMALL);
    assert_eq!(found, records(&all, |it| it.file != MIDDLE));
    assert_eq!(report.segments, 8);
    assert_eq!(report.torn_tails, 1, "nothing is torn off an empty file");
    assert!(report.damaged_records >= 4);
    // They do not stand in the way for ever: nothing in them is live.
    log.space.release(
        all.iter()
            .filter_map(|it| Some(it.fragment.as_ref()?.extent)),
    );
    assert_eq!(log.space.used_bytes(), report.bytes);
}
