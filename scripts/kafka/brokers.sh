#!/usr/bin/env bash
# Apache Kafka brokers to measure against, on loopback, each with 1 GB of heap: KRaft, every broker also a controller.
#   scripts/kafka/brokers.sh start N DIR     starts N brokers with their data below DIR; prints their addresses
#   scripts/kafka/brokers.sh kill I DIR      ends broker I (from 1) with SIGKILL
#   scripts/kafka/brokers.sh stop DIR        ends them all and removes DIR
# Needs Java 17 and Maven; the jars come from Maven Central once, into target/kafka. SESSION_MS sets the brokers' session.
set -eu
cd "$(dirname "$0")/../.."
jars=$PWD/target/kafka

fetch_jars() {
    [ -e "$jars/complete" ] && return
    mkdir -p "$jars"
    mvn -q -f scripts/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory="$jars" -DbuildDirectory="$jars/build"
    rm -rf scripts/kafka/target
    touch "$jars/complete"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start() { # N DIR
    local count=$1 dir=$2 voters="" i
    fetch_jars
    mkdir -p "$dir"
    local clients=() controllers=()
    for ((i = 1; i <= count; i++)); do
        clients+=("$(free_port)")
        controllers+=("$(free_port)")
        voters+=${voters:+,}$i@127.0.0.1:${controllers[-1]}
    done
    local replicas=$((count < 3 ? 1 : 3)) cluster
    cluster=$(java -cp "$jars/*" kafka.tools.StorageTool random-uuid 2>/dev/null)
    for ((i = 1; i <= count; i++)); do
        local own=$dir/$i
        mkdir -p "$own"
        cat >"$own/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=$i
controller.quorum.voters=$voters
listeners=PLAINTEXT://127.0.0.1:${clients[i - 1]},CONTROLLER://127.0.0.1:${controllers[i - 1]}
advertised.listeners=PLAINTEXT://127.0.0.1:${clients[i - 1]}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$own/data
offsets.topic.replication.factor=$replicas
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=1
broker.session.timeout.ms=${SESSION_MS:-9000}
PROPERTIES
        java -cp "$jars/*" kafka.tools.StorageTool format -t "$cluster" -c "$own/server.properties" >"$own/format.log" 2>&1
        setsid java -server -Xms1G -Xmx1G -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -cp "$jars/*" kafka.Kafka \
            "$own/server.properties" >"$own/log" 2>&1 </dev/null &
        echo $! >"$own/pid"
    done
    for ((i = 1; i <= count; i++)); do
        for _ in $(seq 1 600); do
            grep -q "Kafka Server started" "$dir/$i/log" && break
            kill -0 "$(cat "$dir/$i/pid")" 2>/dev/null || { tail -5 "$dir/$i/log" >&2; exit 1; }
            sleep 0.1
        done
        echo "127.0.0.1:${clients[i - 1]}"
    done
}

stop() { # DIR
    local pid_file
    for pid_file in "$1"/*/pid; do
        kill -9 "$(cat "$pid_file")" 2>/dev/null || true
    done
    sleep 0.5
    rm -rf "$1"
}

case ${1:-} in
start) start "$2" "$3" ;;
kill) kill -9 "$(cat "$3/$2/pid")" ;;
stop) stop "$2" ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
