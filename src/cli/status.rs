use std::{fmt::Write as _, process::ExitCode};

use clap::Args;
use serde_json::Value;

use super::args::SocketArgument;
use super::outcome::{Outcome, block_on, print};
use crate::{
    client::{Client, ClientError},
    wire::{AgentRequest, AgentResponse},
};

#[derive(Args)]
pub struct StatusArguments {
    #[command(flatten)]
    socket: SocketArgument,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub fn status(arguments: &StatusArguments) -> Outcome {
    let report = block_on(report(arguments))???;
    if arguments.json {
        print(&format!("{report:#}\n"));
    } else {
        print(&text(&report));
    }
    Ok(ExitCode::SUCCESS)
}

async fn report(arguments: &StatusArguments) -> Result<Result<Value, String>, ClientError> {
    let mut client = Client::connect(&arguments.socket.socket).await?;
    Ok(match client.agent_request(AgentRequest::Status).await? {
        AgentResponse::Report { report } => Ok(report),
        AgentResponse::Err { message } => Err(message),
    })
}

/// Names that are shown to a reader.
const NAMES_SHOWN: usize = 20;

/// The overlay's resolver, as labels and what stands behind them.
fn names(dns: &Value) -> Vec<(&'static str, String)> {
    if dns["serves"] != true {
        return Vec::new();
    }
    let all = |list: &Value| {
        let each: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if each.is_empty() { "none".to_owned() } else { each.join(" ") }
    };
    let zone = dns["zone"].as_str().unwrap_or("");
    let (at, of) = (all(&dns["listens"]), all(&dns["asks"]));
    let served = format!("{} in {zone}, served at {at}; others asked of {of}", dns["names"]);
    let trouble = dns["trouble"].as_array().into_iter().flatten().map(|trouble| {
        let word = |name: &str| trouble[name].as_str().unwrap_or("").to_owned();
        ("", format!("NOT served at {}: {}", word("address"), word("why")))
    });
    let records = dns["records"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown = records.iter().take(NAMES_SHOWN).map(|record| {
        let name = record["name"].as_str().unwrap_or("");
        ("name", format!("{name} {}", all(&record["addresses"])))
    });
    let more = dns["names"].as_u64().unwrap_or(0).saturating_sub(NAMES_SHOWN as u64);
    let more =
        (more > 0).then(|| ("", format!("and {more} more; --json lists a thousand, and the resolver answers for all")));
    std::iter::once(("names", served)).chain(trouble).chain(shown).chain(more).collect()
}

fn text(report: &Value) -> String {
    let show = |name: &str| match &report[name] {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<12} {value}");
    };
    line("overlayd", format!("{} (pid {}, mark {})", show("version"), show("pid"), show("mark")));
    line("state", show("state_dir"));
    line("document", format!("generation {}, converged {}", show("generation"), show("converged_generation")));
    let sync = if report["in_sync"] == true { "in sync" } else { "NOT in sync" };
    line("node", format!("{sync}, {} rounds", show("rounds")));
    line("device", format!("{}, address {}, key {}", show("device"), show("node_ip"), show("public_key")));
    if report["claimed_key_differs"] == true {
        line("", "the driving daemon claims another public key for this node".into());
    }
    for segment in report["segments"].as_array().into_iter().flatten() {
        let word = |name: &str| segment[name].as_str().unwrap_or("").to_owned();
        let leaving = if segment["leaving"] == true { ", leaving" } else { "" };
        let what = format!("{} {} {}", word("mode"), word("bridge"), word("subnets"));
        line("segment", format!("{}: {what}, {} attached{leaving}", word("service"), segment["attachments"]));
    }
    let addresses = &report["addresses"];
    line(
        "addresses",
        format!(
            "{} attached, {} reserved, {} resting",
            addresses["attached"], addresses["reserved"], addresses["resting"]
        ),
    );
    for port in report["published"].as_array().into_iter().flatten() {
        let word = |name: &str| port[name].as_str().unwrap_or("").to_owned();
        let trouble = port["trouble"].as_str().map(|why| format!(", NOT held: {why}")).unwrap_or_default();
        let to = format!("{} of {} ({})", word("to"), word("attachment"), word("service"));
        line("published", format!("{} {} leads to {to}{trouble}", word("protocol"), port["host_port"]));
    }
    for (label, value) in names(&report["dns"]) {
        line(label, value);
    }
    for file in report["resolvers"].as_array().into_iter().flatten() {
        let word = |name: &str| file[name].as_str().unwrap_or("").to_owned();
        let path = file["file"].as_str().unwrap_or("no file: there is no --resolver-dir");
        let port = file["port"].as_u64().map(|port| format!(" port {port}")).unwrap_or_default();
        line("resolver", format!("{} at {}{port} ({path})", word("zone"), word("nameserver")));
    }
    for object in report["objects"].as_array().into_iter().flatten() {
        line(
            "objects",
            format!(
                "{} {} {}",
                object["count"],
                object["kind"].as_str().unwrap_or(""),
                object["state"].as_str().unwrap_or("")
            ),
        );
    }
    for trouble in report["troubled"].as_array().into_iter().flatten() {
        let condition = &trouble["condition"];
        let why = condition["why"].as_str().or(condition["error"].as_str()).unwrap_or("");
        line(
            "!",
            format!("{} {}: {why}", trouble["key"].as_str().unwrap_or(""), condition["state"].as_str().unwrap_or("")),
        );
    }
    text
}
