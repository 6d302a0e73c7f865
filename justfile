# A convenience on top of cargo. Nothing here is needed to build, test or run overlayd.

set shell := ["bash", "-euo", "pipefail", "-c"]

# The list of recipes.
default:
    @just --list

# Static checks: formatting, lints, licences and advisories.
check:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    cargo clippy --lib --bins -- -D warnings -D clippy::unwrap_used -D clippy::expect_used -D clippy::panic
    @if command -v cargo-deny >/dev/null; then cargo deny check; else echo "NOT CHECKED: licences and advisories (cargo-deny is not installed)"; fi

# All tests up to the kernel tier. What this machine does not allow is named: SKIPPED.
test *arguments:
    cargo test {{arguments}}

# The simulation with many more histories: `just sim 1000000` (or `just sim SEEDS=1000000`) for a night.
sim seeds="50000":
    seeds="{{seeds}}"; OVERLAYD_SIM_SEEDS="${seeds#SEEDS=}" cargo test --profile hunt --test sim -- --nocapture

# Measurements. Never asserted by a test.
bench *arguments:
    cargo bench {{arguments}}

# Clients, drift and kills for so many seconds, and as long without kills. Leaves a table and a picture of memory and descriptors.
soak seconds="3600":
    OVERLAYD_SOAK_SECS={{seconds}} OVERLAYD_SOAK_DIR="$PWD/target/soak" cargo test --profile hunt --test kernel soak::

# The agent killed at every system call that changes something, fourteen operations: some minutes. Prints a line for each.
crash:
    OVERLAYD_CRASH_ALL=1 cargo test --test kernel crash::

# The store under the agent: 300 kills, each kind of damage, a power cut after every call. A quarter of an hour.
store:
    OVERLAYD_STORE_KILLS=300 OVERLAYD_DAMAGE_ALL=1 OVERLAYD_POWER_ALL=1 cargo test --test kernel store::

# Kernel tests on Debian's 6.1 and 6.12, which have WireGuard, in an emulated machine: `just vm` or `just vm linux::`. Minutes.
vm *filters:
    tests/vm/run {{filters}}

# A node whose power is cut in the middle of its work, ten times over, on both kernels in turn.
reboot cuts="10":
    tests/vm/run --reboots {{cuts}}

# The same on a kernel of a later Debian; without a filter the tests of the kernel backend.
newer *filters:
    tests/vm/run --newer {{filters}}

# The same on a kernel of an earlier Debian, 5.10, which lacks much that others have.
older *filters:
    tests/vm/run --older {{filters}}

# What takes minutes (rekeys, sessions that end, keepalives, resting addresses), in a machine whose waits pass at once.
long-time:
    tests/vm/run --virtual-time

# Bytes that nobody wrote: `just fuzz frame 60`. Without a target all of them, one after the other. Needs cargo-fuzz and a nightly toolchain.
# What it tries next time is kept below fuzz/target; fuzz/corpus is only read.
fuzz target="all" seconds="60":
    targets="{{target}}"; [ "$targets" != all ] || targets="frame document dns netlink uapi script"; \
    for target in $targets; do mkdir -p "fuzz/target/corpus/$target"; \
    cargo +nightly fuzz run "$target" "fuzz/target/corpus/$target" "fuzz/corpus/$target" -- -max_total_time={{seconds}} -max_len=4096 -timeout=10; done

# Two nodes in namespaces of their own: converge, ping, kill, drift, repair.
demo *arguments:
    cargo run --release -- demo {{arguments}}

# Write the golden plans anew. Read the difference before you commit it.
bless:
    OVERLAYD_BLESS=1 cargo test --test it
    git --no-pager diff --stat -- fixtures
