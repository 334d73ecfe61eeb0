#!/usr/bin/env bash
# Runs a command beside a node of its own, and ends the node after it.
#   scripts/with-node.sh BINARY DIR [FLAG OF corelog serve]... -- COMMAND [ARGUMENT]...
# The node keeps its data in DIR/data and its log in DIR/node.log. The command finds its address in CORELOG_SERVER, its
# process in CORELOG_PID, the address of its metrics in CORELOG_HTTP. Exit code: the command's; 1 if the node does not
# start, or does not stop cleanly.
set -eu
binary=$1 dir=$2
shift 2
flags=()
while [ "$1" != -- ]; do flags+=("$1"); shift; done
shift

mkdir -p "$dir"
pid=
stop() {
    [ -n "$pid" ] || return 0
    kill -TERM "$pid" 2>/dev/null || true
    local code=0
    wait "$pid" || code=$?
    pid=
    return "$code"
}
trap 'stop || true' EXIT

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for _ in 1 2 3 4 5; do
    # Below the ports that the kernel gives to outgoing connections.
    port=$((20000 + RANDOM % 12000))
    is_free "$port" && is_free $((port + 1)) && is_free $((port + 100)) || continue
    export CORELOG_SERVER=127.0.0.1:$port CORELOG_HTTP=127.0.0.1:$((port + 100))
    "$binary" serve --data "$dir/data" --listen "$CORELOG_SERVER" --http "$CORELOG_HTTP" "${flags[@]}" \
        >"$dir/node.log" 2>&1 &
    pid=$!
    for _ in $(seq 300); do
        kill -0 "$pid" 2>/dev/null || break
        if "$binary" topic list >/dev/null 2>&1; then
            export CORELOG_PID=$pid
            code=0
            "$@" || code=$?
            stop || { echo "with-node.sh: the node did not stop cleanly:" >&2; tail -n 20 "$dir/node.log" >&2; exit 1; }
            exit "$code"
        fi
        sleep 0.1
    done
    stop || true
done
echo "with-node.sh: the node does not start:" >&2
tail -n 20 "$dir/node.log" >&2
exit 1
