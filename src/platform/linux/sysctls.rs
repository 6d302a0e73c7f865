//! Per-interface sysctls, through procfs.
//!
//! Owns where a [`Setting`] is and how its value is read and written. Leaves `all` and `default` alone: they are the host's (B22).
//!
//! Upholds I-03 through its caller: only settings of links that carry our mark are read or written.
//!
//! `/proc/sys/net` shows the network namespace of the thread that *opens* a file, not of the mount or of the process's start.

use std::{fs, io, path::PathBuf};

use nix::errno::Errno;

use super::errno::Fault;
use crate::{ids::IfName, object::Setting, platform::ActionError};

fn path(link: &IfName, setting: Setting) -> PathBuf {
    let (family, name) = setting.path();
    PathBuf::from(format!("/proc/sys/net/{family}/conf/{link}/{name}"))
}

/// The value of a setting; `None` when the kernel has no such setting for the link (IPv6 switched off, or the link is gone).
pub(super) fn read(link: &IfName, setting: Setting) -> Result<Option<i64>, Fault> {
    match fs::read_to_string(path(link, setting)) {
        Ok(text) => match text.trim().parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Fault::Garbled("the value is not a number")),
        },
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(Fault::from_io(&error)),
    }
}

pub(super) fn write(link: &IfName, setting: Setting, value: i64) -> Result<(), ActionError> {
    fs::write(path(link, setting), format!("{value}\n"))
        .map_err(|error| Fault::from_io(&error).to_action(&format!("set {:?} of {link}", setting.path().1)))
}

fn is_missing(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::ENODEV))
}
