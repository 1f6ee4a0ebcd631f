#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Use a wheel in a fresh Debian userland that has a Python and nothing else, and say how long it
# took from `pip install` to a passing `pyvattn info --probe`. Needs root and debootstrap.
#
#   check_userland.sh WHEEL [SUITE [PREFIX]]
#
#   SUITE    Debian's name for the release [trixie]
#   PREFIX   where a Python lies that can be copied there, such as pyenv's or uv's, without its
#            packages; SUITE must have the libraries it was built with [Debian's own Python]
#
# A wheel for aarch64 gets an arm64 userland; the kernel must know qemu-user for its programs then
# (Debian: qemu-user-static).
set -euo pipefail
usage="usage: check_userland.sh WHEEL [SUITE [PREFIX]]"
here=$(cd "$(dirname "$0")" && pwd)
wheel=$(realpath "${1:?$usage}")
suite=${2:-trixie}
prefix=${3:+$(realpath "$3")}
fail() {
  echo "check_userland.sh: $*" >&2
  exit 1
}

case $wheel in
  *_aarch64.whl) arch=arm64 ;;
  *_x86_64.whl) arch=amd64 ;;
  *) fail "$wheel is no wheel for x86_64 or aarch64" ;;
esac
[ -f "$wheel" ] || fail "there is no $wheel; make wheels builds it"
if [ -n "$prefix" ]; then
  python=$prefix/bin/python3
  packages=ca-certificates,libbz2-1.0,libffi8,liblzma5,zlib1g
  [ -x "$python" ] || fail "there is no $python"
else
  python=/usr/bin/python3
  packages=ca-certificates,python3-venv
fi
[ "$(id -u)" = 0 ] || fail "needs root, for chroot"
command -v debootstrap >/dev/null || fail "needs debootstrap"

# Mounts of this script are gone when it ends.
if [ -z "${PYVATTN_USERLAND:-}" ]; then
  PYVATTN_USERLAND=1 exec unshare --mount "$0" "$@"
fi
room=$(mktemp -d)
land=$room/land
trap 'umount -q "$land/proc" || true; rm -rf --one-file-system "$room"' EXIT

inside() {
  chroot "$land" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/bin:/bin \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$@"
}

echo "==> making a $suite userland for $arch"
debootstrap --arch="$arch" --variant=minbase --include="$packages" "$suite" "$land" \
  >"$room/log" 2>&1 || { tail -n 20 "$room/log" >&2; exit 1; }
mount -t proc proc "$land/proc"
if [ -n "$prefix" ]; then
  tar -C / --exclude='site-packages/*' -cf - "${prefix#/}" | tar -C "$land" -xf -
fi
# Where packages come from, and whom this machine trusts on the way there.
cp /etc/resolv.conf "$land/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$land/etc/ssl/certs/ca-certificates.crt"
cp "$wheel" "$here/check_wheel.py" "$land/root/"
for tool in cc c++ gcc g++ clang make cmake; do
  if inside sh -c "command -v $tool"; then
    fail "the userland has $tool"
  fi
done

echo "==> installing $(basename "$wheel") beside $(inside "$python" --version) and nothing else"
inside "$python" -m venv /env
TIMEFORMAT="pip install: %1R s, %1U + %1S of CPU"
time inside /env/bin/pip install --quiet "/root/$(basename "$wheel")"
TIMEFORMAT="pyvattn info --probe: %1R s, %1U + %1S of CPU"
time inside /env/bin/pyvattn info --probe >"$room/log" ||
  { cat "$room/log" >&2; exit 1; }
inside /env/bin/python /root/check_wheel.py "/root/$(basename "$wheel")"
