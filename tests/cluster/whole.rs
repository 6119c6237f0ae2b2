//! Everything is well: nothing lost, doubled or split at 20,000 spans a second, also when every
//! request comes twice.

use std::time::Duration;

use crate::cluster::{Cluster, LoadEnd, Plan};

async fn a_minute(args: &[&str]) {
    let mut cluster = Cluster::start(Plan::default()).await;
    let load = cluster.routed_load("20k", 60, args);
    let load = LoadEnd::of(load, Duration::from_secs(120)).await;
    assert!(load.succeeded, "{:#}", load.report);
    let sent = load.count("spans_sent");
    assert!(sent >= 1_200_000, "{sent} spans are no minute at 20,000/s");
    let times = if args.is_empty() { 1 } else { 2 };
    let repeated = load.count("repeats_acknowledged");
    assert_eq!(repeated, (times - 1) * load.count("batches_sent"));

    cluster.settled(Duration::from_secs(30)).await;
    let router = cluster.routers[0].metrics().await;
    for counter in ["received", "accepted"] {
        let counted = router.sum(&format!("tailring_router_spans_{counter}_total"), &[]);
        assert_eq!(counted, times * sent, "{counter}");
    }
    assert_eq!(router.sum("tailring_router_spans_surrogate_total", &[]), 0);
    let spans = "tailring_worker_spans_total";
    let fate = async |fate: &str| {
        let label = format!("fate=\"{fate}\"");
        cluster.workers_sum(spans, &[&label]).await
    };
    assert_eq!(fate("appended").await + fate("late_kept").await, sent);
    assert_eq!(fate("duplicate").await, (times - 1) * sent);
    for other in ["forwarded", "custody", "late_dropped"] {
        assert_eq!(fate(other).await, 0, "{other}");
    }
    for counter in ["worker_spans_exported", "export_spans"] {
        let counter = format!("tailring_{counter}_total");
        assert_eq!(cluster.workers_sum(&counter, &[]).await, sent, "{counter}");
    }
    for worker in &cluster.workers {
        // Shares are even: nobody is idle, or routing was not by the ring.
        let share = worker
            .metric("tailring_worker_spans_exported_total", &[])
            .await;
        assert!(share > sent / 4, "{} has {share} of {sent}", worker.name);
    }
    let found = cluster.verify("load").await;
    assert_eq!(
        (found.sent, found.acknowledged, found.got),
        (sent, sent, sent)
    );
    assert_eq!(
        (found.lost, found.doubled, found.split, found.unknown),
        (0, 0, 0, 0)
    );
}

#[tokio::test]
async fn a_minute_at_20000_spans_a_second_loses_doubles_and_splits_nothing() {
    a_minute(&[]).await;
}

#[tokio::test]
async fn a_minute_in_which_every_request_comes_twice_doubles_nothing() {
    a_minute(&["--repeat-requests"]).await;
}
