//! stub.
use super::sim::SimKernel;
pub type LinuxKernel = SimKernel;
pub enum DataPlaneChoice {
    Auto,
    Kernel,
    Userspace,
}
pub fn open(_: crate::object::Mark, _: DataPlaneChoice, _: std::path::PathBuf) -> std::io::Result<LinuxKernel> {
    Ok(SimKernel::default())
}
pub fn host_candidates() -> Vec<std::net::IpAddr> {
    vec![]
}
pub fn run_device_process(_: &crate::ids::IfName, _: &std::path::Path) -> Result<(), std::io::Error> {
    Ok(())
}
