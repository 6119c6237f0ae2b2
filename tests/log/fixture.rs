//! Messages, and a log over any disk, for the tests beside this file.

use std::io;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use tailring::log::{
    Commit, Disk, DiskOp, Moved, Recovered, RecoveryReport, Space, SpaceConfig, StoredFragment,
    Volume, Writer, recover,
};
use tailring::model::{
    Decision, Extent, FragmentHash, Moment, Threshold, TraceId, Verdict, VerdictId,
};
use tailring::wire::{FragmentView, Fragments, Scan, ScanLimits};

/// One request, scanned and grouped.
pub(crate) struct Message {
    bytes: Vec<u8>,
    scan: Scan,
    fragments: Fragments,
}

impl Message {
    pub(crate) fn new(resources: Vec<ResourceSpans>) -> Self {
        let bytes = ExportTraceServiceRequest {
            resource_spans: resources,
        }
        .encode_to_vec();
        let mut scan = Scan::default();
        scan.read(&bytes, &ScanLimits::default()).unwrap();
        let mut fragments = Fragments::default();
        fragments.group(&bytes, &scan);
        Self {
            bytes,
            scan,
            fragments,
        }
    }

    /// One fragment: a resource, and scopes with spans of one trace that are `padding` long.
    pub(crate) fn of(
        trace: TraceId,
        resource: &str,
        scopes: &[&str],
        spans: usize,
        padding: usize,
    ) -> Self {
        let scopes = scopes
            .iter()
            .map(|name| scope_spans(name, (0..spans).map(|n| span(trace, n as u64, padding))))
            .collect();
        Self::new(vec![resource_spans(resource, scopes)])
    }

    pub(crate) fn views(&self) -> impl Iterator<Item = FragmentView<'_>> {
        (0..self.fragments.all().len())
            .map(|index| self.fragments.view(&self.bytes, &self.scan, index))
    }

    pub(crate) fn view(&self) -> FragmentView<'_> {
        self.views().next().unwrap()
    }
}

pub(crate) fn trace(n: u64) -> TraceId {
    let mut bytes = [0xab; 16];
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    TraceId::new(bytes).unwrap()
}

pub(crate) fn span(trace: TraceId, n: u64, padding: usize) -> Span {
    Span {
        trace_id: trace.as_bytes().to_vec(),
        span_id: (n + 1).to_be_bytes().to_vec(),
        parent_span_id: if n == 0 { vec![] } else { vec![7; 8] },
        name: "x".repeat(padding),
        ..Span::default()
    }
}

pub(crate) fn scope_spans(name: &str, spans: impl Iterator<Item = Span>) -> ScopeSpans {
    ScopeSpans {
        scope: (!name.is_empty()).then(|| InstrumentationScope {
            name: name.to_owned(),
            ..InstrumentationScope::default()
        }),
        spans: spans.collect(),
        schema_url: String::new(),
    }
}

pub(crate) fn resource_spans(service: &str, scope_spans: Vec<ScopeSpans>) -> ResourceSpans {
    let attribute = KeyValue {
        key: "service.name".to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(service.to_owned())),
        }),
        ..KeyValue::default()
    };
    ResourceSpans {
        resource: (!service.is_empty()).then(|| Resource {
            attributes: vec![attribute],
            ..Resource::default()
        }),
        scope_spans,
        schema_url: String::new(),
    }
}

pub(crate) fn decision(n: u32) -> Decision {
    Decision {
        trace: trace(u64::from(n)),
        verdict: if n.is_multiple_of(2) {
            Verdict::Keep
        } else {
            Verdict::Drop
        },
        id: VerdictId(n),
        threshold: Threshold::from_bits(u64::from(n) << 20).filter(|_| !n.is_multiple_of(7)),
        policy: None,
        rules_version: 3,
        decided_at: Moment::from_unix_millis(u64::from(n)),
    }
}

pub(crate) fn handoff(n: u32) -> (Commit, Moved) {
    let fragments: Vec<_> = (0..n % 3).map(|it| FragmentHash(it.into())).collect();
    let commit = Commit {
        trace: trace(n.into()),
        generation: u64::from(n) << 40,
        first_seen: Moment::from_unix_millis(1),
        last_seen: Moment::from_unix_millis(u64::from(n) + 2),
        root_seen: n
            .is_multiple_of(2)
            .then(|| Moment::from_unix_millis(n.into()))
            .filter(|_| n > 0),
        fragments: fragments.clone(),
    };
    let moved = Moved {
        trace: trace(u64::from(n) + 1),
        generation: 7,
        to: u64::MAX - u64::from(n),
        fragments,
    };
    (commit, moved)
}

