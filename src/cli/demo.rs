use super::args::Outcome;
use clap::Args;
#[derive(Args)]
pub struct DemoArguments {}
pub fn demo(_: &DemoArguments) -> Outcome {
    Err("soon".into())
}
