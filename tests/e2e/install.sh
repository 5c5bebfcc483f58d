#!/bin/bash
# What the end-to-end test needs of Debian: a Slurm of one node, and ssh.
set -euo pipefail
packages=(slurmctld slurmd slurm-client munge openssh-server openssh-client rsync curl python3)
dpkg -s "${packages[@]}" >/dev/null 2>&1 && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Installed, not started: the test starts its own, and stops them.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
trap 'rm -f /usr/sbin/policy-rc.d' EXIT
apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
