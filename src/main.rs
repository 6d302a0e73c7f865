//! Temporary harness of branch h-device; the CLI room writes the real one.
use overlayd::platform::linux::device_process::{DEFAULT_UAPI_DIR, DeviceArgs, run};

fn main() {
    let mut args = std::env::args().skip(1);
    assert_eq!(
        args.next().as_deref(),
        Some("wg-device"),
        "usage: overlayd wg-device IFNAME [--uapi-dir DIR]"
    );
    let ifname = args.next().expect("IFNAME").parse().expect("an interface name");
    let uapi_dir = args.nth(1).unwrap_or_else(|| DEFAULT_UAPI_DIR.into()).into();
    if let Err(error) = run(DeviceArgs { ifname, uapi_dir }) {
        eprintln!("overlayd: failed to {error}");
        std::process::exit(i32::from(error.exit_code()));
    }
}
