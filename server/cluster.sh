#!/bin/sh
# cluster.sh start | stop | status
#
# Runs a cluster on this machine, for trying out and for development: nodes n1..nN on 127.0.0.1,
# left running in the background. `start` starts what does not run yet, so it can be repeated after
# a node was killed; it returns when all nodes serve.
#
#   NODES       3 or 5 (any number from 1 to 9)      default 3
#   DATA        where data, logs and pids lie        default ./data/cluster
#   HTTP_PORT   of n1; the others follow             default 11000
#   RAFT_PORT   of n1; the others follow             default 12000
#   BIN         the program                          default ./bin/kvraftd
#   ARGS        more flags for every node            default none
#
# $DATA/n1/      data of n1          $DATA/n1.log   what it says
# $DATA/n1.pid   its process         $DATA/nodes    how many nodes this cluster has
set -eu

DATA=${DATA:-./data/cluster}
HTTP_PORT=${HTTP_PORT:-11000}
RAFT_PORT=${RAFT_PORT:-12000}
BIN=${BIN:-./bin/kvraftd}
WAIT_S=${WAIT_S:-30}

die() {
    echo "cluster: $*" >&2
    exit 1
}

# The number of nodes: that of the data, unless there is none yet.
count_nodes() {
    have=$(cat "$DATA/nodes" 2>/dev/null || true)
    want=${NODES:-${have:-3}}
    case $want in
    [1-9]) ;;
    *) die "NODES is a number from 1 to 9, not \"$want\"" ;;
    esac
    if [ -n "$have" ] && [ "$have" != "$want" ]; then
        die "$DATA holds a cluster of $have nodes. Choose another DATA for one of $want, or remove" \
            "the old one: make cluster-stop && rm -r $DATA"
    fi
}

http_of() { echo "127.0.0.1:$((HTTP_PORT + $1 - 1))"; }
raft_of() { echo "127.0.0.1:$((RAFT_PORT + $1 - 1))"; }

# Prints the pid of node $1 when the process in its pid file runs and really is this node: pids are
# used again by others.
pid_of() {
    pid=$(cat "$DATA/n$1.pid" 2>/dev/null) || return 1
    case $pid in
    '' | *[!0-9]*) return 1 ;;
    esac
    { tr '\0' '\n' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qxF -e "$DATA/n$1" || return 1
    echo "$pid"
}

members() {
    i=1
    list=
    while [ "$i" -le "$want" ]; do
        list="$list${list:+,}n$i=$(raft_of "$i")"
        i=$((i + 1))
    done
    echo "$list"
}

# The node writes its pid itself and then becomes kvraftd, in a session of its own: it survives the
# terminal, and make.
start_node() {
    # shellcheck disable=SC2016,SC2086
    setsid sh -c 'echo $$ >"$1"; shift; exec "$@"' sh "$DATA/n$1.pid" \
        "$BIN" -id "n$1" -haddr "$(http_of "$1")" -raddr "$(raft_of "$1")" \
        -initial-cluster "$(members)" ${ARGS:-} "$DATA/n$1" \
        </dev/null >>"$DATA/n$1.log" 2>&1 3>&- 4>&- 5>&- 6>&- &
}

# Waits until node $1 is ready. A node that ends meanwhile has said why.
wait_ready() {
    deadline=$(($(date +%s) + WAIT_S))
    while ! curl -fs -o /dev/null --max-time 2 "http://$(http_of "$1")/readyz"; do
        if ! pid_of "$1" >/dev/null; then
            sleep 0.2 # it may be between fork and exec
            pid_of "$1" >/dev/null || {
                echo "cluster: n$1 ended; its last words (more in $DATA/n$1.log):" >&2
                tail -n 3 "$DATA/n$1.log" >&2
                if grep -q 'in use' "$DATA/n$1.log"; then
                    echo "Other ports: make cluster HTTP_PORT=21000 RAFT_PORT=22000" >&2
                fi
                exit 1
            }
        fi
        [ "$(date +%s)" -lt "$deadline" ] ||
            die "n$1 is not ready after $WAIT_S s; see $DATA/n$1.log"
        sleep 0.05
    done
}

