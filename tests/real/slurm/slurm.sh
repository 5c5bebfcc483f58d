#!/bin/bash
# A Slurm of one node on this machine, for SkyPilot to launch on: slurm.sh up ROOT | slurm.sh down ROOT
#
# Debian, as root, loopback only. Its GPU is counted and not there, its memory is what it says. All of its
# files are under ROOT (readable to others: the jobs run as a user of their own), but for the links
# /etc/slurm/slurm.conf and /etc/slurm/gres.conf, and munge's key.
set -euo pipefail
verb=${1:?up or down} ROOT=${2:?a folder that every user can enter}
USER_NAME=pixtral-e2e GPU=A100 SSH_PORT=${SSH_PORT:-2222}
NODE=$(hostname -s)

down() {
  for pidfile in "$ROOT"/run/{sshd,slurmd,slurmctld}.pid /run/munge/pixtral-e2e.pid; do
    [ -s "$pidfile" ] || continue
    pid=$(cat "$pidfile")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 100); do # gone, or a zombie that nobody collects
      grep -q '^State:\s*[^Z]' "/proc/$pid/status" 2>/dev/null || break
      sleep 0.1
    done
  done
  pkill -KILL -u "$USER_NAME" 2>/dev/null || true # sessions that SkyPilot keeps open
  # What SkyPilot's jobs leave on a node.
  id "$USER_NAME" >/dev/null 2>&1 && find /tmp -maxdepth 1 -user "$USER_NAME" -exec rm -rf {} +
  rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf
  userdel "$USER_NAME" 2>/dev/null || true
}

if [ "$verb" = down ]; then down; exit; fi

mkdir -p "$ROOT"/{etc,run,log,state,spool,node-home/bin,node-tmp} /run/sshd
chmod 755 "$ROOT" "$ROOT"/{etc,log,node-home}
chmod 1777 "$ROOT/node-tmp"
home=$ROOT/node-home

# --- the user whose jobs run; '*' and not '!': sshd without PAM refuses a locked account
id "$USER_NAME" >/dev/null 2>&1 || useradd -M -d "$home" -s /bin/bash -p '*' "$USER_NAME"
mkdir -p -m 700 "$home/.ssh"
for key in host client; do ssh-keygen -q -t ed25519 -N '' -f "$ROOT/etc/$key"; done
cp "$ROOT/etc/client.pub" "$home/.ssh/authorized_keys"
# uv is there already, as SkyPilot's own way to it is a download from a site of uv's makers.
install -m 755 "${UV:?the path of uv}" "$home/bin/uv"
printf 'export PATH=%s/bin:$PATH\nexport SSL_CERT_FILE=%s\n' "$home" "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" > "$home/.profile"
: > "$home/.bashrc"
chown -R "$USER_NAME": "$home"

cat > "$ROOT/etc/sshd_config" <<C
Port $SSH_PORT
ListenAddress 127.0.0.1
HostKey $ROOT/etc/host
PidFile $ROOT/run/sshd.pid
AllowUsers $USER_NAME
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
MaxSessions 200
MaxStartups 150:30:200
PrintMotd no
Subsystem sftp internal-sftp
C

cat > "$ROOT/etc/slurm.conf" <<C
ClusterName=e2e
SlurmctldHost=$NODE(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$ROOT/run/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=5
InactiveLimit=0
GresTypes=gpu
SlurmdParameters=config_overrides
TaskProlog=$ROOT/etc/task_prolog
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=8 RealMemory=65536 Gres=gpu:$GPU:1 State=UNKNOWN
PartitionName=gpu Nodes=$NODE Default=YES MaxTime=1-00:00:00 State=UP
C
# A GPU wants a device file; one like /dev/null will do.
mknod -m 666 "$ROOT/etc/gpu0" c 1 3
echo "NodeName=$NODE Name=gpu Type=$GPU File=$ROOT/etc/gpu0" > "$ROOT/etc/gres.conf"

# Before a job: uv where SkyPilot looks for it, and SkyPilot's own environment on the node with the Python
# that is there. It would have uv download both.
cat > "$ROOT/etc/task_prolog" <<C
#!/bin/bash
{
  name=\$SLURM_JOB_NAME
  [ -n "\$name" ] && [ -f "$home/.sky_provision/\$name.sh" ] || exit 0
  mkdir -p "$home/.sky_clusters/\$name/.local/bin"
  ln -sf "$home/bin/uv" "$home/.sky_clusters/\$name/.local/bin/uv"
  runtime="$ROOT/node-tmp/\$name/skypilot-runtime"
  [ -d "\$runtime" ] || "$home/bin/uv" venv -q --seed --python /usr/bin/python3 "\$runtime"
} >> "$ROOT/log/task_prolog.log" 2>&1
C
chmod 755 "$ROOT/etc/task_prolog"
install -m 666 /dev/null "$ROOT/log/task_prolog.log"
mkdir -p /etc/slurm
ln -sfn "$ROOT/etc/slurm.conf" /etc/slurm/slurm.conf
ln -sfn "$ROOT/etc/gres.conf" /etc/slurm/gres.conf

# --- the daemons
install -d -o munge -g munge -m 755 /run/munge "$ROOT/run/munge"
install -d -o munge -g munge -m 700 /var/lib/munge /var/log/munge
if [ ! -s /etc/munge/munge.key ]; then
  dd if=/dev/urandom of=/etc/munge/munge.key bs=128 count=1 status=none
  chown munge: /etc/munge/munge.key
  chmod 400 /etc/munge/munge.key
fi
chmod 755 "$ROOT/run"
runuser -u munge -- /usr/sbin/munged --pid-file /run/munge/pixtral-e2e.pid --socket "$ROOT/run/munge/socket"
/usr/sbin/slurmctld
/usr/sbin/slurmd -N "$NODE"
/usr/sbin/sshd -f "$ROOT/etc/sshd_config"
for _ in $(seq 60); do
  [ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && exit 0
  sleep 0.5
done
sinfo -N -l
tail -5 "$ROOT"/log/slurm*.log
exit 1
