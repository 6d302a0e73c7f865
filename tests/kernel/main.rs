//! Tests against a real kernel, each in network namespaces that it makes itself.
//!
//! What the kernel at hand lacks is printed as `SKIPPED: <test>: <reason>`.

#[cfg(target_os = "linux")]
mod linux;
