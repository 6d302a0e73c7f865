//! What must hold of any text: it is a story or says why it is none, and whatever happens in it the node becomes right afterwards.
//!
//! For the fuzz target `script`, and for the test that replays its corpus. A claim that does not hold is a panic.

use std::{collections::BTreeSet, net::IpAddr};

use overlayd::{
    desired::{Document, Place},
    object::{Key, Spec},
    observed::{Observed, Owner},
    platform::sim::SimKernel,
};

use crate::script::{Play, SimStage, Stop, parse, stage::Stage};

/// Afterwards: the longest pause between two tries of an action is half a minute, give or take, and each round can uncover what the one before
/// could not do yet.
const ENDING: &str =
    "notice\nwait 61s\nlook\nwait 61s\nlook\nwait 61s\nlook\nwait 61s\nlook\nexpect in-sync\nexpect plan empty";

/// Plays the text as far as it can be played.
pub fn story(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let steps = match parse(text) {
        Ok(steps) => steps,
        Err(stop) => return assert_is_told(&stop),
    };
    let stage = SimStage::default();
    let kernel = stage.kernel();
    let mut play = Play::on(stage);
    for step in &steps {
        let before = strangers(&kernel);
        match play.step(step) {
            Ok(()) => {}
            Err(Stop::Unsupported(what)) => panic!("the simulation can do everything, but not {what}"),
            Err(stop) => {
                assert_is_told(&stop);
                // What the story says is not so; the agent has to go on all the same.
                if !matches!(stop, Stop::Wrong(_) | Stop::Refused(_)) {
                    break;
                }
            }
        }
        if is_the_agents(&step.words[0]) {
            assert!(strangers(&kernel) == before, "line {}: what is a stranger's was touched", step.line);
        }
    }
    kernel.heal();
    for (key, _) in strangers(&kernel) {
        kernel.node(|node| node.remove(&key));
    }
    for step in parse(ENDING).unwrap() {
        play.step(&step).unwrap_or_else(|stop| panic!("everything works again, and still: {stop}"));
    }
    assert_is_of_the_living(&kernel, &play.document());
}

/// What is there of containers is that of the containers that the document has: a pair, a side, addresses in the firewall.
fn assert_is_of_the_living(kernel: &SimKernel, document: &Document) {
    let mut networks = BTreeSet::new();
    let mut addresses: BTreeSet<&IpAddr> = BTreeSet::new();
    for record in document.attachments().values() {
        if let Place::Container { netns } = &record.place {
            networks.insert(netns);
            addresses.extend(record.held());
        }
    }
    kernel.node(|node| {
        for (key, seen) in node.objects() {
            match (key, &seen.spec) {
                (_, Spec::Inside(inside)) => assert!(networks.contains(&inside.netns), "{key} is of nobody"),
                (Key::Member(address), _) => assert!(addresses.contains(address), "{key} is nobody's"),
                _ => {}
            }
        }
    });
}

/// A refusal has words, and says where.
fn assert_is_told(stop: &Stop) {
    let text = stop.to_string();
    assert!(text.starts_with("line "), "{text}");
}

/// Steps in which only the agent does something.
fn is_the_agents(word: &str) -> bool {
    matches!(
        word,
        "ensure"
            | "remove"
            | "attach"
            | "detach"
            | "withdraw"
            | "prune"
            | "publish"
            | "unpublish"
            | "refused"
            | "round"
            | "look"
            | "hint"
            | "notice"
            | "crash"
            | "suspend"
            | "resolve"
            | "wait"
            | "expect"
    )
}

fn strangers(kernel: &SimKernel) -> Vec<(Key, Observed)> {
    let is_theirs = |seen: &Observed| matches!(seen.owner, Owner::Stranger(_));
    kernel.node(|node| {
        let all = node.objects().iter().filter(|(_, seen)| is_theirs(seen));
        all.map(|(key, seen)| (key.clone(), seen.clone())).collect()
    })
}
