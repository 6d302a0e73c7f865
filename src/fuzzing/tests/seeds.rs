//! What the corpora began with: messages as this program and the kernel write them.

use std::{fs, path::Path};

use crate::{daemon, desired::store};

type Seed = (&'static str, String, Vec<u8>);

pub(super) fn all() -> Vec<Seed> {
    let named = |target| move |(name, bytes): (String, Vec<u8>)| (target, name, bytes);
    let mut all: Vec<Seed> = frames().into_iter().map(named("frame")).collect();
    all.extend(store::fuzz::seeds::all(&daemon::fuzz::furnished()).into_iter().map(named("document")));
    #[cfg(target_os = "linux")]
    {
        use crate::platform::linux::fuzz::seeds;
        all.extend(seeds::netlink().into_iter().map(named("netlink")));
        all.extend(seeds::uapi().into_iter().map(named("uapi")));
    }
    all
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
