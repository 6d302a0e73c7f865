//! The document: what this node should look like. (under construction)
pub mod store;
