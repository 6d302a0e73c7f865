//! The stories of `fixtures/scripts`, played on the simulated kernel and on the real one step by step: both hold the same after each step.
//!
//! What the simulation says of Linux is shown here. A story that cannot be told to a real kernel is named as skipped.

use std::{collections::BTreeMap, fs, path::Path};

use overlayd::{
    object::{Key, Spec, Subsystem},
    observed::Owner,
    platform::{Interest, sim::SimKernel},
};

use crate::{
    lab::{Node, isolated, need_tun, release_is_at_least, skip, skip_part},
    script::{Play, SimStage, Stop, parse, stage::Stage},
};

mod hand;
mod meddled;
mod stage;

use stage::RealStage;

/// Stories about peers that answer: nobody answers here.
const NEED_A_PARTNER: [&str; 2] = ["name-resolves.txt", "roaming.txt"];

fn simulated(kernel: &SimKernel) -> BTreeMap<Key, Spec> {
    let seen = kernel.node(|node| {
        let insides = node.objects().iter().filter_map(|(key, seen)| match (key, &seen.spec) {
            (Key::Inside(port), Spec::Inside(inside)) => Some((port.clone(), inside.clone())),
            _ => None,
        });
        let everything =
            Interest { subsystems: Subsystem::ALL.into(), insides: insides.collect(), ..Interest::default() };
        node.observe(&everything).objects
    });
    seen.into_iter().filter(|(_, seen)| seen.owner == Owner::Ours).map(|(key, seen)| (key, seen.spec)).collect()
}

/// A setting is there as soon as its link is, whether or not somebody has ever set it; the simulation has those that were set.
fn without_untold_settings(
    mut real: BTreeMap<String, String>,
    simulated: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    real.retain(|key, _| !key.starts_with("sysctl/") || simulated.contains_key(key));
    real
}

/// Plays a story on both; answers how many steps were compared.
fn play(file: &Path) -> usize {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let steps = parse(&fs::read_to_string(file).unwrap()).unwrap_or_else(|stop| panic!("{name}: {stop}"));
    let real = RealStage::new(&name);
    let (sim, witness) = (SimStage::amid(real.surroundings()), real.witness());
    let kernel = sim.kernel();
    let (mut on_sim, mut on_real) = (Play::on(sim), Play::on(real));
    let mut compared = 0;
    for step in &steps {
        let line = format!("{name}:{} {}", step.line, step.words.join(" "));
        println!("{line}");
        if step.words[0] == "handshake" {
            continue;
        }
        on_sim.step(step).unwrap_or_else(|stop| panic!("{line}: {stop}"));
        match on_real.step(step) {
            Ok(()) => {}
            // What cannot be looked at takes nothing from the story.
            Err(Stop::Unsupported(what)) if step.words[0] == "expect" => println!("{line}: {what}"),
            Err(Stop::Unsupported(what)) => {
                skip_part(&format!("{line}: {what}"));
                break;
            }
            Err(stop) => panic!("{line}: {stop}"),
        }
        let simulated = on_sim.cast().plain(&simulated(&kernel));
        let real = on_real.cast().plain(&witness.everything());
        assert_same(&line, &without_untold_settings(real, &simulated), &simulated);
        assert_eq!(on_real.troubled(), on_sim.troubled(), "{line}: the agents differ");
        compared += 1;
    }
    compared
}

fn assert_same(line: &str, real: &BTreeMap<String, String>, simulated: &BTreeMap<String, String>) {
    let mut differences = Vec::new();
    for key in real.keys().chain(simulated.keys().filter(|key| !real.contains_key(*key))) {
        let (is, should) = (real.get(key), simulated.get(key));
        if is != should {
            differences.push(format!("{key}\n  real:      {is:?}\n  simulated: {should:?}"));
        }
    }
    assert!(differences.is_empty(), "{line}: the kernels differ:\n{}", differences.join("\n"));
}

#[test]
fn every_story_goes_the_same_way_on_the_real_kernel() {
    isolated(|| {
        if std::env::var("OVERLAYD_TEST_DATA_PLANE").as_deref() != Ok("kernel") {
            need_tun();
        }
        if !release_is_at_least(5, 18) {
            skip("before Linux 5.18 nobody can see which of a container's addresses are ours");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scripts");
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        // Some stories alone, by their names.
        let only = std::env::var("OVERLAYD_SCRIPT").ok();
        let all = files.len();
        files.retain(|file| only.as_ref().is_none_or(|names| names.split(',').any(|name| file.ends_with(name))));
        if files.len() < all {
            skip_part(&format!("{} of {all} stories, which OVERLAYD_SCRIPT does not name", all - files.len()));
        }
        let (mut stories, mut compared) = (0, 0);
        for file in files {
            if NEED_A_PARTNER.iter().any(|name| file.ends_with(name)) {
                skip_part(&format!("{}: it needs a peer that answers", file.file_name().unwrap_or_default().display()));
                continue;
            }
            let inside = runtime.handle().clone();
            compared += Node::new().run(move || {
                let _inside = inside.enter();
                play(&file)
            });
            stories += 1;
        }
        println!("MEASURED: {stories} stories, equal after each of {compared} steps");
        assert!(only.is_some() || stories >= 28, "the stories are read from the wrong place");
    });
}
