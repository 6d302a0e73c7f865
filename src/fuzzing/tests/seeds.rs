//! What the corpora began with: messages as this program and the kernel write them.

use std::{fs, path::Path};

use crate::{daemon, desired::store, dns};

type Seed = (&'static str, String, Vec<u8>);

fn named(target: &'static str, seeds: Vec<(String, Vec<u8>)>) -> impl Iterator<Item = Seed> {
    seeds.into_iter().map(move |(name, bytes)| (target, name, bytes))
}

/// What this program writes.
pub(super) fn made() -> Vec<Seed> {
    let mut all: Vec<Seed> = named("frame", frames()).collect();
    all.extend(named("document", store::fuzz::seeds::all(&daemon::fuzz::furnished())));
    all.extend(named("dns", dns::fuzz::seeds()));
    #[cfg(target_os = "linux")]
    {
        use crate::platform::linux::fuzz::seeds;
        all.extend(named("netlink", seeds::made()));
        all.extend(named("uapi", seeds::uapi()));
    }
    all
}

/// What the kernel answers, in a namespace that is made for it. Needs root.
#[cfg(target_os = "linux")]
pub(super) fn asked() -> Vec<Seed> {
    named("netlink", crate::platform::linux::fuzz::seeds::asked_of_the_kernel()).collect()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn asked() -> Vec<Seed> {
    Vec::new()
}

/// The target that a seed is for.
pub(super) fn door(target: &str) -> fn(&[u8]) {
    match target {
        "frame" => crate::fuzzing::frame,
        "document" => crate::fuzzing::document,
        "dns" => crate::fuzzing::dns,
        #[cfg(target_os = "linux")]
        "netlink" => crate::fuzzing::netlink,
        #[cfg(target_os = "linux")]
        "uapi" => crate::fuzzing::uapi,
        other => panic!("there is no target {other}"),
    }
}

/// The golden files of the wire, and what is refused there.
fn frames() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wire");
    let mut all = Vec::new();
    for (folder, mark) in [(folder.clone(), ""), (folder.join("bad"), "bad-")] {
        for file in super::files(&folder).into_iter().filter(|file| file.is_file()) {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&file).unwrap();
            let body = text.trim_end().as_bytes();
            if body.len() > 1500 {
                continue;
            }
            let length = u32::try_from(body.len()).unwrap().to_le_bytes();
            all.push((format!("{mark}{name}"), [&length[..], body].concat()));
        }
    }
    all.push(("too-large".into(), vec![0xff; 8]));
    all.push(("cut-short".into(), vec![9, 0, 0, 0, b'{', b'"']));
    all
}
