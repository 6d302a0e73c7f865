//! The tests of the house as a whole: one binary, so that it links once.

mod committer;
mod engine;
mod floor_plan;
mod house_rules;
mod plan_golden;
mod properties;
mod runtime;
mod script;
mod scripts;
mod source;
mod world;
