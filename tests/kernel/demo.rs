//! The README's first command.

use std::process::Command;

use crate::lab::{isolated, need_tun};

#[test]
fn the_demonstration_ends_well_and_leaves_nothing_behind() {
    isolated(|| {
        need_tun();
        let story = Command::new(env!("CARGO_BIN_EXE_overlayd")).arg("demo").output().unwrap();
        let text = String::from_utf8_lossy(&story.stdout);
        let errors = String::from_utf8_lossy(&story.stderr);
        assert!(story.status.success(), "{text}\n{errors}");
        assert!(text.contains("All of it worked"), "{text}");
        let links = std::fs::read_to_string("/proc/net/dev").unwrap();
        assert!(!links.contains("zl-"), "{links}");
    });
}
