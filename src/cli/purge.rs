use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{
    args::InstanceArguments,
    node,
    outcome::{Outcome, block_on, print},
};
use crate::{
    desired::{Document, store},
    reconcile::{target::Scope, view::Round},
};

/// Removes links, addresses, routes and devices with this instance's mark. The document stays, so that the next start of the agent brings
/// them back, unless `--forget` removes it too.
#[derive(Args)]
pub struct PurgeArguments {
    #[command(flatten)]
    instance: InstanceArguments,
    /// Also remove the state directory, and with it the document and the node's key
    #[arg(long)]
    forget: bool,
}

pub fn purge(arguments: &PurgeArguments) -> Outcome {
    let state_dir = &arguments.instance.state_dir;
    // While an agent runs it would bring everything back at once.
    let lock = if state_dir.exists() { Some(store::DirLock::take(state_dir)?) } else { None };
    let round = block_on(empty_the_node(&arguments.instance))??;
    if let Some(why) = round.blind {
        return Err(why.into());
    }
    let mut left = 0;
    for action in &round.actions {
        match &action.error {
            None => print(&format!("removed {}\n", action.key)),
            Some(why) => {
                left += 1;
                print(&format!("not removed {}: {why}\n", action.key));
            }
        }
    }
    if left > 0 {
        return Err(format!("{left} objects could not be removed; run purge again").into());
    }
    if arguments.forget && state_dir.exists() {
        let path: PathBuf = std::fs::canonicalize(state_dir)?;
        if !path.join("FORMAT").is_file() {
            return Err(format!("{} holds no overlayd store and was left alone", path.display()).into());
        }
        std::fs::remove_dir_all(&path)?;
        print(&format!("removed {}\n", path.display()));
    }
    drop(lock);
    if round.actions.is_empty() {
        print("nothing on this node carries this instance's mark\n");
    }
    Ok(ExitCode::SUCCESS)
}

/// An empty document is all it takes: the loop removes what it does not want.
async fn empty_the_node(instance: &InstanceArguments) -> Result<Round, Box<dyn std::error::Error>> {
    let mut engine = node::engine(instance, Document::default())?;
    Ok(engine.round(Scope::Everything).await)
}
