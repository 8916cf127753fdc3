//! The operating system's errors in words, with the name that manuals and search engines know.

use std::io;

use rustix::io::Errno;

#[rustfmt::skip] // One line each reads better as a table.
const NAMES: [(Errno, &str); 35] = [
    (Errno::ACCESS, "EACCES"), (Errno::ADDRINUSE, "EADDRINUSE"), (Errno::ADDRNOTAVAIL, "EADDRNOTAVAIL"),
    (Errno::AGAIN, "EAGAIN"), (Errno::BADF, "EBADF"), (Errno::BUSY, "EBUSY"), (Errno::CONNREFUSED, "ECONNREFUSED"),
    (Errno::CONNRESET, "ECONNRESET"), (Errno::DQUOT, "EDQUOT"), (Errno::EXIST, "EEXIST"), (Errno::FBIG, "EFBIG"),
    (Errno::HOSTUNREACH, "EHOSTUNREACH"), (Errno::INTR, "EINTR"), (Errno::INVAL, "EINVAL"), (Errno::IO, "EIO"),
    (Errno::ISDIR, "EISDIR"), (Errno::LOOP, "ELOOP"), (Errno::MFILE, "EMFILE"), (Errno::MLINK, "EMLINK"),
    (Errno::NAMETOOLONG, "ENAMETOOLONG"), (Errno::NETUNREACH, "ENETUNREACH"), (Errno::NFILE, "ENFILE"),
    (Errno::NOBUFS, "ENOBUFS"), (Errno::NODEV, "ENODEV"), (Errno::NOENT, "ENOENT"), (Errno::NOMEM, "ENOMEM"),
    (Errno::NOSPC, "ENOSPC"), (Errno::NOTDIR, "ENOTDIR"), (Errno::NXIO, "ENXIO"), (Errno::PERM, "EPERM"),
    (Errno::PIPE, "EPIPE"), (Errno::ROFS, "EROFS"), (Errno::STALE, "ESTALE"), (Errno::TIMEDOUT, "ETIMEDOUT"),
    (Errno::XDEV, "EXDEV"),
];

/// An I/O error in lower case, without the system's number: `connection refused`.
pub fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// An I/O error in words, with its name: `too many open files (EMFILE)`.
pub fn cause(error: &io::Error) -> String {
    let words = words(error);
    match (name(error), error.raw_os_error()) {
        (Some(name), _) => format!("{words} ({name})"),
        (None, Some(number)) => format!("{words} (errno {number})"),
        (None, None) => words,
    }
}

fn name(error: &io::Error) -> Option<&'static str> {
    let number = error.raw_os_error()?;
    NAMES.iter().find(|(errno, _)| errno.raw_os_error() == number).map(|(_, name)| *name)
}

/// True if the process or the system has run out of something that comes back: descriptors or memory.
pub fn is_exhaustion(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN, Errno::INTR];
    error.raw_os_error().is_some_and(|number| exhausted.iter().any(|errno| errno.raw_os_error() == number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_the_system_says_what_it_is() {
        let cases = [
            (Errno::MFILE, "too many open files (EMFILE)"),
            (Errno::NOSPC, "no space left on device (ENOSPC)"),
            (Errno::IO, "input/output error (EIO)"),
            (Errno::ACCESS, "permission denied (EACCES)"),
            (Errno::ROFS, "read-only file system (EROFS)"),
        ];
        for (errno, want) in cases {
            assert_eq!(cause(&errno.into()), want);
        }
        assert!(cause(&io::Error::from_raw_os_error(99_999)).ends_with("(errno 99999)"));
        assert_eq!(cause(&io::Error::other("what it was")), "what it was");
        assert!(is_exhaustion(&Errno::MFILE.into()));
        assert!(!is_exhaustion(&Errno::IO.into()));
        assert!(!is_exhaustion(&io::ErrorKind::UnexpectedEof.into()));
    }
}
