use std::{io::Read, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};

use super::args::DEFAULT_STATE_DIR;
use super::outcome::{Outcome, print};
use crate::{
    clock::{Clock, SystemClock},
    desired::{Document, redact, store},
};

#[derive(Args)]
pub struct StoreArguments {
    /// Directory of the document
    #[arg(long, env = "OVERLAYD_STATE_DIR", default_value = DEFAULT_STATE_DIR, value_name = "DIR", global = true)]
    state_dir: PathBuf,
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Say how every part of the store is; changes nothing
    Check {
        #[arg(long)]
        json: bool,
    },
    /// Print the document as JSON
    Export {
        /// Leave private keys and credentials in; without it the copy cannot be imported into a running life
        #[arg(long)]
        with_secrets: bool,
    },
    /// Make an export the document; the agent must not run
    Import {
        /// A file made by `export --with-secrets`, or "-" for standard input
        file: PathBuf,
    },
    /// Put the newest document together that can still be read, and say what is lost; the agent must not run
    Recover {
        #[arg(long)]
        json: bool,
    },
}

pub fn store(arguments: &StoreArguments) -> Outcome {
    let state_dir = &arguments.state_dir;
    let now = SystemClock.now().unix;
    match &arguments.command {
        StoreCommand::Check { json } => {
            let report = store::check(state_dir)?;
            show(&report, *json)
        }
        StoreCommand::Recover { json } => {
            let report = store::recover(state_dir, now)?;
            show(&report, *json)
        }
        StoreCommand::Export { with_secrets } => {
            let hide = |_: &str, record: &mut serde_json::Value| {
                if !with_secrets {
                    redact(record);
                }
            };
            let copy = store::export(state_dir, &hide)?;
            print(&format!("{copy:#}\n"));
            Ok(ExitCode::SUCCESS)
        }
        StoreCommand::Import { file } => {
            let copy = read(file)?;
            let contents = store::contents_of(&copy)?;
            let document = Document::from_contents(&contents)?;
            if document.node_key().is_none_or(|key| key.private.is_none()) {
                return Err("the copy holds no private key; make it with `overlayd store export --with-secrets`".into());
            }
            show(&store::import(state_dir, &copy, now)?, false)
        }
    }
}

fn read(file: &std::path::Path) -> Result<String, String> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    read.map_err(|error| format!("read {}: {error}", file.display()))?;
    Ok(text)
}

fn show(report: &store::Report, json: bool) -> Outcome {
    if json {
        print(&format!("{:#}\n", serde_json::to_value(report)?));
    } else {
        print(&report.to_string());
    }
    Ok(if report.starts { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
