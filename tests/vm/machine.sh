# Starting and stopping a guest. Sourced by `run`.

guest=
# Processor time that the guest has had, in hundredths of a second: on a loaded machine it says more than the clock.
guest_ticks=0

# Two nanoseconds for an instruction; when there is nothing to do, the clock goes to the next timer.
virtual_time=(-icount "shift=1,sleep=off")

# start_guest KERNEL RAMDISK [QEMU ARGUMENT]...: in the background; its lines go to $work/said, its kernel's to $work/console.
#
# q35 has the timers that a kernel needs to find out the speed of an emulated processor. One processor: with two, the
# emulator's threads and a kernel that patches its own code can trip over each other. Expedited RCU: without it taking
# down a namespace or a device takes seconds.
start_guest() {
    local kernel=$1 ramdisk=$2
    shift 2
    : >"$work/said"
    qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none -monitor none \
        -accel tcg -machine q35 -cpu max -smp 1 -m 1024 \
        -kernel "$kernel/vmlinuz" -initrd "$ramdisk" \
        -append "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off nokaslr no_timer_check random.trust_cpu=on rcupdate.rcu_expedited=1" \
        -serial "file:$work/console" -serial "file:$work/said" \
        "$@" </dev/null 2>"$work/qemu-errors" 9>&- &
    guest=$!
}

# Without warning, as when the power goes.
stop_guest() {
    [ -n "$guest" ] || return 0
    kill -KILL "$guest" 2>/dev/null || true
    wait "$guest" 2>/dev/null || true
    guest=
}

is_guest_running() {
    kill -0 "$guest" 2>/dev/null
}

# await SECONDS PATTERN [COUNT]: until so many of the guest's lines match, or it has ended. Fails when it took too long, or
# it ended before.
await() {
    local limit=$((SECONDS + $1)) pattern=$2 count=${3:-1} is_over stat
    while true; do
        is_over=
        is_guest_running || is_over=1
        { read -ra stat <"/proc/$guest/stat"; } 2>/dev/null && guest_ticks=$((stat[13] + stat[14]))
        [ "$(grep -c "$pattern" "$work/said")" -lt "$count" ] || return 0
        [ -z "$is_over" ] && [ "$SECONDS" -lt "$limit" ] || return 1
        sleep 0.1
    done
}

# boot KERNEL RAMDISK [QEMU ARGUMENT]...: a guest whose tests begin. On a loaded machine a guest may hang before that; it is
# started again, twice.
boot() {
    local attempt
    for attempt in 1 2 3; do
        start_guest "$@"
        await 150 '^vm: up' && return 0
        echo "the guest did not come up (attempt $attempt)"
        stop_guest
    done
    post_mortem
    return 1
}

post_mortem() {
    echo "its kernel's last words:"
    tail -n 30 "$work/console" "$work/qemu-errors"
}
