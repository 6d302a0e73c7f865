use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::{ctl, demo, diff, publish, purge, run, status, store};
use crate::failure::with_causes;

/// Keeps this node's overlay network as its document says.
#[derive(Parser)]
#[command(name = "overlayd", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent
    Run(Box<run::RunArguments>),
    /// Show what the running agent knows: generations, conditions, trouble
    Status(status::StatusArguments),
    /// Show how the node differs from the document (exit status 0: not at all, 2: it does, 1: error)
    Diff(diff::DiffArguments),
    /// Print what is on the node, for `diff --observed`
    Observe(diff::ObserveArguments),
    /// Send one request of the contract to the running agent
    Ctl(ctl::CtlArguments),
    /// Let a port of the host lead to a port of a container of a shared service
    Publish(publish::PublishArguments),
    /// Take such a port back
    Unpublish(publish::PublishArguments),
    /// Look at, export, import or mend the store
    Store(store::StoreArguments),
    /// Remove everything from this node that carries this instance's mark
    Purge(purge::PurgeArguments),
    /// Two nodes in namespaces of their own: converge, ping, crash, drift, repair
    Demo(demo::DemoArguments),
    /// The process behind a userspace WireGuard device; started by the agent
    #[command(hide = true)]
    WgDevice(run::DeviceArguments),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap would end with 2, which `diff` has given a meaning.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match arguments.command {
        Command::Run(arguments) => run::run(*arguments),
        Command::Status(arguments) => status::status(&arguments),
        Command::Diff(arguments) => diff::diff(&arguments),
        Command::Observe(arguments) => diff::observe(&arguments),
        Command::Ctl(arguments) => ctl::ctl(arguments),
        Command::Publish(arguments) => publish::publish(&arguments),
        Command::Unpublish(arguments) => publish::unpublish(&arguments),
        Command::Store(arguments) => store::store(&arguments),
        Command::Purge(arguments) => purge::purge(&arguments),
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::WgDevice(arguments) => run::wg_device(arguments),
    };
    match outcome {
        Ok(status) => status,
        Err(error) => {
            eprintln!("overlayd: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
