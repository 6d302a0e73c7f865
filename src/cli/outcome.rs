//! How a command ends and speaks: exit status, standard output, a small runtime.

use std::{future::Future, process::ExitCode};

/// Exit status of `diff` when the node is not as the document says.
pub const DIFFERS: u8 = 2;

/// What a command returns: an exit status, or an error to print with its causes.
pub type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

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
