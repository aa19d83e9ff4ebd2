#!/bin/bash
# run.sh [STAGE...]
#
# Runs test programs that have been built (make test builds and then calls this) and counts what
# passed and failed. A suite is a program of its own; it passes only if it ends with 0, says how
# many tests it ran, and ran all of them: a program that crashes, hangs or prints no counts has
# failed, however well it began.
#
# Stages (all of them when none is named):
#   release   every unit test, every test of whole servers
#   clang     every unit test and the HTTP contract, built by the other compiler
#   asan      every unit test, whole servers in a shorter run, with ASan, UBSan and LeakSanitizer
#   tsan      the same with ThreadSanitizer
#   valgrind  a node's whole life under memcheck
#
# UNIT_TESTS   names of the unit tests (the Makefile's list)
# UNIT_CHECKS  scripts that count like unit tests
# ONLY         an extended regular expression: only suites whose name matches
#
# build/test-results.txt gets a line a suite; build/test-logs/ all that they said.
set -u
cd "$(dirname "$0")/.." || exit 1

RESULTS=build/test-results.txt
LOGS=build/test-logs
UNIT_TESTS=${UNIT_TESTS:-}
UNIT_CHECKS=${UNIT_CHECKS:-}
ONLY=${ONLY:-}
passed=0 failed=0 skipped=0 suites=0
CPUS=$(nproc)

rm -rf "$LOGS"
mkdir -p "$LOGS"
: >"$RESULTS"

# Reads a suite's output; prints "passed failed skipped", nothing when there are no counts.
# cmocka says "[====] name: Running 3 test(s)." and then "[  PASSED  ] 3 test(s).", for each group;
# everybody else closes with "3 passed, 0 failed".
counts() {
    awk '
        match($0, /Running [0-9]+ test\(s\)/) { split(substr($0, RSTART), w, " "); ran += w[2] }
        /^\[  PASSED  \] [0-9]+ test/ { p += $4; seen = 1 }
        /^\[  SKIPPED \] .*[0-9]+ test\(s\), listed/ {
            match($0, /[0-9]+ test\(s\), listed/); split(substr($0, RSTART), w, " "); s += w[1] }
        /^\[  FAILED  \] .*[0-9]+ test\(s\), listed/ {
            match($0, /[0-9]+ test\(s\), listed/); split(substr($0, RSTART), w, " "); f += w[1]; seen = 1 }
        /^[0-9]+ passed, [0-9]+ failed/ {
            p += $1; f += $3; seen = 1; plain = 1
            if ($6 ~ /^skipped/) s += $5 }
        END {
            if (!seen) exit
            # tests that were announced and of which nothing was heard again
            if (!plain && ran > p + f + s) f += ran - p - f - s
            print p + 0, f + 0, s + 0
        }' "$1"
}

wanted() { [[ -z $ONLY || $1 =~ $ONLY ]]; }
log_of() { echo "$LOGS/${1//\//-}.log"; }

# execute NAME SECONDS COMMAND...   runs a suite; what it said and how it ended goes to files
execute() {
    local log limit=$2 status began=$EPOCHREALTIME
    log=$(log_of "$1")
    shift 2
    timeout -k 20 "$limit" "$@" >"$log" 2>&1 </dev/null
    status=$?
    awk -v a="$began" -v b="$EPOCHREALTIME" -v s="$status" -v l="$limit" \
        'BEGIN { printf "%d %.1f %d\n", s, b - a, l }' >"$log.end"
}

# account NAME   counts a suite that was executed
account() {
    local name=$1 limit log status took p f s note=
    log=$(log_of "$name")
    read -r status took limit <"$log.end"
    read -r p f s <<<"$(counts "$log")"
    if [[ -z ${p:-} ]]; then
        p=0 f=1 s=0 note="said no counts, status $status"
    elif ((status != 0 && f == 0)); then
        f=1 note="ended with status $status"
    elif ((p + f == 0)); then
        f=1 note="ran no test"
    fi
    ((status == 124 || status == 137)) && note="was ended after $limit s"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s)) suites=$((suites + 1))
    printf '%-6s %-34s %5d passed %4d failed %7s s%s\n' "$( ((f == 0)) && echo ok || echo FAILED)" \
        "$name" "$p" "$f" "$took" "${note:+  ($note)}"
    printf '%s %d %d %d %s\n' "$name" "$p" "$f" "$s" "$took" >>"$RESULTS"
    if ((f > 0)); then
        echo "---- the end of $log"
        tail -n 80 "$log"
        echo "----"
    fi
}

# suite NAME SECONDS COMMAND...
suite() {
    wanted "$1" || return 0
    execute "$@"
    account "$1"
}

# Unit tests share nothing: as many at once as there are processors. They are counted in order.
unit_tests() {
    local flavour=$1 limit=$2 t
    for t in $UNIT_TESTS; do
        wanted "$flavour/$t" || continue
        while (($(jobs -rp | wc -l) >= CPUS)); do
            wait -n
        done
        execute "$flavour/$t" "$limit" "build/$flavour/tests/$t" &
    done
    wait
    for t in $UNIT_TESTS; do
        ! wanted "$flavour/$t" || account "$flavour/$t"
    done
}

# Whole servers: flavour, factor on times, 1 for the short run, names of tests.
cluster_tests() {
    local flavour=$1 scale=$2 quick=$3 t
    shift 3
    for t in "$@"; do
        KVRAFTD_BIN=$PWD/build/$flavour/bin/kvraftd TIME_SCALE=$scale QUICK=$quick \
            suite "$flavour/cluster/$t" 900 python3 "tests/cluster/test_$t.py"
    done
}

# What nobody calls proves nothing.
every_test_is_listed() {
    local file name bad=0
    for file in tests/unit/test_*.c; do
        name=$(basename "$file" .c)
        [[ " $UNIT_TESTS " == *" $name "* ]] || { echo "$file is not in UNIT_TESTS"; bad=$((bad + 1)); }
    done
    echo "$(((bad == 0))) passed, $bad failed"
    ((bad == 0))
}
export -f every_test_is_listed
export UNIT_TESTS
export TSAN_OPTIONS=suppressions=$PWD/tests/tsan.supp:exitcode=99

stage_release() {
    local check
    suite release/every_test_is_listed 10 bash -c every_test_is_listed
    unit_tests release 300
    for check in $UNIT_CHECKS; do
        suite "release/$(basename "$check")" 60 bash "$check"
    done
    cluster_tests release 1 0 contract errors failover cmdline cluster_sh debian
    suite release/readme 180 bash tests/readme.sh
}

stage_clang() {
    unit_tests clang 300
    cluster_tests clang 1 1 contract
}

stage_asan() {
    unit_tests asan 600
    cluster_tests asan 3 1 contract errors failover cmdline
}

stage_tsan() {
    unit_tests tsan 600
    cluster_tests tsan 4 1 contract failover
}

stage_valgrind() {
    cluster_tests release 10 1 valgrind
}

for stage in "${@:-release clang asan tsan valgrind}"; do
    for one in $stage; do
        "stage_$one"
    done
done
echo "$suites suites in $((SECONDS / 60)) min $((SECONDS % 60)) s${skipped:+, $skipped tests skipped}"
echo "$passed passed, $failed failed" | tee -a "$RESULTS"
((failed == 0 && passed > 0))
