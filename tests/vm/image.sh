# The guest's files as an initial ramdisk. Sourced by `run`.
#
# Three archives one after the other: what every guest has, one kernel's modules, and what one run adds.

# Programs that tests start where they are there; busybox does the rest.
guest_programs=(ip ping wg nft iptables-nft ip6tables-nft)
guest_applets=(mount mkdir mknod cat ln hostname stty modprobe poweroff sleep true false ls id uname cut)

# add_program ROOT FILE [NAME]: the file at its own place or as NAME, and every library that it asks for.
add_program() {
    local root=$1 file=$2 name=${3:-$2} library
    mkdir -p "$root/$(dirname "$name")"
    cp --dereference "$file" "$root/$name"
    ldd "$file" 2>/dev/null | grep -o '/[^ ]*' | while IFS= read -r library; do
        [ -e "$root/$library" ] && continue
        mkdir -p "$root/$(dirname "$library")"
        cp --dereference "$library" "$root/$library"
    done || true # Nothing is asked for by a static one.
}

# pack ROOT ARCHIVE
pack() {
    (cd "$1" && find . | LC_ALL=C sort | cpio --quiet --create --format=newc --owner=0:0) >"$2"
}

# base_image ROOT ARCHIVE
base_image() {
    local root=$1 program file plugins
    rm -rf "$root"
    mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,etc,root,disk,vm,var/tmp}
    # wg(8) looks for userspace devices below /var/run.
    ln -s /run "$root/var/run"
    add_program "$root" "$(command -v busybox)" bin/busybox
    for program in "${guest_applets[@]}"; do
        ln -s /bin/busybox "$root/bin/$program"
    done
    # The shell of this machine: busybox's would run its own `ip` instead of the one that is installed.
    add_program "$root" "$(readlink -f /bin/sh)" bin/sh
    # The kernel calls this one for modules that are not loaded yet.
    add_program "$root" "$(command -v modprobe)" sbin/modprobe
    for program in "${guest_programs[@]}"; do
        if file=$(command -v "$program"); then
            add_program "$root" "$file" "bin/$program"
        else
            echo "the guest has no $program: this machine has none"
        fi
    done
    # iptables loads its matches and targets from there.
    for plugins in /usr/lib/*/xtables; do
        [ -d "$plugins" ] && mkdir -p "$root$plugins" && cp "$plugins"/*.so "$root$plugins/"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
    cp /etc/protocols /etc/services "$root/etc/" 2>/dev/null || true
    cp "$here/guest-init" "$root/init"
    chmod 0755 "$root/init"
    pack "$root" "$2"
}

# modules_image KERNEL ROOT ARCHIVE
modules_image() {
    local kernel=$1 root=$2 release file
    release=$(<"$kernel/release")
    rm -rf "$root"
    mkdir -p "$root/lib/modules/$release" "$root/vm"
    while IFS= read -r file; do
        file=${file#*"/lib/modules/$release/"}
        mkdir -p "$root/lib/modules/$release/$(dirname "$file")"
        cp "$kernel/tree/lib/modules/$release/$file" "$root/lib/modules/$release/$file"
    done < <(module_files "$kernel")
    cp "$kernel/tree/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$release/"
    depmod --basedir "$root" "$release"
    printf '%s\n' "${preloaded[@]}" >"$root/vm/preloaded"
    pack "$root" "$3"
}

# tests_image ROOT ARCHIVE: the test binary, the agent and the fixtures, where the binary looks for them.
tests_image() {
    local root=$1 file
    rm -rf "$root"
    mkdir -p "$root$project/target" "$root/vm"
    for file in "$kernel_tests" "$agent"; do
        add_program "$root" "$file"
        strip "$root$file" 2>/dev/null || echo "no strip here: the guest gets $(basename "$file") as it is"
    done
    cp -r "$project/fixtures" "$root$project/fixtures"
    echo "$kernel_tests" >"$root/vm/binary"
    echo "$project" >"$root/vm/project"
    pack "$root" "$2"
}
