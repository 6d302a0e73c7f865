use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    args::{DEFAULT_SOCKET, DEFAULT_STATE_DIR, InstanceArguments, StartedWith},
    node,
    outcome::{DIFFERS, Outcome, block_on, print},
};
use crate::{
    client::{Client, ClientError},
    clock::{Clock, SystemClock},
    desired::{Document, store},
    object::{Key, Mark},
    observed::Observation,
    reconcile::{
        explain::Diff,
        target::{Facts, Served},
    },
    wire::{AgentRequest, AgentResponse},
};

/// Longest wait for a running agent before the store and the node are looked at without it.
const AGENT_WITHIN: Duration = Duration::from_secs(3);

#[derive(Args)]
pub struct DiffArguments {
    /// The running agent to ask [default: /run/overlayd/overlayd.sock]
    #[arg(long, env = "OVERLAYD_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Read this document and look at the node without asking an agent [default, when no agent answers: /var/lib/overlayd]
    #[arg(long, env = "OVERLAYD_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    started: StartedWith,
    /// Compare this export (`overlayd store export`) with --observed; touches neither store nor kernel
    #[arg(long, value_name = "FILE", requires = "observed")]
    desired: Option<PathBuf>,
    /// A node as `overlayd observe` printed it
    #[arg(long, value_name = "FILE", requires = "desired")]
    observed: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct ObserveArguments {
    #[command(flatten)]
    instance: InstanceArguments,
}

/// A node, and what is needed to tell its own objects from others.
#[derive(Serialize, Deserialize)]
struct ObservedNode {
    mark: Mark,
    mtu: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resolver_dir: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    served: Option<Served>,
    #[serde(flatten)]
    seen: Observation,
}

pub fn diff(arguments: &DiffArguments) -> Outcome {
    let (text, json, is_empty) = match (&arguments.desired, &arguments.observed, &arguments.state_dir) {
        (Some(desired), Some(observed), _) => rendered(&of_files(desired, observed)?),
        (_, _, Some(state_dir)) if arguments.socket.is_none() => rendered(&without_agent(arguments, state_dir)?),
        _ => match block_on(async { tokio::time::timeout(AGENT_WITHIN, ask_agent(arguments)).await })? {
            Ok(Ok(answer)) => answer,
            Ok(Err(Asked::Refused(message))) => return Err(message.into()),
            Ok(Err(Asked::NotReached(error))) => fall_back(arguments, &error.to_string())?,
            Err(_) => fall_back(arguments, "the agent does not answer")?,
        },
    };
    print(if arguments.json { &json } else { &text });
    Ok(if is_empty { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

/// Text, JSON and whether there is no difference.
type Rendered = (String, String, bool);

fn rendered(diff: &Diff) -> Rendered {
    let json = serde_json::to_value(diff).unwrap_or_default();
    (diff.to_text(), format!("{json:#}\n"), diff.is_empty())
}

enum Asked {
    NotReached(ClientError),
    Refused(String),
}

async fn ask_agent(arguments: &DiffArguments) -> Result<Rendered, Asked> {
    let default = PathBuf::from(DEFAULT_SOCKET);
    let socket = arguments.socket.as_ref().unwrap_or(&default);
    let mut client = Client::connect(socket).await.map_err(Asked::NotReached)?;
    match client.agent_request(AgentRequest::Diff).await.map_err(Asked::NotReached)? {
        AgentResponse::Err { message } => Err(Asked::Refused(message)),
        AgentResponse::Report { report } => {
            let text = report["text"].as_str().unwrap_or_default().to_owned();
            Ok((text, format!("{:#}\n", report["diff"]), report["is_empty"] == true))
        }
    }
}

fn fall_back(arguments: &DiffArguments, why: &str) -> Result<Rendered, Box<dyn std::error::Error>> {
    let state_dir = match &arguments.state_dir {
        Some(given) => given.clone(),
        None if arguments.socket.is_none() => DEFAULT_STATE_DIR.into(),
        None => return Err(format!("{why}; name its --state-dir to compare without it").into()),
    };
    eprintln!("overlayd: {why}; comparing without it");
    Ok(rendered(&without_agent(arguments, &state_dir)?))
}

fn without_agent(arguments: &DiffArguments, state_dir: &Path) -> Result<Diff, Box<dyn std::error::Error>> {
    let document = node::read_document(state_dir)?;
    let instance = InstanceArguments { state_dir: state_dir.to_owned(), started: arguments.started.clone() };
    block_on(async {
        let mut engine = node::engine(&instance, document)?;
        engine.inspect().await.map_err(Into::into)
    })?
}

fn of_files(desired: &Path, observed: &Path) -> Result<Diff, Box<dyn std::error::Error>> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()));
    let contents = store::contents_of(&read(desired)?).map_err(|error| format!("{}: {error}", desired.display()))?;
    let document = Document::from_contents(&contents)?;
    let node: ObservedNode =
        serde_json::from_str(&read(observed)?).map_err(|error| format!("{}: {error}", observed.display()))?;
    let facts = Facts { mtu: node.mtu, resolver_dir: node.resolver_dir, served: node.served, ..Facts::new(node.mark) };
    let told = |_: &Key| document.settled();
    Ok(Diff::between(&document, &facts, &told, node.seen, SystemClock.now().unix))
}

pub fn observe(arguments: &ObserveArguments) -> Outcome {
    let instance = &arguments.instance;
    let started = &instance.started;
    let document = node::read_document(&instance.state_dir)?;
    let seen = block_on(async {
        let mut engine = node::engine(instance, document)?;
        engine.observe().await.map_err(Into::<Box<dyn std::error::Error>>::into)
    })??;
    let node = ObservedNode {
        mark: node::mark_of(&instance.state_dir),
        mtu: started.mtu,
        resolver_dir: started.resolver_dir.clone(),
        served: started.dns.served()?,
        seen,
    };
    let json: Value = serde_json::to_value(&node)?;
    print(&format!("{json:#}\n"));
    Ok(ExitCode::SUCCESS)
}
