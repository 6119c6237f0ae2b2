//! What the settings ask of the machine: files, its memory, its volumes, its name.

use std::io::{self, Read};
use std::path::Path;

use crate::app::settings::ByteSize;

/// The machine, or a made-up one in tests.
pub trait Surroundings {
    /// The whole file, refused when longer than `bytes_max`.
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>>;
    /// The volume that `path` is or will be on.
    fn volume(&self, path: &Path) -> io::Result<Volume>;
    fn cores(&self) -> u16;
    /// An environment variable, for a policy file that names it.
    fn variable(&self, _name: &str) -> Option<String> {
        None
    }
}

/// Where files lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    pub size: ByteSize,
    /// It is tmpfs or ramfs: its bytes are this machine's memory, and the cgroup's of who wrote them.
    pub is_memory: bool,
}

/// The machine we run on.
#[derive(Debug, Clone, Copy)]
pub struct Machine;

/// Memory that this process may use at most, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryBound {
    pub size: ByteSize,
    pub from_cgroup: bool,
}

// linux/magic.h
const TMPFS_MAGIC: u32 = 0x0102_1994;
const RAMFS_MAGIC: u32 = 0x8584_58f6;
const SMALL_FILE_BYTES_MAX: u64 = 64 << 10;

impl Surroundings for Machine {
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            .take(bytes_max + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("longer than {}", ByteSize(bytes_max)),
            ));
        }
        Ok(bytes)
    }

    fn volume(&self, path: &Path) -> io::Result<Volume> {
        // The directory may be made later: the volume is that of what is there already.
        let path = std::path::absolute(path)?;
        let existing = path
            .ancestors()
            .find(|ancestor| ancestor.exists())
            .unwrap_or(Path::new("/"));
        let volume = rustix::fs::statvfs(existing)?;
        // Its type is an i64 here and an u32 there.
        let kind = rustix::fs::statfs(existing)?.f_type as u32;
        Ok(Volume {
            size: ByteSize(volume.f_blocks.saturating_mul(volume.f_frsize)),
            is_memory: [TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind),
        })
    }

    fn variable(&self, name: &str) -> Option<String> {
        // What is not text says nothing.
        std::env::var(name).ok()
    }

    fn cores(&self) -> u16 {
        std::thread::available_parallelism()
            .map_or(1, |cores| u16::try_from(cores.get()).unwrap_or(u16::MAX))
    }
}

/// The smallest of the machine's memory and the limits of all cgroups around this process.
/// `None` when the kernel tells nothing.
pub(super) fn memory_bound(surroundings: &impl Surroundings) -> Option<MemoryBound> {
    let machine = text(surroundings, "/proc/meminfo")
        .and_then(|meminfo| {
            let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(ByteSize(kib.saturating_mul(1024)))
        })
        .map(|size| MemoryBound {
            size,
            from_cgroup: false,
        });
    let cgroups = text(surroundings, "/proc/self/cgroup").unwrap_or_default();
    cgroups
        .lines()
        .flat_map(limit_files_of)
        .filter_map(|file| text(surroundings, &file)?.trim().parse().ok())
        .map(|bytes| MemoryBound {
            size: ByteSize(bytes),
            from_cgroup: true,
        })
        .chain(machine)
        .min_by_key(|bound| bound.size)
}

/// Files with the memory limits for a line of /proc/self/cgroup: the cgroup's own and its
/// ancestors', which hold as well. Version 2 (`0::/path`) and version 1 (`4:memory:/path`).
fn limit_files_of(line: &str) -> Vec<String> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next(), fields.next(), fields.next());
    let (root, file) = match controllers {
        Some("") => ("/sys/fs/cgroup", "memory.max"),
        Some(names) if names.split(',').any(|name| name == "memory") => {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let path = path.unwrap_or_default();
    // A container sees itself as the root, though its path may be told from outside.
    Path::new(path)
        .ancestors()
        .map(|ancestor| {
            let ancestor = ancestor.to_string_lossy();
            format!("{root}/{}/{file}", ancestor.trim_matches('/')).replace("//", "/")
        })
        .collect()
}

/// This machine's full name: what `hostname -f` finds, without asking DNS. The kernel's host name,
/// completed from the hosts file; on Kubernetes the kubelet writes `<ip> <fqdn> <host name>` there
/// for each pod of a StatefulSet.
pub(super) fn full_host_name(surroundings: &impl Surroundings) -> Option<String> {
    let name = text(surroundings, "/proc/sys/kernel/hostname")?;
    let name = name.trim();
    if name.is_empty() {
        return None;
    }
    let hosts = text(surroundings, "/etc/hosts").unwrap_or_default();
    let full = hosts.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut names = line.split_ascii_whitespace().skip(1);
        let first = names.next()?;
        (first.contains('.') && names.any(|alias| alias == name)).then_some(first)
    });
    Some(full.unwrap_or(name).to_owned())
}

