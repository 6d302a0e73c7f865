use std::{future::Future, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use super::{ctl, demo, diff, purge, run, status, store};

/// Exit status of `diff` when the node is not as the document says.
pub const DIFFERS: u8 = 2;

pub const DEFAULT_STATE_DIR: &str = "/var/lib/overlayd";
pub const DEFAULT_SOCKET: &str = "/run/overlayd/overlayd.sock";
pub const DEFAULT_UAPI_DIR: &str = "/var/run/wireguard";

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

/// Where the agent's socket is.
#[derive(Args, Clone)]
pub struct SocketArgument {
    /// The agent's socket
    #[arg(long, env = "OVERLAYD_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH", global = true)]
    pub socket: PathBuf,
}

/// Which instance: its state directory, and where its userspace devices listen.
#[derive(Args, Clone)]
pub struct InstanceArguments {
    /// Directory of the document
    #[arg(long, env = "OVERLAYD_STATE_DIR", default_value = DEFAULT_STATE_DIR, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Directory of the control sockets of userspace WireGuard devices
    #[arg(long, env = "OVERLAYD_UAPI_DIR", default_value = DEFAULT_UAPI_DIR, value_name = "DIR")]
    pub uapi_dir: PathBuf,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(why) => {
            // A reader that has gone away concerns nobody.
            let _ = why.print();
            // clap's own status for a mistake is 2, which is `diff`'s word for a difference.
            return if why.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match arguments.command {
        Command::Run(arguments) => run::run(*arguments),
        Command::Status(arguments) => status::status(&arguments),
        Command::Diff(arguments) => diff::diff(&arguments),
        Command::Observe(arguments) => diff::observe(&arguments),
        Command::Ctl(arguments) => ctl::ctl(arguments),
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

/// What a command returns: an exit status, or an error to print with its causes.
pub type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

/// An error and its causes on one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// Runs asynchronous work on a small runtime of its own.
pub fn block_on<T>(work: impl Future<Output = T>) -> Result<T, std::io::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}

/// Prints to standard output; a reader that has gone away (`| head`) ends the program quietly.
pub fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
