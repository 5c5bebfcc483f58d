#!/bin/bash
# What the end-to-end test needs of Debian: a Slurm of one node, and ssh.
set -euo pipefail
packages=(slurmctld slurmd slurm-client munge openssh-server openssh-client rsync curl python3)
dpkg -s "${packages[@]}" >/dev/null 2>&1 && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Installed, not started: the test starts its own, and stops them.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  install -m 755 /dev/stdin /usr/sbin/policy-rc.d <<< $'#!/bin/sh\nexit 101'
fi
apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