fn text(surroundings: &impl Surroundings, path: &str) -> Option<String> {
    let bytes = surroundings
        .read(Path::new(path), SMALL_FILE_BYTES_MAX)
        .ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    struct Files(HashMap<&'static str, &'static str>);

    impl Surroundings for Files {
        fn read(&self, path: &Path, _: u64) -> io::Result<Vec<u8>> {
            let text = path.to_str().and_then(|path| self.0.get(path));
            text.map(|text| text.as_bytes().to_vec())
                .ok_or(io::ErrorKind::NotFound.into())
        }
        fn volume(&self, _: &Path) -> io::Result<Volume> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn cores(&self) -> u16 {
            1
        }
    }

    const MEMINFO: (&str, &str) = ("/proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n");

    #[track_caller]
    fn check_memory(files: &[(&'static str, &'static str)], bytes: u64, from_cgroup: bool) {
        let files = Files(files.iter().copied().chain([MEMINFO]).collect());
        let bound = memory_bound(&files).unwrap();
        assert_eq!(
            (bound.size, bound.from_cgroup),
            (ByteSize(bytes), from_cgroup)
        );
    }

    #[test]
    fn the_tightest_cgroup_around_us_bounds_memory() {
        let machine = 16_384 * 1024;
        check_memory(&[], machine, false);
        let v2 = ("/proc/self/cgroup", "0::/a/b\n");
        check_memory(
            &[v2, ("/sys/fs/cgroup/a/b/memory.max", "max\n")],
            machine,
            false,
        );
        check_memory(
            &[
                v2,
                ("/sys/fs/cgroup/a/b/memory.max", "5000\n"),
                ("/sys/fs/cgroup/a/memory.max", "4000\n"),
            ],
            4000,
            true,
        );
        // Inside a container of version 1 the path is told from outside.
        check_memory(
            &[
                (
                    "/proc/self/cgroup",
                    "5:devices:/x\n4:cpu,memory:/kubepods/x\n",
                ),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n"),
            ],
            3000,
            true,
        );
        // Both versions at once, as hybrid systems have it: version 2 has no controllers there.
        check_memory(
            &[
                ("/proc/self/cgroup", "4:memory:/a\n0::/\n"),
                ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000\n"),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n"),
            ],
            2000,
            true,
        );
        // Version 1 says "no limit" with a number beyond every machine.
        check_memory(
            &[
                ("/proc/self/cgroup", "4:memory:/\n"),
                (
                    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
            ],
            machine,
            false,
        );
    }

    #[test]
    fn a_pod_of_a_stateful_set_finds_its_full_name() {
        let name = |hosts| {
            let files = [
                ("/proc/sys/kernel/hostname", "worker-0\n"),
                ("/etc/hosts", hosts),
            ];
            full_host_name(&Files(files.into_iter().collect()))
        };
        assert_eq!(
            name(
                "127.0.0.1 localhost\n10.0.0.7\tworker-0.workers.obs.svc.cluster.local\tworker-0 # pod\n"
            ),
            Some("worker-0.workers.obs.svc.cluster.local".to_owned())
        );
        assert_eq!(name("10.0.0.7 worker-0\n"), Some("worker-0".to_owned()));
        assert_eq!(
            name("# 10.0.0.7 a.b worker-0\n"),
            Some("worker-0".to_owned())
        );
    }

    #[test]
    fn this_machine_has_memory_a_volume_and_a_name() {
        assert!(memory_bound(&Machine).unwrap().size > ByteSize::mib(16));
        assert!(full_host_name(&Machine).is_some());
        let volume = Machine.volume(Path::new("not/made/yet")).unwrap();
        assert!(volume.size > ByteSize::mib(1));
        assert!(Machine.cores() > 0);
    }

    #[test]
    fn a_file_longer_than_its_bound_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(Machine.read(&path, 5).unwrap(), b"12345");
        assert!(Machine.read(&path, 4).is_err());
    }
}
