//! The Linux backend. (under construction)

pub mod device_process;
pub mod uapi;
