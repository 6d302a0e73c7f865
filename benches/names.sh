#!/usr/bin/env bash
# Questions per second and 99th percentile of the overlay's resolver, beside aardvark-dns, dnsmasq and unbound with the same
# ten thousand names, and beside itself while nobody answers the questions that it passes on. Turn about in one run: only the
# ratios mean anything.
#
#     benches/names.sh [ROUNDS] [SECONDS]       as root; makes a network namespace of its own and touches nothing else
#
# Debian has what it needs: dnsperf, python3, and for company aardvark-dns, dnsmasq-base, unbound. Who is missing is named.
# UNBOUND: another path of unbound's program.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${NAMES_INSIDE:-}" ]; then
    (cd "$project" && cargo build --release --locked)
    NAMES_INSIDE=1 exec unshare --net --mount "$0" "$@"
fi
rounds=${1:-3}
seconds=${2:-5}
names=10000
# Questions per second at which the percentile is taken.
calm=2000
program=${CARGO_TARGET_DIR:-$project/target}/release/overlayd
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
ip link set lo up

echo "nameserver 127.0.0.2" >"$work/upstreams"
"$program" run --resolv-conf "$work/upstreams" --state-dir "$work/state" --socket "$work/socket" --uapi-dir "$work/uapi" --run-dir "$work" \
    --metrics-listen 127.0.0.1:9586 --log warn &
for _ in $(seq 100); do [ -S "$work/socket" ] && break || sleep 0.1; done
"$program" ctl --socket "$work/socket" setup-global-overlay --deployment bench --instance-id 0 \
    --cluster-cidr 10.200.0.0/16 --slice-cidr 10.200.0.0/26 --wg-port 51820 >"$work/setup"
# One connection; a client of the command line for each name would take minutes.
python3 - "$work" "$names" <<'PYTHON'
import json, socket, struct, sys
work, names = sys.argv[1], int(sys.argv[2])
line = socket.socket(socket.AF_UNIX)
line.connect(f"{work}/socket")
aardvark = open(f"{work}/aardvark-names", "w")
files = {n: open(f"{work}/{n}", "w") for n in ("hosts", "local-data", "questions", "questions-aardvark")}
for n in range(names):
    ip = f"10.201.{n // 250}.{n % 250 + 1}"
    body = json.dumps({"frame": "request", "id": n, "request": {"op": "register_dns", "name": f"n{n}", "ip": ip}}).encode()
    line.sendall(struct.pack("<I", len(body)) + body)
    size = struct.unpack("<I", line.recv(4, socket.MSG_WAITALL))[0]
    answer = line.recv(size, socket.MSG_WAITALL)
    assert b'"ok"' in answer, answer
    files["hosts"].write(f"{ip} n{n}.overlay\n")
    files["local-data"].write(f'    local-data: "n{n}.overlay. 5 A {ip}"\n')
    files["questions"].write(f"n{n}.overlay A\n")
    files["questions-aardvark"].write(f"n{n}.dns.podman A\n")
    aardvark.write(f"{n:064x} {ip}  n{n}\n")
PYTHON

company=(overlayd)
declare -A place=([overlayd]=10.200.0.1:53)
missing() { echo "NOT MEASURED: $1: no $2 here (Debian: $3)"; }
if command -v dnsmasq >/dev/null; then
    dnsmasq --keep-in-foreground --no-resolv --no-hosts --addn-hosts="$work/hosts" --local=/overlay/ --port=5301 \
        --listen-address=127.0.0.1 --bind-interfaces --pid-file= --user=root --local-ttl=5 &
    company+=(dnsmasq) place[dnsmasq]=127.0.0.1:5301
else
    missing dnsmasq dnsmasq dnsmasq-base
fi
unbound=${UNBOUND:-$(command -v unbound || true)}
if [ -n "$unbound" ]; then
    cat >"$work/unbound.conf" - "$work/local-data" <<'CONF'
server:
    interface: 127.0.0.1@5302
    do-daemonize: no
    username: ""
    chroot: ""
    directory: ""
    pidfile: ""
    use-syslog: no
    verbosity: 0
    num-threads: 2
    local-zone: "overlay." static
CONF
    "$unbound" -c "$work/unbound.conf" &
    company+=(unbound) place[unbound]=127.0.0.1:5302
else
    missing unbound unbound unbound
fi
aardvark=/usr/lib/podman/aardvark-dns
if [ -x "$aardvark" ]; then
    mkdir "$work/aardvark"
    { echo 127.0.0.1; cat "$work/aardvark-names"; } >"$work/aardvark/bench"
    "$aardvark" --config "$work/aardvark" --port 5303 run &
    company+=(aardvark) place[aardvark]=127.0.0.1:5303
else
    missing aardvark "$aardvark" aardvark-dns
