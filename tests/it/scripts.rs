//! Every story of `fixtures/scripts` on the simulated node. A regression becomes a story here, never a seed.

use std::{fs, path::Path};

use overlayd::observed::Surroundings;

use crate::{
    any_story::story,
    script::{Play, SimStage, Stop, parse},
};

/// Plays every story on a node with something around it.
fn play_all(surroundings: &Surroundings) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scripts");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 30, "the stories are read from the wrong place");
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let steps = parse(&fs::read_to_string(&file).unwrap()).unwrap_or_else(|stop| panic!("{name}: {stop}"));
        assert!(steps.iter().any(|step| step.words[0] == "expect"), "{name} expects nothing");
        println!("{name}");
        let mut play = Play::on(SimStage::amid(surroundings.clone()));
        for step in &steps {
            play.step(step).unwrap_or_else(|stop| panic!("{name}: {stop}"));
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

/// Lines that come after `ensure overlay`, a segment web, a container a that has ended and b that has the same pid.
#[test]
fn a_step_that_cannot_be_done_is_told_with_its_line() {
    let before = "ensure overlay\nensure segment web\ncontainer a\nend a\ncontainer b pid-of=a\n";
    let wrong = [
        "attach nobody to web",
        "detach nobody",
        "withdraw b",
        "publish nobody 80 at=8080",
        "prune live=nothing",
        "container a",
        "container c pid-of=a",
        "container c pid-of=nobody",
        "end a",
        "end nobody",
        "attach b to web ip=192.0.2.1",
        "refused ensure segment web",
        "drift delete member b",
        "drift delete port b",
        "drift set link segment web mtu=1",
        "drift set firewall intact=false",
        "expect published 8080 to b",
        "expect present inside b global",
        "expect present member b global",
        "expect blocked firewall",
    ];
    let malformed = [
        "attach b",
        "attach b to w\u{7}eb",
        "attach b to web isolation=r\u{7}ed",
        "refused refused round",
        "publish b 80 at=65536",
        "publish b eighty at=80",
        "publish b 80 at=80 protocol=word",
        "ensure segment web mode=none",
        "ensure peer a-name-of-more-than-thirty-two-letters",
        "handshake \u{e4}",
        "forwarding dropped ipv5",
        "way-out a/b comes",
        "way-out up stays",
        "stranger member 10.0.0.1",
        "fault next cut nothing",
        "fault after many fail",
        "drift delete setting nothing link",
        "drift delete inside",
        "drift set peer p ips=10.0.0.0/8/9",
        "drift set peer p mtu=3",
        "expect drift many",
        "expect anything",
        "expect",
        "nothing",
    ];
    let wrong = wrong.into_iter().map(|line| (line, false));
    for (line, is_malformed) in wrong.chain(malformed.into_iter().map(|line| (line, true))) {
        let steps = parse(&format!("{before}{line}")).unwrap();
        let mut play = Play::on(SimStage::default());
        let mut outcomes = steps.iter().map(|step| play.step(step));
        assert!(outcomes.by_ref().take(5).all(|outcome| outcome.is_ok()));
        match (outcomes.next(), is_malformed) {
            (Some(Err(Stop::Malformed(why))), true) | (Some(Err(Stop::Wrong(why))), false) => {
                assert!(why.starts_with("line 6: "), "{line}: {why}");
            }
            (outcome, _) => panic!("{line}: {outcome:?}"),
        }
    }
}