start() {
    count_nodes
    [ -x "$BIN" ] || die "there is no $BIN: run make first"
    command -v curl >/dev/null || die "curl is needed to see whether the nodes serve"
    mkdir -p "$DATA"
    echo "$want" >"$DATA/nodes"
    i=1
    started=
    while [ "$i" -le "$want" ]; do
        if pid_of "$i" >/dev/null; then
            echo "n$i runs already (pid $(pid_of "$i"))"
        else
            # What answers there now is not ours.
            if curl -s -o /dev/null --max-time 2 "http://$(http_of "$i")/livez"; then
                die "something else answers on $(http_of "$i");" \
                    "other ports: make cluster HTTP_PORT=21000 RAFT_PORT=22000"
            fi
            : >"$DATA/n$i.pid"
            start_node "$i"
            started="$started $i"
        fi
        i=$((i + 1))
    done
    # Between fork and exec a node is not yet to be recognised.
    for i in $started; do
        tries=0
        while ! pid_of "$i" >/dev/null && [ "$tries" -lt 40 ]; do
            sleep 0.05
            tries=$((tries + 1))
        done
    done
    i=1
    while [ "$i" -le "$want" ]; do
        wait_ready "$i"
        i=$((i + 1))
    done
    for i in $started; do
        echo "n$i serves: HTTP $(http_of "$i"), Raft $(raft_of "$i"), log $DATA/n$i.log"
    done
    other=$(http_of $((want > 1 ? 2 : 1)))
    cat <<END

Any node takes any request:

  curl -X PUT --data-binary 'hello' http://$(http_of 1)/v1/kv/greeting
  curl http://$other/v1/kv/greeting
  curl 'http://$other/v1/kv/?prefix'
  curl -N http://$(http_of 1)/v1/watch/greeting
  curl -d '{"then":[{"put":{"key":"a","value":"1"}}]}' http://$other/v1/txn
  curl http://$(http_of 1)/v1/cluster

  kill -9 \$(cat $DATA/n1.pid)      # then write through another node; make cluster starts n1 again
  make cluster-status              # who leads
  make cluster-stop
END
}

stop() {
    count_nodes
    stopping=
    i=1
    while [ "$i" -le "$want" ]; do
        if pid=$(pid_of "$i"); then
            kill -TERM "$pid"
            stopping="$stopping $i"
        fi
        i=$((i + 1))
    done
    [ -n "$stopping" ] || echo "no node runs"
    deadline=$(($(date +%s) + WAIT_S))
    for i in $stopping; do
        while pid=$(pid_of "$i"); do
            [ "$(date +%s)" -lt "$deadline" ] ||
                die "n$i (pid $pid) still runs $WAIT_S s after SIGTERM; see $DATA/n$i.log"
            sleep 0.05
        done
        rm -f "$DATA/n$i.pid"
        echo "n$i stopped"
    done
}

# A member of a flat JSON object on stdin.
member() { sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p"; }

status() {
    count_nodes
    printf '%-5s %-8s %-17s %-10s %-7s %-6s %-8s %s\n' node pid http role leader term lag health
    serving=0
    i=1
    while [ "$i" -le "$want" ]; do
        pid=$(pid_of "$i") || pid=-
        health=
        [ "$pid" = - ] || health=$(curl -s --max-time 2 "http://$(http_of "$i")/health") || true
        if [ -n "$health" ]; then
            ok=$(echo "$health" | member ok)
            [ "$ok" != true ] || serving=$((serving + 1))
            printf '%-5s %-8s %-17s %-10s %-7s %-6s %-8s %s\n' "n$i" "$pid" "$(http_of "$i")" \
                "$(echo "$health" | member role)" "$(echo "$health" | member leader)" \
                "$(echo "$health" | member term)" "$(echo "$health" | member applied_lag)" \
                "$([ "$ok" = true ] && echo ok || echo "not ok")"
        else
            printf '%-5s %-8s %-17s %s\n' "n$i" "$pid" "$(http_of "$i")" \
                "$([ "$pid" = - ] && echo "does not run" || echo "does not answer")"
        fi
        i=$((i + 1))
    done
    [ "$serving" -eq "$want" ]
}

case ${1:-} in
start | stop | status) "$1" ;;
*)
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