fi
sleep 2

# The 99th percentile of what `dnsperf -v` says of each question, in milliseconds.
p99() {
    awk '$1 == ">" { print $NF * 1000 }' "$1" | sort -n | awk '{ all[NR] = $1 } END { if (NR) printf "%.3f", all[int(NR * 0.99) + (NR * 0.99 > int(NR * 0.99))] }'
}
# For awk: the middle one of the figures in a string.
median='function median(list,  all, n, i, j, t) {
    n = split(list, all, " ")
    for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++) if (all[j] + 0 < all[i] + 0) { t = all[i]; all[i] = all[j]; all[j] = t }
    return all[int((n + 1) / 2)]
}'

echo "== beside others"
for ((round = 1; round <= rounds; round++)); do
    for who in "${company[@]}"; do
        questions=$work/questions
        [ "$who" != aardvark ] || questions=$work/questions-aardvark
        ask=(dnsperf -s "${place[$who]%:*}" -p "${place[$who]#*:}" -d "$questions" -l "$seconds" -c 8)
        # As fast as it goes, and then at a rate that leaves everybody time.
        "${ask[@]}" -q 64 >"$work/fast" 2>&1 || { cat "$work/fast"; exit 1; }
        "${ask[@]}" -Q "$calm" -v >"$work/calm" 2>&1 || { tail "$work/calm"; exit 1; }
        rate=$(awk '/Queries per second/ { print $4 }' "$work/fast")
        lost=$(awk '/Queries lost/ { lost += $3 } END { print lost }' "$work/fast" "$work/calm")
        right=$(awk '/Response codes/ { print $3, $4, $5 }' "$work/fast")
        echo "round $round $who $rate $(p99 "$work/calm") lost=$lost $right" | tee -a "$work/figures"
    done
done
echo
awk -v who="${company[*]}" "$median"'
    { rate[$3] = rate[$3] " " $4; p99[$3] = p99[$3] " " $5 }
    END {
        n = split(who, names, " ")
        for (i = 1; i <= n; i++) {
            w = names[i]; r = median(rate[w]); l = median(p99[w])
            if (i == 1) { r0 = r; l0 = l }
            printf "%-10s %9.0f questions/s (overlayd has %.2f times as many), p99 %s ms (%.2f times overlayd'"'"'s)\n", w, r, r0 / r, l, l / l0
        }
    }' "$work/figures"

# What the overlay's names cost while other names are asked for: nobody asks, somebody answers, nobody answers.
echo
echo "== while other names are asked for"
python3 - <<'PYTHON' &
# One server that says of every name that there is none such, and one that says nothing.
import socket
answers, silent = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
answers.bind(("127.0.0.2", 53))
silent.bind(("127.0.0.3", 53))
while True:
    question, who = answers.recvfrom(4096)
    # The question back, as an answer with code 3 and nothing after the question.
    end = question.index(b"\0", 12) + 5
    answers.sendto(question[:2] + b"\x81\x83" + question[4:6] + bytes(6) + question[12:end], who)
PYTHON
declare -A server=([answered]=127.0.0.2 [unanswered]=127.0.0.3 [unasked]=127.0.0.2)
# Each is asked for once: nothing of it is remembered.
others=0
for ((round = 1; round <= rounds; round++)); do
    for how in unasked answered unanswered; do
        echo "nameserver ${server[$how]}" >"$work/upstreams"
        # The file is looked at once a second.
        sleep 2
        if [ "$how" != unasked ]; then
            for ((n = 0; n < 50 * (seconds + 2); n++)); do echo "other$((others++)).example A"; done >"$work/others"
            dnsperf -s 10.200.0.1 -d "$work/others" -n 1 -Q 50 -c 1 -q 1000 -t 10 >"$work/other" 2>&1 &
            asking=$!
        fi
        dnsperf -s 10.200.0.1 -d "$work/questions" -l "$seconds" -c 8 -Q "$calm" -v >"$work/calm" 2>&1 || { tail "$work/calm"; exit 1; }
        told=
        if [ "$how" != unasked ]; then
            wait "$asking"
            told=$(awk '/Response codes/ { print "others:", $3, $4, $5, $6, $7, $8 }' "$work/other")
        fi
        lost=$(awk '/Queries lost/ { print $3 }' "$work/calm")
        echo "round $round $how 0 $(p99 "$work/calm") lost=$lost $told" | tee -a "$work/beside-itself"
    done
done
awk "$median"'
    { p99[$3] = p99[$3] " " $5 }
    END {
        base = median(p99["unasked"])
        for (how in p99) printf "%-11s p99 of the overlay'"'"'s names %s ms (%.2f times that when nobody asks for others)\n", how, median(p99[how]), median(p99[how]) / base
    }' "$work/beside-itself"
