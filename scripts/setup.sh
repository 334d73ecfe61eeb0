#!/usr/bin/env bash
# Brings what a fresh Debian or Ubuntu with Rust lacks for building and testing: a C compiler and make (glommio's
# liburing, zstd, mimalloc and the cryptography of TLS are C), Python's venv (flatc comes as a Python package),
# ZooKeeper with Java (the tests start ensembles of their own), and what makes networks and disks for tests of clusters.
# Does nothing if all is there.
set -eu
missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v make >/dev/null || missing+=(make)
if [ "${1:-}" != build ]; then
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    [ -x /usr/share/zookeeper/bin/zkServer.sh ] || missing+=(zookeeper)
    command -v ip >/dev/null || [ -x /usr/sbin/ip ] || missing+=(iproute2)
    command -v nft >/dev/null || [ -x /usr/sbin/nft ] || missing+=(nftables)
    command -v unshare >/dev/null && command -v nsenter >/dev/null || missing+=(util-linux)
    command -v mkfs.ext4 >/dev/null || [ -x /usr/sbin/mkfs.ext4 ] || missing+=(e2fsprogs)
fi
if ! command -v cargo >/dev/null; then
    echo "setup: cargo is not on the PATH; install Rust with rustup first (rust-toolchain.toml pins the version)" >&2
    exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "setup: please install: ${missing[*]} (names as on Debian)" >&2
    exit 1
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