/// What a fragment must read back as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) extent: Extent,
    pub(crate) trace: TraceId,
    pub(crate) hash: FragmentHash,
    pub(crate) arrival: Moment,
    pub(crate) previous: Option<Extent>,
    pub(crate) spans: u32,
    pub(crate) has_root: bool,
    pub(crate) is_received: bool,
    pub(crate) resource: Vec<u8>,
    pub(crate) scopes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Content {
    pub(crate) fn of(
        view: &FragmentView<'_>,
        arrival: Moment,
        previous: Option<Extent>,
        extent: Extent,
    ) -> Self {
        let mut resource = Vec::new();
        view.resource().write_to(&mut resource);
        let scopes = view.scopes().map(|scope| {
            let (mut header, mut spans) = (Vec::new(), Vec::new());
            scope.header.write_to(&mut header);
            scope.write_spans_to(&mut spans);
            (header, spans)
        });
        Self {
            extent,
            trace: view.fragment.trace,
            hash: view.fragment.hash,
            arrival,
            previous,
            spans: view.fragment.spans,
            has_root: view.fragment.has_root,
            is_received: false,
            resource,
            scopes: scopes.collect(),
        }
    }

    pub(crate) fn recovered(&self) -> Recovered {
        Recovered::Fragment {
            extent: self.extent,
            trace: self.trace,
            hash: self.hash,
            arrival: self.arrival,
            spans: self.spans,
            span_bytes: self.span_bytes() as u32,
            has_root: self.has_root,
            is_received: self.is_received,
        }
    }

    pub(crate) fn span_bytes(&self) -> usize {
        self.scopes.iter().map(|(_, spans)| spans.len()).sum()
    }
}

impl From<&StoredFragment> for Content {
    fn from(stored: &StoredFragment) -> Self {
        let scopes = stored.scopes.iter();
        Self {
            extent: stored.extent,
            trace: stored.trace,
            hash: stored.hash,
            arrival: stored.arrival,
            previous: stored.previous,
            spans: stored.spans,
            has_root: stored.has_root,
            is_received: stored.is_received,
            resource: stored.resource_header.to_vec(),
            scopes: scopes
                .map(|scope| (scope.header.to_vec(), scope.spans.to_vec()))
                .collect(),
        }
    }
}

pub(crate) const SMALL: SpaceConfig = SpaceConfig {
    segment_bytes: 2048,
    log_max_bytes: 1 << 30,
    shards: 2,
};

/// Everything a worker has of a log.
pub(crate) struct Log<D: Disk> {
    pub(crate) volume: Arc<Volume<D>>,
    pub(crate) space: Arc<Space>,
    pub(crate) writers: Vec<Writer>,
}

impl<D: Disk> Log<D> {
    pub(crate) fn open(disk: D, config: SpaceConfig) -> (Self, Vec<Recovered>, RecoveryReport) {
        let volume = Volume::new(disk);
        let space = Space::new(config);
        let mut records = Vec::new();
        let report = recover(&volume, &space, &mut |record| records.push(record)).unwrap();
        let writers = (0..config.shards)
            .map(|shard| Writer::new(shard, Arc::clone(&space), 0x5eed))
            .collect();
        let log = Self {
            volume,
            space,
            writers,
        };
        (log, records, report)
    }

    pub(crate) fn fragment(&mut self, shard: usize, message: &Message) -> Content {
        let arrival = Moment::from_unix_millis(1_700_000_000_000);
        let view = message.view();
        let extent = self.writers[shard].fragment(&view, arrival, None);
        Content::of(&view, arrival, None, extent)
    }

    pub(crate) fn received(&mut self, shard: usize, message: &Message) -> Content {
        let arrival = Moment::from_unix_millis(1_600_000_000_000);
        let view = message.view();
        let extent = self.writers[shard].received(&view, arrival, None);
        Content {
            is_received: true,
            ..Content::of(&view, arrival, None, extent)
        }
    }

    pub(crate) fn flush(&mut self, shard: usize) -> io::Result<()> {
        for op in self.writers[shard].take() {
            if let Some(buffer) = self.volume.apply(op)? {
                self.writers[shard].recycle(buffer);
            }
        }
        Ok(())
    }

    pub(crate) fn seal(&mut self, shard: usize) {
        self.writers[shard].seal_current();
        self.flush(shard).unwrap();
    }

    /// What the thread for footers does.
    pub(crate) fn append_footers(&self) {
        while let Some(sealed) = self.volume.unfinished().try_take() {
            if let Some(footed) = self.volume.append_footer(sealed) {
                self.volume.append_trailer(footed);
            }
        }
    }

    /// Unlinks what may go; gives it.
    pub(crate) fn free(&self) -> Vec<u32> {
        let mut freed = Vec::new();
        for shard in 0..self.writers.len() {
            for segment in self.space.take_freed(shard as u16) {
                self.volume.apply(DiskOp::Unlink { segment }).unwrap();
                freed.push(segment.0);
            }
        }
        freed
    }

    pub(crate) fn read(&self, extents: &[Extent]) -> Vec<Content> {
        let found = self.volume.read(extents).unwrap();
        found.iter().map(Content::from).collect()
    }
}
