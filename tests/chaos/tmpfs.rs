//! A small volume of its own, for a disk that is really full. Needs the right to mount.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::FallocateFlags;
use tempfile::TempDir;

/// Unmounted when dropped: those who write to it must be gone by then.
pub struct Tmpfs {
    dir: TempDir,
}

impl Tmpfs {
    /// An error says why there can be none here.
    pub fn mount(bytes: u64) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting a tmpfs needs root".to_owned());
        }
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]);
        ran(mount.arg(dir.path()).output())?;
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Somebody else's file, with blocks of its own.
    pub fn take(&self, bytes: u64) -> PathBuf {
        self.try_to_take(bytes).unwrap()
    }

    /// The same; others may take some of it meanwhile.
    pub fn take_all_but(&self, bytes: u64) -> PathBuf {
        for _ in 0..1_000 {
            let volume = rustix::fs::statvfs(self.path()).unwrap();
            let free = volume.f_bavail * volume.f_frsize;
            match self.try_to_take(free - bytes) {
                Ok(path) => return path,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
            }
        }
        panic!("others take it faster than anybody can look");
    }

    fn try_to_take(&self, bytes: u64) -> io::Result<PathBuf> {
        let path = self.path().join("somebody-elses");
        let file = File::create(&path)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        Ok(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: gone from here in any case, and with its last file for good.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).output();
        if let Err(error) = ran(unmounted) {
            println!("{} stays mounted: {error}", self.path().display());
        }
    }
}

fn ran(output: io::Result<Output>) -> Result<(), String> {
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("mount cannot be run: {error}")),
    }
}
