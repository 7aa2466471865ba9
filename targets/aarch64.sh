#!/usr/bin/env bash
# Cargo for 64-bit Arm Linux on an x86-64 Debian machine: Debian's compiler and standard library, run under qemu.
# usage: aarch64.sh setup                      installs what is missing (as root)
#        aarch64.sh CARGO-SUBCOMMAND [ARGS]    for example: QEMU_CPU=cortex-a53 targets/aarch64.sh test -p lutite-kernels
set -euo pipefail

packages=(rustc-web libstd-rust-web-dev:arm64 cargo-web rust-web-clippy gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
missing() {
    local p
    for p in "${packages[@]}"; do
        dpkg-query -W -f='${Status}\n' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"
    done
}

[ $# -ge 1 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
sub=$1
shift
case $sub in
setup)
    mapfile -t need < <(missing)
    [ ${#need[@]} -gt 0 ] || exit 0
    dpkg --print-foreign-architectures | grep -qx arm64 || dpkg --add-architecture arm64
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${need[@]}"
    ;;
missing) missing ;;
*)
    # The standard library for arm64 belongs to Debian's compiler, so that one has to be used; cargo may be any.
    export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/aarch64}
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    # ld.so and libc.so must come from one package. With libc6:arm64 installed (the standard library brings it), `-L` alone
    # takes one from each, and every pthread_create hangs.
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib'
    if [ "$sub" = clippy ]; then
        # Clippy is bound to its compiler: Debian's own.
        PATH=/usr/bin:$PATH exec /usr/bin/cargo clippy --target aarch64-unknown-linux-gnu "$@"
    fi
    exec cargo "$sub" --target aarch64-unknown-linux-gnu "$@"
    ;;
esac
