//! Memory and CPU time of this process, read from the kernel when somebody looks.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Registers the process's own metrics under the names that every dashboard knows (`process_…`),
/// and gives back the registry in which all names begin with `tailring_`.
pub fn register<'a>(root: &'a mut Registry, binary: &'static str) -> &'a mut Registry {
    root.register_collector(Box::new(ProcessCollector));
    let tailring = root.sub_registry_with_prefix("tailring");
    tailring.register(
        "build",
        "What is running",
        Info::new([("version", env!("CARGO_PKG_VERSION")), ("binary", binary)]),
    );
    tailring
}

#[derive(Debug)]
struct ProcessCollector;

/// Bytes and seconds.
#[derive(Debug, PartialEq)]
struct Usage {
    resident_bytes: u64,
    anonymous_bytes: u64,
    cpu_seconds: f64,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        // Elsewhere than on Linux there is nothing to show.
        let Some(usage) = usage_of(&read("/proc/self/status"), &read("/proc/self/stat")) else {
            return Ok(());
        };
        gauge(
            &mut encoder,
            "process_resident_memory",
            "Memory of this process, file pages included",
            usage.resident_bytes,
        )?;
        gauge(
            &mut encoder,
            "process_anonymous_memory",
            "Memory of this process without file pages: what the memory limit is about",
            usage.anonymous_bytes,
        )?;
        let cpu = ConstCounter::new(usage.cpu_seconds);
        let metric = encoder.encode_descriptor(
            "process_cpu",
            "CPU time of this process, user and system",
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?;
        cpu.encode(metric)
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    bytes: u64,
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
    let metric = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), gauge.metric_type())?;
    gauge.encode(metric)
}

/// Reads /proc/self/status and /proc/self/stat.
fn usage_of(status: &str, stat: &str) -> Option<Usage> {
    let bytes = |field: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    // The name of the program stands in parentheses and may hold anything, also parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11);
    let ticks: u64 = times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?;
    Some(Usage {
        resident_bytes: bytes("VmRSS:")?,
        anonymous_bytes: bytes("RssAnon:")?,
        // USER_HZ is 100 on every architecture that Rust's std runs on under Linux.
        cpu_seconds: ticks as f64 / 100.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_whatever_the_program_is_called() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\n";
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 3 4 20 0 1 0 5 6 7";
        assert_eq!(
            usage_of(status, stat),
            Some(Usage {
                resident_bytes: 2 << 20,
                anonymous_bytes: 1 << 20,
                cpu_seconds: 2.0
            })
        );
        assert_eq!(usage_of("", ""), None);
    }
}
