//! Per-interface sysctls, through procfs.
//!
//! Owns where a [`Setting`] is and how its value is read and written. Leaves `all` and `default` alone: they are the host's (B22).
//!
//! Upholds I-03 through its caller: only settings of links that carry our mark are written, and on the host's way out the one that lets
//! packets be sent on.
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

/// Makes a container's link ready for an IPv6 address; the calling thread is in the container's namespace. Container runtimes switch IPv6
/// off for links that are to come, and an advertisement of a stranger would bring routes that nobody asked for.
pub(super) fn prepare_ipv6(link: &str) -> Result<(), ActionError> {
    for (name, value) in [("disable_ipv6", "0\n"), ("accept_ra", "0\n")] {
        let path = format!("/proc/sys/net/ipv6/conf/{link}/{name}");
        // What has the right value already needs no permission to be written.
        if fs::read_to_string(&path).is_ok_and(|text| text == value) {
            continue;
        }
        fs::write(&path, value).map_err(|error| match Fault::from_io(&error) {
            fault if is_missing(&error) => {
                ActionError::Unsupported(format!("use IPv6 in the container: {}", fault.words()))
            }
            fault => fault.to_action(&format!("set {name} of {link} in the container")),
        })?;
    }
    Ok(())
}

/// Keeps the host's own IPv6 off a port of a bridge, before it comes up. Only the bridge has addresses; with a thousand ports the host would keep
/// thousands of routes to them, and walk them whenever one comes. It is saved work and nothing more, so that it failed is no failure.
pub(super) fn without_ipv6(port: &IfName) {
    if let Err(error) = fs::write(format!("/proc/sys/net/ipv6/conf/{port}/disable_ipv6"), "1\n") {
        tracing::debug!(%port, %error, "the host speaks IPv6 on a port");
    }
}

/// Whether IPv6 can be forwarded link by link. Every namespace has loopback, so its settings tell what the kernel has.
pub(super) fn has_force_forwarding() -> bool {
    PathBuf::from("/proc/sys/net/ipv6/conf/lo/force_forwarding").exists()
}

/// Whether the host forwards IPv6 for all links: read, and never written.
pub(super) fn forwards_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").is_ok_and(|text| text.trim() != "0")
}

fn is_missing(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::ENODEV))
}
