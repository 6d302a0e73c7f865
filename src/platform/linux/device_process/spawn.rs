//! Starts a device process that outlives the one who starts it.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::process::{Child, Command};

use crate::{
    ids::IfName,
    platform::linux::uapi::{UapiClient, UapiError},
};

/// The binary that runs, also after its file was replaced or deleted by an upgrade.
pub const CURRENT_EXE: &str = "/proc/self/exe";
/// Longest wait for the first answer of a device process. It takes 10 ms on an idle machine.
pub const START_LIMIT: Duration = Duration::from_secs(3);

/// Pause between two looks at a process that is starting.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Environment variables that are handed on.
const KEPT_VARIABLES: [&str; 3] = ["PATH", "RUST_LOG", "OVERLAYD_LOG"];

/// Why no device process serves the interface.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("run the device process")]
    Spawn(#[source] io::Error),
    /// It ended at once; the status is a [`DeviceError::exit_code`](super::DeviceError::exit_code) or 128 + signal.
    #[error("start the device process: it ended with status {0}")]
    Ended(i32),
    #[error("start the device process: it did not answer")]
    Silent(#[source] UapiError),
}

/// Starts `exe wg-device IFNAME --uapi-dir DIR` and waits until it answers. A process that serves the interface already is left alone.
///
/// # Guarantees
/// The process has a session of its own, no open files but `/dev/null` (and its log, where `<dir>/<ifname>.log` exists), `/` as directory and no environment but `PATH` and the log filters.
///
/// # Assumes
/// It is called inside a tokio runtime, which reaps the process if it ends while the runtime lives. `dir` is absolute.
///
/// # Errors
/// [`StartError`], after at most [`START_LIMIT`].
pub async fn start(exe: &Path, ifname: &IfName, dir: &Path) -> Result<(), StartError> {
    let client = UapiClient::new(dir, ifname);
    match client.get().await {
        Ok(_) => return Ok(()),
        Err(UapiError::NotRunning) => {}
        Err(error) => return Err(StartError::Silent(error)),
    }
    let mut child = spawn(exe, ifname, dir).map_err(StartError::Spawn)?;
    let outcome = wait_for_answer(&client, &mut child).await;
    if let Err(StartError::Silent(_)) = outcome {
        // Whatever keeps it from answering, it is of no use; the next round starts another.
        let _ = child.start_kill();
    }
    tokio::spawn(async move { child.wait().await });
    outcome
}

fn spawn(exe: &Path, ifname: &IfName, dir: &Path) -> io::Result<Child> {
    let mut command = Command::new(exe);
    command
        .arg0("overlayd")
        .args(["wg-device", ifname.as_str(), "--uapi-dir"])
        .arg(dir)
        .env_clear()
        .envs(KEPT_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log_file(ifname, dir))
        .kill_on_drop(false);
    // SAFETY: between fork and exec the closure makes two system calls and no allocation.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            // Marked instead of closed: the standard library reports a failed exec over a descriptor of its own.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
    command.spawn()
}

/// The file `<dir>/<ifname>.log` where an operator has made one to see what the process says, else nothing.
fn log_file(ifname: &IfName, dir: &Path) -> Stdio {
    let file = OpenOptions::new().append(true).custom_flags(libc::O_NOFOLLOW).open(dir.join(format!("{ifname}.log")));
    file.map_or_else(|_| Stdio::null(), Stdio::from)
}

async fn wait_for_answer(client: &UapiClient, child: &mut Child) -> Result<(), StartError> {
    let begin = Instant::now();
    let client = client.clone().with_limit(START_LIMIT);
    loop {
        let left = START_LIMIT.saturating_sub(begin.elapsed());
        let answer = client.clone().with_limit(left.max(LOOK_PAUSE)).get().await;
        match answer {
            Ok(_) => return Ok(()),
            Err(UapiError::NotRunning) if !left.is_zero() => {}
            Err(error) => return Err(StartError::Silent(error)),
        }
        if let Some(status) = child.try_wait().map_err(StartError::Spawn)? {
            use std::os::unix::process::ExitStatusExt;
            // Somebody else may have been faster.
            return match client.get().await {
                Ok(_) => Ok(()),
                Err(_) => {
                    let signal = || status.signal().map_or(-1, |signal| 128 + signal);
                    Err(StartError::Ended(status.code().unwrap_or_else(signal)))
                }
            };
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}
