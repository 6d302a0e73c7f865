# Debian kernels, fetched and laid out so that a guest can use them. Sourced by `run`.
#
# A kernel is a directory: `vmlinuz`, `release` (as `uname -r` says it), `tree/lib/modules/RELEASE`.

# The packages stand for Debian's newest build: 6.1 and 6.12.
all_kernels=(linux-image-cloud-amd64 linux-image-6.12-cloud-amd64)
# PACKAGE@SUITE is of another suite than this machine's. This one removes single allowed IPs (Linux 6.16).
newer_kernel=linux-image-cloud-amd64@trixie-backports
# 5.10: addresses say nothing of who made them (`IFA_PROTO`, Linux 5.18), and nft tables have no owner (Linux 5.12).
older_kernel=linux-image-cloud-amd64@bullseye

# What a node of ours may need. A name ending in `*` is a family.
module_names=(
    virtio_pci virtio_blk ext4
    wireguard veth bridge br_netfilter tun ifb
    nf_tables 'nft_*' nf_conntrack nf_nat 'nf_reject_*' 'nf_log_*' 'nfnetlink*'
    x_tables 'xt_*'
)

# Loaded before the tests, so that none of them waits for an emulated processor to load one. nftables takes a
# whole transaction back for each module that it misses.
preloaded=(
    wireguard veth bridge br_netfilter tun nf_tables nft_chain_nat nft_compat nft_ct nft_fib nft_fib_inet nft_limit
    nft_log nft_masq nft_nat nft_redir nft_reject nft_reject_inet nf_conntrack nf_nat
)

# apt_for SUITE: fills `apt_options` for a package of that suite. Its lists are below $store, this machine's are not touched.
apt_options=()
apt_for() {
    local suite=$1 own=$store/apt/$1 mirror keyring
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -n "$mirror" ] && [ -e "$keyring" ] || return 1
    mkdir -p "$own/state/lists/partial" "$own/cache/archives/partial" "$own/parts"
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$own/sources.list"
    apt_options=(-o "Dir::State=$own/state" -o Dir::State::status=/var/lib/dpkg/status -o "Dir::Cache=$own/cache"
        -o "Dir::Etc::sourcelist=$own/sources.list" -o "Dir::Etc::sourceparts=$own/parts")
    apt-get "${apt_options[@]}" -q update >"$own/log" 2>&1
}

# depends PACKAGE PATTERN: those packages that it depends on.
depends() {
    apt-cache "${apt_options[@]}" depends "$1" 2>/dev/null | sed -n 's/^ *Depends: //p' | grep "^$2" || true
}

# fetch_kernel PACKAGE[@SUITE] DIRECTORY
fetch_kernel() {
    local package=${1%@*} suite=${1#"${1%@*}"} into=$2 build parts work deb release
    [ -e "$into/release" ] && return 0
    apt_options=()
    if [ -n "$suite" ] && ! apt_for "${suite#@}"; then
        echo "no lists of Debian's ${suite#@}: $(tail -n 1 "$store/apt/${suite#@}/log" 2>/dev/null)"
        return 1
    fi
    build=$(depends "$package" 'linux-image-[0-9]' | head -n 1)
    if [ -z "$build" ]; then
        echo "apt knows no $package (apt-get update?)"
        return 1
    fi
    rm -rf "$into" "$into.part"
    work=$into.part
    mkdir -p "$work/deb" "$work/tree"
    # Later suites have the kernel, its modules and the lists of them in packages of their own.
    parts=$(depends "$build" 'linux-\(base\|binary\|modules\)-[0-9]')
    # apt drops its privileges for a download where it can.
    if ! (cd "$work/deb" && apt-get "${apt_options[@]}" -q download "$build" $parts) >"$work/log" 2>&1; then
        echo "$build could not be downloaded: $(tail -n 1 "$work/log")"
        return 1
    fi
    for deb in "$work"/deb/*.deb; do
        dpkg-deb --extract "$deb" "$work/tree" || return 1
    done
    # Packages of a merged /usr have their modules below usr/lib.
    [ -d "$work/tree/lib/modules" ] || ln -s usr/lib "$work/tree/lib"
    release=$(ls "$work/tree/lib/modules")
    mv "$work/tree/boot/vmlinuz-$release" "$work/vmlinuz" 2>/dev/null ||
        mv "$work/tree/lib/modules/$release/vmlinuz" "$work/vmlinuz" || return 1
    find "$work/tree/lib/modules/" -name '*.ko.xz' -exec xz --decompress {} +
    depmod --basedir "$work/tree" "$release" || return 1
    rm -rf "$work/deb" "$work/log"
    echo "$release" >"$work/release"
    mv "$work" "$into"
}

# module_files KERNEL: the files of the modules above and of what they need, each once.
module_files() {
    local kernel=$1 release name found
    release=$(<"$kernel/release")
    for name in "${module_names[@]}"; do
        # Families by their files; a name that this kernel does not have, or has built in, gives nothing.
        while IFS= read -r found; do
            modprobe --dirname "$kernel/tree" --set-version "$release" --show-depends "$found" 2>/dev/null || true
        done < <(find -L "$kernel/tree/lib/modules/$release/kernel" -name "$name.ko" -printf '%f\n' | sed 's/\.ko$//')
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u
}
