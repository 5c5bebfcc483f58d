#!/bin/bash
# What the proof of the Truss needs: Truss itself, in an environment of its own, and the nginx that it has before
# a server (as root, on Debian).
set -euo pipefail
cd "$(dirname "$0")/../../.."
version=$(grep -o 'for Truss [0-9.]*[0-9]' examples/truss/README.md | cut -d' ' -f3)
venv=${XDG_CACHE_HOME:?}/pixtral-sky/truss-$version
if [ ! -e "$venv/complete" ]; then
  rm -rf "$venv"
  .venv/bin/python -m venv "$venv"
  "$venv/bin/pip" install --quiet "truss==$version"
  touch "$venv/complete"
fi

dpkg -s nginx >/dev/null 2>&1 && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Installed, not started: the test starts its own, and stops it.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  install -m 755 /dev/stdin /usr/sbin/policy-rc.d <<< $'#!/bin/sh\nexit 101'
fi
apt-get install -y -qq --no-install-recommends nginx >/dev/null
