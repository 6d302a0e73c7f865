//! Files that tell programs which configure links that ours are not theirs (A10, A11).

use super::{Facts, Target};
use crate::{
    desired::OverlayRecord,
    ids::FilePath,
    object::{FileSpec, Key, Mark, Spec},
    observed::Neighbour,
};

/// Our links by name, as the neighbours' patterns have it: devices and bridges, ports of services, ports of the node's slice.
const OUR_NAMES: [&str; 3] = ["zl-*", "veth-*-s", "veth-*-g"];

pub(super) fn lower(overlay: &OverlayRecord, facts: &Facts, target: &mut Target) {
    for neighbour in &facts.surroundings.neighbours {
        for (place, content) in files(*neighbour, facts.mark) {
            // A directory with a name that is no text is none that another program would look in.
            let path = facts.run_dir.join(place).to_string_lossy().into_owned();
            let Ok(path) = path.parse::<FilePath>() else { continue };
            target.want(Key::File(path), Spec::File(FileSpec { content }), overlay.since);
        }
    }
}

/// Places below the run directory, and what is to be there.
fn files(neighbour: Neighbour, mark: Mark) -> Vec<(String, String)> {
    // The first line is how a file of ours is known.
    let header = format!("# overlayd {mark}: overlayd configures these links; written by it, and removed by it\n");
    let file = |place: String, body: String| (place, format!("{header}{body}"));
    match neighbour {
        // It is spoken to.
        Neighbour::Resolved => Vec::new(),
        Neighbour::Networkd => vec![
            file(
                format!("systemd/network/10-overlayd-{mark}.network"),
                format!("[Match]\nName={}\n\n[Link]\nUnmanaged=yes\n", OUR_NAMES.join(" ")),
            ),
            file(
                format!("systemd/networkd.conf.d/10-overlayd-{mark}.conf"),
                "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n".into(),
            ),
        ],
        Neighbour::NetworkManager => {
            let names: Vec<String> = OUR_NAMES.iter().map(|name| format!("interface-name:{name}")).collect();
            vec![file(
                format!("NetworkManager/conf.d/10-overlayd-{mark}.conf"),
                format!("[device-overlayd-{mark}]\nmatch-device={}\nmanaged=0\n", names.join(",")),
            )]
        }
    }
}
