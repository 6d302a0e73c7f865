//! Files that send the system's questions about a zone to the overlay (resolver(5) of macOS).
//!
//! One zone, one file: nobody else's configuration is touched (A25). They belong to no overlay, so they come before the first and outlive
//! the last: only the request that asked for one takes it back.

use std::{fmt::Write as _, path::Path};

use super::{Facts, Target};
use crate::{
    desired::{Document, ResolverRecord},
    ids::{FilePath, Zone},
    object::{FileSpec, Key, Mark, Spec},
};

pub(super) fn lower(document: &Document, facts: &Facts, target: &mut Target) {
    let Some(directory) = &facts.resolver_dir else { return };
    for (zone, record) in document.resolvers() {
        let Some(key) = file_of(directory, zone) else { continue };
        target.want(key, Spec::File(FileSpec { content: content(record, facts.mark) }), record.since);
    }
}

/// The file of a zone; `None` in a directory that no path of ours can be in.
pub fn file_of(directory: &Path, zone: &Zone) -> Option<Key> {
    // A zone is a DNS name and so one plain part of a path, whatever it says (B16).
    let path: FilePath = directory.join(zone.as_str()).to_string_lossy().parse().ok()?;
    Some(Key::File(path))
}

fn content(record: &ResolverRecord, mark: Mark) -> String {
    // The first line is how a file of ours is known; what follows is read by the system to the letter.
    let mut text =
        format!("# overlayd {mark}: written by overlayd, and removed by it\nnameserver {}\n", record.node_ip);
    if let Some(port) = record.port {
        let _ = writeln!(text, "port {port}");
    }
    text
}
