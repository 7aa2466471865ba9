#!/usr/bin/env bash
# Instructions per weight of a product with one vector, exact and the same on every machine: what two repetitions more take,
# by callgrind for x86-64 (which knows no AVX-512), by a qemu plugin for 64-bit Arm.
# usage: benches/instructions/count.sh      needs valgrind, gcc, and what `targets/aarch64.sh missing` names
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo build -q --release -p lutite-benches --example repeat
targets/aarch64.sh build -q --release -p lutite-benches --example repeat
gcc -O2 -fPIC -shared -o target/total.so benches/instructions/total.c

# total TIER ARGUMENT...: instructions of a whole run
total() {
    case $1 in
    avx2)
        valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/examples/repeat "${@:2}" 2>&1 |
            sed -n 's/.*Collected : //p'
        ;;
    *)
        qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib -plugin target/total.so \
            target/aarch64/aarch64-unknown-linux-gnu/release/examples/repeat "${@:2}" 2>&1 |
            sed -n 's/^instructions: //p'
        ;;
    esac
}

rows=512 cols=4096
echo "| tier | q | group | kind | instructions per weight | tables: per activation |"
echo "|---|---:|---:|---|---:|---:|"
for tier in avx2 neon neon-dot; do
    for shape in "1 128 hlq16" "2 128 hlq16" "2 64 hlq8" "3 128 hlq16" "4 128 hlq16" "4 32 uniform"; do
        read -r q group kind <<<"$shape"
        cells=()
        for what in gemv table; do
            one=$(total "$tier" $what "$tier" $rows $cols "$q" "$group" "$kind" 1)
            three=$(total "$tier" $what "$tier" $rows $cols "$q" "$group" "$kind" 3)
            per=$cols
            [ $what = table ] || per=$((rows * cols))
            cells+=("$(awk "BEGIN { printf \"%.3f\", ($three - $one) / 2 / $per }")")
        done
        echo "| $tier | $q | $group | $kind | ${cells[0]} | ${cells[1]} |"
    done
done
