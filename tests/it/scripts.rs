//! Every story of `fixtures/scripts` on the simulated node. A regression becomes a story here, never a seed.

use std::{fs, path::Path};

use crate::{
    any_story::story,
    script::{Play, SimStage, parse},
};

#[test]
fn every_story_ends_as_it_should() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scripts");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 8, "the stories are read from the wrong place");
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let steps = parse(&fs::read_to_string(&file).unwrap()).unwrap_or_else(|stop| panic!("{name}: {stop}"));
        assert!(steps.iter().any(|step| step.words[0] == "expect"), "{name} expects nothing");
        println!("{name}");
        let mut play = Play::on(SimStage::default());
        for step in &steps {
            play.step(step).unwrap_or_else(|stop| panic!("{name}: {stop}"));
        }
    }
}

/// The corpus of the fuzz target `script`, and everything that it ever found.
#[test]
fn whatever_a_story_of_the_corpus_says_the_node_becomes_right_afterwards() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let files = |name: &str| -> Vec<_> {
        let entries = fs::read_dir(folder.join(name).join("script")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let corpus = files("corpus");
    assert!(corpus.len() >= 20, "the corpus of script has {} cases", corpus.len());
    for file in corpus.into_iter().chain(files("findings")) {
        println!("{}", file.display());
        story(&fs::read(&file).unwrap());
    }
}
