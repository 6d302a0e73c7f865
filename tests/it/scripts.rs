//! Every story of `fixtures/scripts` on the simulated node. A regression becomes a story here, never a seed.

use std::{fs, path::Path};

use overlayd::observed::Surroundings;

use crate::script::{Play, SimStage, parse};

/// Plays every story on a node with something around it.
fn play_all(surroundings: &Surroundings) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scripts");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 30, "the stories are read from the wrong place");
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let steps = parse(&fs::read_to_string(&file).unwrap());
        assert!(steps.iter().any(|step| step.words[0] == "expect"), "{name} expects nothing");
        println!("{name}");
        let mut play = Play::on(SimStage::amid(surroundings.clone()));
        for step in &steps {
            if let Err(missing) = play.step(step) {
                panic!("{name}:{}: the simulation can do everything, but not {}", step.line, missing.0);
            }
        }
    }
}

#[test]
fn every_story_ends_as_it_should() {
    play_all(&Surroundings::default());
}

#[test]
fn every_story_ends_as_it_should_where_ipv6_is_forwarded_link_by_link() {
    play_all(&Surroundings { force_forwarding: true, ..Surroundings::default() });
}
