//! A file of lines that is never left with half a line.
//!
//! It is opened for every line: a file that was renamed or deleted (logrotate) is made anew and
//! nothing goes to one that nobody sees. The lock is held meanwhile, so that cutting back half a
//! line cannot cut into what another process just wrote.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct LineFile {
    path: PathBuf,
}

/// Read at once while looking back for the last end of a line.
const BLOCK_BYTES: u64 = 64 << 10;

impl LineFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Whether it can be opened; makes it if it is not there.
    pub(super) fn check(&self) -> io::Result<()> {
        self.open().map(drop)
    }

    /// Appends the line (with its newline) as a whole, and has it on the disk, or leaves the file
    /// as it was.
    pub(super) fn append(&self, line: &[u8]) -> io::Result<()> {
        let mut file = self.open()?;
        if !file.metadata()?.is_file() {
            // A pipe or a device: cannot be locked in a useful way, cut, or synced.
            return file.write_all(line);
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "another process is writing to the file",
                ));
            }
            Err(TryLockError::Error(e)) => return Err(e),
        }
        let end = whole_lines(&mut file)?;
        append_whole(&mut file, end, line)
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&self.path)
    }
}

/// What writing needs of a file; the test's runs out of space.
trait Appended: Write {
    fn cut(&mut self, length: u64) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

impl Appended for File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

fn append_whole(file: &mut impl Appended, end: u64, line: &[u8]) -> io::Result<()> {
    let result = file.write_all(line).and_then(|()| file.sync());
    if result.is_err() {
        // If this fails as well, the next append cuts it.
        if let Err(e) = file.cut(end) {
            tracing::warn!(error = %e, "half a line could not be cut back");
        }
    }
    result
}

/// Cuts half a line off the end, which a write that failed or a process that died left there. Its
/// batch was not acknowledged and comes again. Returns the length.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        let mut block = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        Read::by_ref(file)
            .take(end - start)
            .read_to_end(&mut block)?;
        if let Some(newline) = block.iter().rposition(|byte| *byte == b'\n') {
            end = start + newline as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        tracing::warn!(
            bytes = length - end,
            "cut half a line off the end of the file"
        );
        file.set_len(end)?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes and no more.
    struct Small {
        content: Vec<u8>,
        room: usize,
        syncs: bool,
    }

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room - self.content.len());
            self.content.extend_from_slice(&bytes[..taken]);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Appended for Small {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            self.content.truncate(length as usize);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            if self.syncs {
                Ok(())
            } else {
                Err(io::Error::other("lost"))
            }
        }
    }

    #[test]
    fn a_short_write_leaves_no_half_line() {
        let mut file = Small {
            content: b"one\n".to_vec(),
            room: 7,
            syncs: true,
        };
        let error = append_whole(&mut file, 4, b"two\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.content, b"one\n");
        file.room = 8;
        append_whole(&mut file, 4, b"two\n").unwrap();
        assert_eq!(file.content, b"one\ntwo\n");
    }

    #[test]
    fn a_line_that_did_not_reach_the_disk_is_not_kept() {
        let mut file = Small {
            content: Vec::new(),
            room: 100,
            syncs: false,
        };
        append_whole(&mut file, 0, b"one\n").unwrap_err();
        assert_eq!(file.content, b"");
    }

    fn check_healed(before: &[u8], after: &[u8]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("traces.jsonl");
        std::fs::write(&path, before).unwrap();
        LineFile::new(path.clone()).append(b"new\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [after, b"new\n"].concat());
    }

    #[test]
    fn half_a_line_of_a_dead_process_is_cut() {
        check_healed(b"", b"");
        check_healed(b"one\n", b"one\n");
        check_healed(b"one\n{\"half", b"one\n");
        check_healed(b"{\"half", b"");
        let half = vec![b'x'; 3 * BLOCK_BYTES as usize + 7];
        check_healed(&[b"one\n", &half[..]].concat(), b"one\n");
        check_healed(&half, b"");
        // The newline is the first byte of a block.
        check_healed(
            &[b"one\n", &half[..BLOCK_BYTES as usize - 1]].concat(),
            b"one\n",
        );
    }

    #[test]
    fn a_renamed_file_is_made_anew_and_a_locked_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("a"), dir.path().join("b"));
        let file = LineFile::new(path.clone());
        file.append(b"one\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        file.append(b"two\n").unwrap();
        assert_eq!(std::fs::read(&old).unwrap(), b"one\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"two\n");

        let other = File::open(&path).unwrap();
        other.lock().unwrap();
        let error = file.append(b"three\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        other.unlock().unwrap();
        file.append(b"three\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two\nthree\n");
    }
}
