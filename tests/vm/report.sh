# Which tests run, what came of them, and the power cuts. Sourced by `run`.

# select_tests CHOSEN LEFT-OUT: names of tests; and names with the reason, from the lists beside this file.
select_tests() {
    : >"$2"
    "$kernel_tests" --list 2>/dev/null | sed -n 's/: test$//p' >"$shared/all"
    # An empty pattern is in every name.
    printf '%s\n' "${filters[@]:-}" | grep -F -f - "$shared/all" >"$shared/wanted" || true
    if [ -n "$is_virtual" ]; then
        grep '^long_time::' "$shared/wanted" >"$1" || true
        return
    fi
    if [ -n "$is_gate" ]; then
        awk 'NR == FNR { if ($0 !~ /^#/ && NF) gate[$1]; next }
            { for (begin in gate) if (index($0, begin) == 1) { print; next } }' "$here/gate" "$shared/wanted" >"$shared/in-gate"
        mv "$shared/in-gate" "$shared/wanted"
    fi
    # What is left out for its time alone runs when a filter or the gate asks for it.
    awk -v left_out="$2" -v asked="$is_gate${#filters[@]}" '
        NR == FNR {
            if ($0 !~ /^#/ && NF && !(asked != "0" && $1 == "ask")) { begin = $2; sub(/^[^ ]+ +[^ ]+ +/, ""); why[begin] = $0 }
            next
        }
        { for (begin in why) if (index($0, begin) == 1) { print $0 ": " why[begin] >left_out; next } print }
    ' "$here/left-out" "$shared/wanted" >"$1"
}

# run_tests PACKAGE: one guest, its output as it comes.
run_tests() {
    local package=$1 begun=$SECONDS follower status=lost
    echo
    echo "== $package: $(<"$store/kernels/$package/release"), $(wc -l <"$shared/chosen") tests"
    add_to_ramdisk "$package" "$shared/chosen"
    boot "$store/kernels/$package" "$work/ramdisk" ${is_virtual:+"${virtual_time[@]}"} || return 1
    tail --lines=+1 --follow --sleep-interval=0.2 --pid="$guest" "$work/said" 9>&- &
    follower=$!
    if await "$guest_limit" '^vm: end'; then
        status=$(sed -n 's/^vm: end //p' "$work/said")
        # It powers itself off.
        await 30 '^never' || true
    fi
    stop_guest
    wait "$follower" || true
    echo "$((SECONDS - begun)) s, $((guest_ticks / 100)) s of processor time" >"$work/seconds"
    [ "$status" != lost ] || { echo "the guest ended, or took longer than $guest_limit s" && post_mortem; }
    [ "$status" = 0 ]
}

# add_to_ramdisk PACKAGE TESTS [TOLD [PLANE]]: with TOLD, what earlier guests with the same disk said; with PLANE `userspace`, a
# kernel that has no WireGuard.
add_to_ramdisk() {
    local root=$work/order
    rm -rf "$root"
    mkdir -p "$root/vm"
    cp "$2" "$root/vm/tests"
    # A run that names no tests plays those stories of the corpus in which most depends on the kernel.
    [ ${#filters[@]} -gt 0 ] || grep -v '^#' "$here/stories" | paste -sd , >"$root/vm/stories"
    if [ $# -gt 2 ]; then
        touch "$root/vm/disk"
        cp "$3" "$root/vm/told"
    fi
    [ -z "$is_virtual" ] || touch "$root/vm/virtual-time"
    [ "${4:-kernel}" = kernel ] || touch "$root/vm/no-wireguard"
    pack "$root" "$work/order.cpio"
    cat "$shared/base.cpio" "$shared/$1.cpio" "$shared/tests.cpio" "$work/order.cpio" >"$work/ramdisk"
}

# counts PACKAGE: what came of the chosen tests, one line each for a skip and a failure.
counts() {
    local package=$1 work=$shared/$1 said=$shared/$1/said passed failed skipped
    [ -e "$work/seconds" ] || { echo "$package: no result" && return; }
    sed -n 's/ ([0-9]* skipped so far)$//; s/^SKIPPED: //p' "$said" | sort -u >"$work/skipped"
    sed -n 's/^test \(.*\) \.\.\. ok$/\1/p' "$said" | sort -u >"$work/ok"
    sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$said" | sort -u >"$work/failed"
    passed=$(wc -l <"$work/ok")
    failed=$(wc -l <"$work/failed")
    # A test that skips is no failure for its harness. One that skips a part did the rest.
    skipped=$(sed 's/: .*//' "$work/skipped" | sort -u | wc -l)
    echo "$(<"$store/kernels/$package/release"): $(sed -n 's/^vm: plane /data plane: /p' "$said"); $(wc -l <"$shared/chosen") tests chosen," \
        "$passed passed ($skipped of them skipped, whole or in part), $failed failed; $(<"$work/seconds")"
    sed 's/^/    FAILED: /' "$work/failed"
    sort "$work/ok" "$work/failed" | comm -13 - <(sort "$shared/chosen") | sed 's/^/    NO RESULT: /'
    sed 's/^/    SKIPPED: /' "$work/skipped"
    # What was found out and measured; the harness may have begun the line.
    grep -o '\(SEEN\|MEASURED\): .*' "$said" | sort -u | sed 's/^/    /' || true
}

summary() {
    local package
    echo
    echo "== summary"
    for package in "${kernels[@]}"; do
        counts "$package"
    done
    sed 's/^/    SKIPPED: /' "$shared/left-out"
    echo "$(wc -l <"$shared/left-out") tests left out on every kernel"
}

# power_cuts N: guests that share one disk, each stopped in the middle of its work but the last.
power_cuts() {
    local rounds=$1 round package plane more answers attaches=0 late=0 edits begun=$SECONDS disk=$work/disk.img told=$work/told-so-far
    # With two kernels every kernel has every data plane, and every change of one is made.
    local planes=(kernel userspace userspace kernel)
    command -v mke2fs >/dev/null || { echo "SKIPPED: power cuts: no mke2fs on this machine" && return 0; }
    echo 'reboot::a_node_comes_back_from_a_power_cut' >"$work/reboot-test"
    : >"$told"
    truncate --size=64M "$disk"
    mke2fs -q -t ext4 "$disk"
    for ((round = 0; round <= rounds; round++)); do
        # A kernel after the other: what one left must do for the other.
        package=${kernels[$((round % ${#kernels[@]}))]}
        plane=${planes[$((round % ${#planes[@]}))]}
        add_to_ramdisk "$package" "$work/reboot-test" "$told" "$plane"
        boot "$store/kernels/$package" "$work/ramdisk" -drive "file=$disk,if=virtio,format=raw" || return 1
        if ! await 300 '^reboot: right'; then
            cat "$work/said"
            echo "power cut $round: the node did not come back right"
            post_mortem
            return 1
        fi
        sed -n 's/^reboot: right \(.*\) \.$/\1/p' "$work/said" | sed "s|^|boot $round ($(<"$store/kernels/$package/release")): |"
        if [ "$round" -lt "$rounds" ]; then
            # The guest begins a hundred attaches, and says a line for each answer.
            more=$((5 + RANDOM % 91))
            if ! await 300 '^reboot: attached .* \.$' "$more"; then
                cat "$work/said"
                echo "no more answers after power cut $round"
                return 1
            fi
            # Anywhere between one answer and the next.
            sleep "0.0$((RANDOM % 10))"
        fi
        stop_guest
        answers=$(grep -c '^reboot: attached .* \.$' "$work/said" || true)
        attaches=$((attaches + answers))
        late=$((late + $(grep -c '^reboot: late' "$work/said" || true)))
        [ "$round" -eq "$rounds" ] || echo "    cut after $answers of 100 attaches"
        # A line that the cut went through was not said.
        grep '^reboot: \(key\|has\|ask\|told\|attached\) .* \.$' "$work/said" >>"$told" || true
    done
    edits=$(grep -c '^reboot: told' "$told" || true)
    echo "power cuts: $rounds, after $attaches attaches and $edits other edits, every start right; $late attaches asked for again on a slow machine; $((SECONDS - begun)) s"
}
