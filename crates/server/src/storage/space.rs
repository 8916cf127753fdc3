//! Whether the file system has room to spare.
//!
//! The engine poisons itself when the disk is full, and its background threads need room to merge tables before they
//! can free any. So we refuse writes while a reserve is still left. Asking costs a system call; the answer is used for
//! 100 ms or until a quarter of the reserve has been written, whichever comes first.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::errno::cause;

const ANSWER_LASTS: Duration = Duration::from_millis(100);

/// Watches the file system of one directory.
pub(super) struct SpaceGuard {
    directory: PathBuf,
    reserve_bytes: u64,
    answer: Option<Answer>,
}

struct Answer {
    asked: Instant,
    free_bytes: u64,
    written_bytes: u64,
}

impl SpaceGuard {
    pub(super) fn new(directory: &Path, reserve_bytes: u64) -> SpaceGuard {
        SpaceGuard { directory: directory.to_path_buf(), reserve_bytes, answer: None }
    }

    /// Admits a write of `bytes`, or says in words why not.
    pub(super) fn admit(&mut self, bytes: u64) -> Result<(), String> {
        let free_bytes = self.free_bytes().map_err(|error| cause(&error))?;
        if free_bytes < self.reserve_bytes.saturating_add(bytes) {
            return Err(format!(
                "no space left on device: {free_bytes} bytes free, {} are kept in reserve",
                self.reserve_bytes
            ));
        }
        if let Some(answer) = &mut self.answer {
            answer.written_bytes += bytes;
        }
        Ok(())
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        if let Some(answer) = &self.answer {
            if answer.asked.elapsed() < ANSWER_LASTS && answer.written_bytes <= self.reserve_bytes / 4 {
                return Ok(answer.free_bytes.saturating_sub(answer.written_bytes));
            }
        }
        let status = rustix::fs::statvfs(&self.directory)?;
        let free_bytes = status.f_bavail.saturating_mul(status.f_frsize);
        self.answer = Some(Answer { asked: Instant::now(), free_bytes, written_bytes: 0 });
        Ok(free_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_while_the_reserve_is_free() {
        let directory = std::env::temp_dir();
        assert!(SpaceGuard::new(&directory, 0).admit(1).is_ok());
        let refusal = SpaceGuard::new(&directory, u64::MAX).admit(1).unwrap_err();
        assert!(refusal.starts_with("no space left on device: "), "{refusal}");
        assert!(SpaceGuard::new(Path::new("/does/not/exist"), 0).admit(1).is_err());
    }
}
