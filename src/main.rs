//! The `overlayd` program.

fn main() -> std::process::ExitCode {
    overlayd::cli::main()
}
