# Debian kernels, fetched and laid out so that a guest can use them. Sourced by `run`.
#
# A kernel is a directory: `vmlinuz`, `release` (as `uname -r` says it), `tree/lib/modules/RELEASE`.

# The packages stand for Debian's newest build: 6.1 and 6.12.
all_kernels=(linux-image-cloud-amd64 linux-image-6.12-cloud-amd64)

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

# fetch_kernel PACKAGE DIRECTORY
fetch_kernel() {
    local package=$1 into=$2 build work release
    [ -e "$into/release" ] && return 0
    build=$(apt-cache depends "$package" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    if [ -z "$build" ]; then
        echo "apt knows no $package (apt-get update?)"
        return 1
    fi
    rm -rf "$into" "$into.part"
    work=$into.part
    mkdir -p "$work/deb" "$work/tree"
    # apt drops its privileges for a download where it can.
    if ! (cd "$work/deb" && apt-get -q download "$build") >"$work/log" 2>&1; then
        echo "$build could not be downloaded: $(tail -n 1 "$work/log")"
        return 1
    fi
    dpkg-deb --extract "$work"/deb/*.deb "$work/tree" || return 1
    # Packages of a merged /usr have their modules below usr/lib.
    [ -d "$work/tree/lib/modules" ] || ln -s usr/lib "$work/tree/lib"
    release=$(ls "$work/tree/lib/modules")
    mv "$work/tree/boot/vmlinuz-$release" "$work/vmlinuz"
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
