#!/bin/bash
# readme.sh [FILE]
#
# Does what the README says. Each block that is fenced as "sh run" is one test; all of them run in
# one shell, in their order, on a cluster that the first of them starts in a directory of its own.
# A block fails when its last command does (set -e: any command), or when what it prints differs
# from the fenced block right behind it, if there is one; "..." there stands for anything.
#
# The ports are the README's if they are free, others otherwise: then they are replaced in what is
# run and in what is expected. Whatever happens, no node is left running.
set -u
cd "$(dirname "$0")/.." || exit 1
readme=${1:-README.md}
work=$(mktemp -d "${TMPDIR:-/tmp}/readme.XXXXXX") || exit 1
# What an outer make says about itself must not reach the README's.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES GNUMAKEFLAGS NODES ARGS

stop_nodes() {
    local pid
    for pid in "$work"/data/*.pid; do
        [ -s "$pid" ] && kill -9 "$(cat "$pid")" 2>/dev/null
    done
    rm -rf "$work"
}
trap stop_nodes EXIT
trap 'exit 1' INT TERM

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# The first hundred ports from $1 on, in steps, of which the first three are free.
free_ports() {
    local base
    for base in "$1" $(seq $(($1 + 2000)) 10 $(($1 + 2900))); do
        if is_free "$base" && is_free $((base + 1)) && is_free $((base + 2)); then
            echo "$base"
            return
        fi
    done
}
HTTP_PORT=$(free_ports 11000)
RAFT_PORT=$(free_ports 12000)
if [ -z "$HTTP_PORT" ] || [ -z "$RAFT_PORT" ]; then
    echo "no free ports"
    echo "0 passed, 1 failed"
    exit 1
fi
DATA=$work/data
export HTTP_PORT RAFT_PORT DATA

# Splits the README: N.sh is a block to run, N.want what it shall print.
awk -v dir="$work" '
    /^```/ && !inside {
        inside = 1
        if ($0 == "```sh run") { n++; out = dir "/" n ".sh"; last = NR; print NR > (dir "/" n ".line") }
        else if ($0 == "```" && n && NR == last + 1) out = dir "/" n ".want"
        else out = ""
        if (out != "") printf "" > out
        next
    }
    /^```$/ { inside = 0; if (out ~ /\.sh$/) last = NR; out = ""; next }
    inside && out != "" { print > out }' "$readme"
n=$(find "$work" -name '*.sh' | wc -l)
sed -i -e "s/\b1100\([0-9]\)\b/#H\1#/g; s/\b1200\([0-9]\)\b/#R\1#/g; s,data/cluster,$DATA,g" \
    "$work"/*.sh "$work"/*.want
for i in 0 1 2; do
    sed -i -e "s/#H$i#/$((HTTP_PORT + i))/g; s/#R$i#/$((RAFT_PORT + i))/g" "$work"/*.sh "$work"/*.want
done

# One shell for all, as if they were pasted one after the other.
for ((i = 1; i <= n; i++)); do
    echo ". '$work/$i.sh' >'$work/$i.out' 2>'$work/$i.err'; : >'$work/$i.done'"
done >"$work/all"
timeout -k 5 300 bash -e "$work/all" </dev/null 2>"$work/all.err"

# The pattern for [[ ]] that a wanted output stands for.
pattern() { sed -e 's/[][\\*?]/\\&/g; s/\.\.\./*/g' "$1"; }

passed=0 failed=0
for ((i = 1; i <= n; i++)); do
    name="$readme:$(cat "$work/$i.line"): $(head -n 1 "$work/$i.sh")"
    got=$(tr -d '\r' <"$work/$i.out" 2>/dev/null)
    # shellcheck disable=SC2053
    if [ ! -e "$work/$i.done" ]; then
        echo "FAILED $name"
        echo "  it did not end well; it printed:"
    elif [ -e "$work/$i.want" ] && [[ $got != $(pattern "$work/$i.want") ]]; then
        echo "FAILED $name"
        printf '%s\n' "  wanted:" "$(cat "$work/$i.want")" "  got:"
    else
        echo "ok     $name"
        passed=$((passed + 1))
        continue
    fi
    failed=$((failed + 1))
    printf '%s\n' "$got" "$(grep -v '^ *[0-9% ]' "$work/$i.err" 2>/dev/null | tail -n 20)"
done
if ((failed > 0)); then
    tail -n 5 "$work/all.err" "$DATA"/*.log 2>/dev/null
elif ((n == 0)); then
    echo "there is nothing to run in $readme"
    failed=1
fi
echo "$passed passed, $failed failed"
((failed == 0))
