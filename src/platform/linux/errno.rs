//! Turns what the kernel answers into the terms that the engine decides by.
//!
//! Owns the one table from errno values to [`ActionError`]. Leaves `EEXIST` to the callers: only they can look whose the thing is.
//!
//! Upholds I-14 (the kernel's words never hold a key), B20 (compared as values, never as text).
//!
//! `EINVAL` is not "unsupported": kernels answer it both for an unknown attribute and for a wrong value, so who tries a new
//! attribute has to interpret it.

use std::io;

use nix::errno::Errno;

use crate::platform::{ActionError, ObserveError};

/// Why a netlink request brought no answer, or a bad one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The kernel's errno and, where it has them, its own words (extended acknowledgement).
    Refused(Errno, String),
    /// No complete answer within so many milliseconds.
    Timeout(u64),
    /// A datagram that could not be understood.
    Garbled(&'static str),
}

impl Fault {
    pub(super) fn from_io(error: &io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        Fault::Refused(errno, String::new())
    }

    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Fault::Refused(errno, _) => Some(*errno),
            Fault::Timeout(_) | Fault::Garbled(_) => None,
        }
    }

    /// True when the object, or the link it hangs on, is not there.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENODEV | Errno::ENOENT | Errno::ENXIO | Errno::ESRCH | Errno::EADDRNOTAVAIL))
    }

    /// `what` is a fragment that fits after "failed to".
    pub(super) fn to_action(&self, what: &str) -> ActionError {
        let text = format!("{what}: {}", self.words());
        match self {
            Fault::Timeout(limit) => ActionError::Timeout(*limit),
            Fault::Garbled(_) => ActionError::Failed(text),
            Fault::Refused(..) if self.is_gone() => ActionError::Gone(text),
            Fault::Refused(Errno::EEXIST, _) => ActionError::Stranger(text),
            Fault::Refused(Errno::EPERM | Errno::EACCES | Errno::EROFS, _) => ActionError::Denied(text),
            Fault::Refused(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT, _) => {
                ActionError::Unsupported(text)
            }
            Fault::Refused(..) => ActionError::Failed(text),
        }
    }

    pub(super) fn to_observe(&self, what: &str) -> ObserveError {
        ObserveError { what: what.to_owned(), reason: self.words() }
    }

    pub(super) fn words(&self) -> String {
        match self {
            Fault::Refused(errno, words) if words.is_empty() => errno.desc().to_owned(),
            Fault::Refused(errno, words) => format!("{} ({words})", errno.desc()),
            Fault::Timeout(limit) => format!("no answer within {limit} ms"),
            Fault::Garbled(what) => (*what).to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno) -> ActionError {
        Fault::Refused(errno, String::new()).to_action("set link zl-a")
    }

    #[test]
    fn errnos_become_the_terms_the_engine_decides_by() {
        for errno in [Errno::ENODEV, Errno::ENOENT, Errno::ENXIO, Errno::ESRCH] {
            assert!(matches!(refused(errno), ActionError::Gone(_)), "{errno}");
        }
        for errno in [Errno::EPERM, Errno::EACCES, Errno::EROFS] {
            assert!(matches!(refused(errno), ActionError::Denied(_)), "{errno}");
        }
        assert!(matches!(refused(Errno::EOPNOTSUPP), ActionError::Unsupported(_)));
        assert!(matches!(refused(Errno::EADDRINUSE), ActionError::Failed(_)));
        assert_eq!(Fault::Timeout(5000).to_action("x"), ActionError::Timeout(5000));
    }
}
