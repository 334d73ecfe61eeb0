#!/usr/bin/env bash
# Three nodes on this machine, a ZooKeeper, a load and a live view: kill a node and watch it heal.
#   scripts/cluster.sh BINARY [SCRIPT]
# The nodes are 1 to 3, with their ports from 9800, 9900 and 10000 on (BASE_PORT says otherwise). Without a terminal, or
# with SCRIPT = demo, it kills and restarts a node by itself, checks that all is well again, and ends. Everything lies in a
# temporary directory and goes with it.
set -eu
binary=$(realpath "$1")
mode=${2:-}
[ -t 0 ] && [ -t 1 ] || mode=demo
base=${BASE_PORT:-9800}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/corelog-cluster.XXXXXX")
zookeeper=/usr/share/zookeeper/bin/zkServer.sh
[ -x "$zookeeper" ] || { echo "cluster.sh: ZooKeeper is missing; run scripts/setup.sh" >&2; exit 1; }
declare -A pids=()

finish() {
    [ -n "${load:-}" ] && kill "$load" 2>/dev/null || true
    for name in "${!pids[@]}"; do kill -KILL "${pids[$name]}" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

start_zookeeper() {
    cat >"$dir/zoo.cfg" <<CONFIG
tickTime=500
dataDir=$dir/zookeeper
clientPort=$((base - 1))
clientPortAddress=127.0.0.1
admin.enableServer=false
CONFIG
    # The script ends in the server itself, so its process id is the server's.
    ZOO_LOG_DIR=$dir ZOO_DATADIR_AUTOCREATE_DISABLE= "$zookeeper" start-foreground "$dir/zoo.cfg" >"$dir/zookeeper.log" 2>&1 &
    pids[zookeeper]=$!
    for _ in $(seq 100); do
        (exec 3<>"/dev/tcp/127.0.0.1/$((base - 1))") 2>/dev/null && return
        sleep 0.1
    done
    tail -n 5 "$dir/zookeeper.log" >&2
    exit 1
}

start_node() { # NUMBER
    local port=$((base + ($1 - 1) * 100))
    CORELOG_REPLICATION_ADDRESS=127.0.0.1:$((port + 60)) CORELOG_ZOOKEEPER_SESSION_TIMEOUT=2s CORELOG_MEMORY_PER_SHARD=64MiB \
        CORELOG_ZOOKEEPER_CONNECT=127.0.0.1:$((base - 1)) CORELOG_NODE_ID=$1 \
        "$binary" serve --data "$dir/node$1" --listen "127.0.0.1:$port" --http "127.0.0.1:$((port + 50))" --cores "$(((($1 - 1)) % $(nproc)))" \
        >"$dir/node$1.out" 2>>"$dir/node$1.log" &
    pids[node$1]=$!
}

wait_ready() { # NUMBER
    for _ in $(seq 300); do
        grep -q '^ready' "$dir/node$1.out" 2>/dev/null && return
        kill -0 "${pids[node$1]}" 2>/dev/null || break
        sleep 0.1
    done
    echo "cluster.sh: node $1 does not get ready:" >&2
    tail -n 20 "$dir/node$1.log" >&2
    exit 1
}

wait_well() { # TEXT
    for _ in $(seq 300); do
        "$binary" cluster status --check >/dev/null 2>&1 && { echo "$1"; return; }
        sleep 0.1
    done
    "$binary" cluster status || true
    echo "cluster.sh: the cluster does not heal" >&2
    exit 1
}

records() { # one each 10 ms, until nobody reads them
    local i=0
    while echo "record $i" 2>/dev/null; do
        i=$((i + 1))
        sleep 0.01
    done
}

echo "cluster.sh: ZooKeeper and three nodes in $dir"
start_zookeeper
for i in 1 2 3; do start_node $i; done
for i in 1 2 3; do wait_ready $i; done
CORELOG_SERVER=127.0.0.1:$base,127.0.0.1:$((base + 100)),127.0.0.1:$((base + 200))
export CORELOG_SERVER
"$binary" topic create demo --partitions 6 --replicas 3
"$binary" produce demo < <(records) >/dev/null 2>"$dir/produce.log" &
load=$!

if [ "$mode" = demo ]; then
    wait_well "three nodes, every replica in sync"
    "$binary" cluster status
    echo "cluster.sh: kill -9 of node 2"
    kill -KILL "${pids[node2]}"
    wait "${pids[node2]}" 2>/dev/null || true
    sleep 3
    "$binary" cluster status
    echo "cluster.sh: node 2 starts again"
    : >"$dir/node2.out"
    start_node 2
    wait_ready 2
    wait_well "node 2 is back, every replica in sync"
    "$binary" cluster rebalance
    "$binary" cluster status
    if grep -v retrying "$dir/produce.log"; then
        echo "cluster.sh: the producer met errors" >&2
        exit 1
    fi
    echo "the producer went on through all of it"
    exit 0
fi

echo "cluster.sh: 'k N' kills node N, 's N' starts it again, 'd N' drains it, 'u N' takes that back, 'q' ends all; Enter shows the view again"
while :; do
    timeout --foreground 5 "$binary" cluster status --watch || true
    read -r -p "> " verb number || exit 0
    case $verb in
    k) kill -KILL "${pids[node$number]}" ;;
    s) : >"$dir/node$number.out"; start_node "$number" ;;
    d) "$binary" cluster drain "$number" || true ;;
    u) "$binary" cluster drain "$number" --undo || true ;;
    q) exit 0 ;;
    esac
done
