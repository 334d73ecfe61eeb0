#!/usr/bin/env bash
# Runs every command of README.md that stands in a block marked `sh`, in order, beside a node of its own.
#   ```sh        run as it stands (the server's address comes from the environment)
#   ```sh serve  the node: with-node.sh has started it with the same verb
#   ```sh bench  run, but briefly
# Blocks without a mark are not commands for a machine without our users' files (make, systemd).
set -eu
cd "$(dirname "$0")/.."
cargo build --quiet --locked -p corelog-server
mkdir -p target
scratch=$(mktemp -d "$PWD/target/readme.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

commands=$scratch/commands
awk '
    /^ *```/ { if (inside) inside = 0; else { inside = ($1 == "```sh"); kind = $2 }; next }
    inside && kind != "serve" && NF { sub(/^ +/, ""); print kind ";" $0 }
' README.md >"$commands"
[ "$(wc -l <"$commands")" -ge 8 ] || { echo "check-readme.sh: README.md has lost its commands" >&2; exit 1; }

cat >"$scratch/run" <<'RUN'
set -euo pipefail
count=0
while IFS=';' read -r kind command <&3; do
    case $kind in
    bench)
        brief="--duration 200ms"
        case $command in
        *' floor '*) brief="--duration 10ms --file-bytes 16m" ;;
        *' engine '*) brief="--duration 200ms --warmup 50ms --bytes-max 256m" ;;
        *) brief="--duration 200ms --warmup 50ms" ;;
        esac
        command="$command $brief"
        ;;
    esac
    echo "README: $command"
    bash -euo pipefail -c "$command" >out 2>&1 </dev/null || { cat out; echo "README.md: this command fails: $command" >&2; exit 1; }
    count=$((count + 1))
done 3<commands
echo "README: $count commands run"
RUN
: >"$scratch/corelog.toml"
export PATH=$PWD/target/debug:$PATH
cd "$scratch"
exec_dir=$OLDPWD
"$exec_dir/scripts/with-node.sh" corelog "$scratch" -- bash "$scratch/run"
