#!/usr/bin/env bash
# Decoding on a machine that is busy with other work: one thread, a thread for each CPU, four for each; alone, and beside a
# program that keeps the last CPU busy. Prints a table of tokens per second, medians, and each against one thread alone.
# usage: benches/busy.sh MODEL [LUTITE...]     a model file; programs to compare, by default target/release/lutite
# CPUS=0,1 for other CPUs than the first two.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,5s/^# //p' "$0"; exit 2; }
model=$1
shift
programs=("$@")
[ ${#programs[@]} -gt 0 ] || programs=("$(dirname "$0")/../target/release/lutite")
cpus=${CPUS:-0,1}
IFS=, read -ra list <<<"$cpus"
n=${#list[@]}
export LUTITE_CONFIG=/dev/null
busy=
trap '[ -z "$busy" ] || kill "$busy"' EXIT

# tokens PROGRAM THREADS: the median of some repetitions
tokens() {
    taskset -c "$cpus" "$1" bench -m "$model" -p 0 -n 64 -r 7 -t "$2" -o json 2>/dev/null | tr -d ' \n' |
        sed -n 's/.*"tokens_per_second":\([0-9.]*\).*/\1/p'
}

echo "| program | test | threads | t/s | against 1 thread alone |"
echo "|---|---|---:|---:|---:|"
for program in "${programs[@]}"; do
    one=
    for load in alone busy; do
        if [ $load = busy ]; then
            taskset -c "${list[-1]}" sh -c 'while :; do :; done' &
            busy=$!
        fi
        for threads in 1 "$n" $((4 * n)); do
            speed=$(tokens "$program" "$threads")
            one=${one:-$speed}
            echo "$program $load $threads $speed $one" |
                awk '{ printf "| %s | %s | %d | %.1f | %.2f |\n", $1, $2, $3, $4, $4 / $5 }'
        done
    done
    kill "$busy"
    busy=
done
