use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::args::SocketArgument;
use super::outcome::{Outcome, block_on, print};
use crate::{
    client::{Client, ClientError},
    ids::Protocol,
    wire::{AgentRequest, AgentResponse},
};

#[derive(Args)]
pub struct PublishArguments {
    #[command(flatten)]
    socket: SocketArgument,
    /// Process that the container was attached by
    #[arg(long)]
    pid: u32,
    /// Port in the container
    #[arg(long)]
    port: u16,
    /// tcp or udp
    #[arg(long, default_value = "tcp")]
    protocol: Protocol,
}

/// Prints the port of the host.
pub fn publish(arguments: &PublishArguments) -> Outcome {
    let &PublishArguments { pid, port, protocol, .. } = arguments;
    let report = block_on(ask(arguments, AgentRequest::Publish { pid, protocol, port }))???;
    print(&format!("{}\n", report["host_port"]));
    Ok(ExitCode::SUCCESS)
}

pub fn unpublish(arguments: &PublishArguments) -> Outcome {
    let &PublishArguments { pid, port, protocol, .. } = arguments;
    block_on(ask(arguments, AgentRequest::Unpublish { pid, protocol, port }))???;
    Ok(ExitCode::SUCCESS)
}

async fn ask(arguments: &PublishArguments, request: AgentRequest) -> Result<Result<Value, String>, ClientError> {
    let mut client = Client::connect(&arguments.socket.socket).await?;
    Ok(match client.agent_request(request).await? {
        AgentResponse::Report { report } => Ok(report),
        AgentResponse::Err { message } => Err(message),
    })
}
