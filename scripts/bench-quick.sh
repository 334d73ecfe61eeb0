#!/usr/bin/env bash
# A small set of measurements against a node of its own: raw floors, produce synced and not, fetch. Reports go to
# target/bench/. RUNS=5 takes medians of five; CORES_NODE and CORES_LOAD pin node and generator; SECONDS_EACH sets the
# length of a run.
set -eu
cd "$(dirname "$0")/.."
cargo build --quiet --release --locked -p corelog-server
binary=$PWD/target/release/corelog
out=target/bench
mkdir -p "$out"
out=$(cd "$out" && pwd)
scratch=$(mktemp -d "$PWD/target/bench-node.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
export out binary runs=${RUNS:-1} seconds=${SECONDS_EACH:-5} load=${CORES_LOAD:-1}

"$binary" bench floor --dir "$scratch" --duration 1s --depths 1,4 --json "$out/floor.json"
cat >"$scratch/run" <<'RUN'
set -eu
produce() { # NAME FLAGS...
    name=$1
    shift
    printf '\n== %s: produce %s\n' "$name" "$*"
    "$binary" bench produce --cores "$load" --repeat "$runs" --duration "${seconds}s" --json "$out/$name.json" "$@" | tail -n +4
}
for flush in commit interval; do
    produce "large-$flush" --flush $flush --record-bytes 1000 --batch-records 1000 --in-flight 4
    produce "small-$flush" --flush $flush --record-bytes 100 --batch-records 100 --in-flight 64
    produce "single-$flush" --flush $flush --record-bytes 1000 --batch-records 1 --in-flight 64
done
produce paced-commit --record-bytes 1000 --batch-records 1 --rate 500
produce kept --topic bench-kept --keep --record-bytes 1000 --batch-records 1000 --flush interval
for mode in cold tail; do
    printf '\n== fetch %s\n' "$mode"
    [ "$mode" = cold ] || "$binary" bench produce --topic bench-kept --existing --cores "$load" --rate 100000 \
        --batch-records 1000 --duration $((seconds * runs + 10))s >/dev/null 2>&1 &
    "$binary" bench fetch --topic bench-kept --mode "$mode" --cores "$load" --repeat "$runs" --duration "${seconds}s" \
        --json "$out/fetch-$mode.json" | tail -n +4
done
wait
RUN
scripts/with-node.sh "$binary" "$scratch" --cores "${CORES_NODE:-0}" -- bash "$scratch/run"
echo
echo "reports: $out"
