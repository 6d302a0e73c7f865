use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::Instant,
};

use clap::Args;

use super::story;
use crate::{
    cli::outcome::{Outcome, print},
    platform::lab,
};

#[derive(Args)]
pub struct DemoArguments {
    /// Which WireGuard carries the overlay
    #[arg(long, default_value = "auto", value_name = "auto|kernel|userspace")]
    data_plane: String,
    /// Keep the agents' logs and state in this directory instead of a temporary one
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Set by the demonstration for its own first process
    #[arg(long, hide = true)]
    inside: bool,
}

pub fn demo(arguments: &DemoArguments) -> Outcome {
    if arguments.inside {
        return inside(arguments);
    }
    let started = Instant::now();
    print(
        "overlayd demonstration: two nodes, each in a network namespace of its own; nothing of this host is touched.\n",
    );
    lab::leave_the_host().map_err(|error| {
        format!(
            "this machine does not let this user make namespaces ({error}); run as root, or allow unprivileged user namespaces"
        )
    })?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["demo", "--inside", "--data-plane", &arguments.data_plane]);
    if let Some(keep) = &arguments.keep {
        std::fs::create_dir_all(keep)?;
        command.arg("--keep").arg(std::fs::canonicalize(keep)?);
    }
    let status = command.status()?;
    if status.success() {
        print(&format!("\nAll of it worked, in {:.1} s. Nothing is left behind.\n", started.elapsed().as_secs_f64()));
        return Ok(ExitCode::SUCCESS);
    }
    Err(format!("the demonstration failed ({status})").into())
}

/// The first process of the demonstration's pid namespace: when it ends, the kernel ends everything in it.
fn inside(arguments: &DemoArguments) -> Outcome {
    lab::furnish()
        .map_err(|error| format!("this machine does not allow mounts in a namespace of one's own ({error})"))?;
    let directory = match &arguments.keep {
        Some(keep) => keep.clone(),
        // In the tmpfs that `furnish` has mounted: it goes with the namespace.
        None => PathBuf::from("/run/demo"),
    };
    story::tell(&directory, &arguments.data_plane)?;
    Ok(ExitCode::SUCCESS)
}
