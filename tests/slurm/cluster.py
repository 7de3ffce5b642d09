"""A small real Slurm on the loopback address: one controller, two nodes in two partitions, munge for trust.

    python tests/slurm/cluster.py start FOLDER
    python tests/slurm/cluster.py stop FOLDER

Needs Debian's slurm-wlm and munge, and root. Nothing outside FOLDER is written except a link at ``SYSTEM_WIDE``, as
jobs find the cluster there and nowhere else. A machine that has another file there belongs to a cluster, which a test
must not disturb; a link that a killed test left is taken away.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

SYSTEM_WIDE = Path("/etc/slurm/slurm.conf")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
NODES = {"one": "left", "two": "right"}
"""Node -> its partition; both are this machine."""

CONFIGURATION = """\
ClusterName=companion
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=3600
KillWait=5
RebootProgram=/bin/true
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory={memory} State=UNKNOWN
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory={memory} State=UNKNOWN
PartitionName=left Nodes=one Default=YES MaxTime=INFINITE State=UP
PartitionName=right Nodes=two MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Programs that are not installed; Debian's slurm-wlm and munge bring them."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def running(folder: Path) -> list[int]:
    """Processes of the cluster in ``folder`` that still run."""
    written = folder / "pids"
    pids = [int(pid) for pid in written.read_text().split()] if written.exists() else []
    # A number may have been given to another program since.
    ours = {process.pid for process in psutil.process_iter(["name"]) if process.info["name"] in PROGRAMS}
    return [pid for pid in pids if pid in ours]


def obstacle() -> str:
    """Why no cluster can be started on this machine now, or nothing. Changes nothing."""
    if not SYSTEM_WIDE.exists():
        return ""
    folder = SYSTEM_WIDE.readlink().parent if SYSTEM_WIDE.is_symlink() else None
    if folder is None or CONFIGURATION.splitlines()[0] not in SYSTEM_WIDE.read_text().splitlines():
        return f"{SYSTEM_WIDE} is there: this machine belongs to a cluster, which a test must not disturb"
    if running(folder):
        return f"a test's cluster runs already; to end it: python tests/slurm/cluster.py stop {folder}"
    return ""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(folder: Path) -> dict[str, str]:
    """Start the cluster in ``folder`` and wait until both nodes are idle; returns the environment to reach it.

    Raises ``RuntimeError`` where there is a cluster already, and when the nodes do not come up in half a minute.
    """
    if reason := obstacle():
        raise RuntimeError(reason)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(exist_ok=True)
    controller, first, second = free_ports(3)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 // 2
    text = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        folder=folder,
        controller=controller,
        first=first,
        second=second,
        memory=memory,
    )
    (folder / "slurm.conf").write_text(text)
    SYSTEM_WIDE.unlink(missing_ok=True)
    SYSTEM_WIDE.parent.mkdir(parents=True, exist_ok=True)
    SYSTEM_WIDE.symlink_to(folder / "slurm.conf")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environment = dict(os.environ, SLURM_CONF=str(folder / "slurm.conf"), PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")
    commands = [
        ["munged", "-F", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
         f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munged.log"],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "one"],
        ["slurmd", "-D", "-N", "two"],
    ]  # fmt: skip
    pids = []
    for command in commands:
        with (folder / f"{command[0]}-{len(pids)}.out").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        pids.append(str(process.pid))
        (folder / "pids").write_text("\n".join(pids))
        time.sleep(2)
    for _ in range(30):
        states = nodes(environment)
        if set(states) == set(NODES) and set(states.values()) == {"idle"}:
            return environment
        time.sleep(1)
    raise RuntimeError(f"the nodes did not come up: {states}; logs are in {folder}")


def nodes(environment: dict[str, str]) -> dict[str, str]:
    """State of every node."""
    result = subprocess.run(["sinfo", "-h", "-N", "-o", "%N %T"], env=environment, capture_output=True, text=True)
    return dict(line.split() for line in result.stdout.splitlines())


def stop(folder: Path) -> None:
    """End the cluster's own processes, in the opposite order, and take the link away."""
    if SYSTEM_WIDE.is_symlink() and SYSTEM_WIDE.readlink() == folder / "slurm.conf":
        SYSTEM_WIDE.unlink()
    for pid in reversed(running(folder)):
        os.kill(pid, signal.SIGTERM)
    time.sleep(2)


if __name__ == "__main__":
    if absent := missing_programs():
        sys.exit(f"not installed: {', '.join(absent)}. On Debian: apt-get install slurm-wlm munge")
    where = Path(sys.argv[2]).resolve()
    if sys.argv[1] == "start":
        start(where)
        print(f"export SLURM_CONF={where}/slurm.conf")
    else:
        stop(where)
