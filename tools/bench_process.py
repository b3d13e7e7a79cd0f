"""What the benches ask of processes: their output, their CPU time, how busy the cores are."""

import os
import pathlib
import socket
import subprocess
import sys

TICK = os.sysconf("SC_CLK_TCK")


def output(command, check=True, **options):
    """Standard output of a command; ValueError on failure, or where pgbench aborted a client."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          **{"cwd": "/", "timeout": 300, **options})
    if check and (done.returncode or "aborted" in done.stderr):
        raise ValueError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


def tree_seconds(root):
    """User and system seconds of a process, its children that live, and those of its children that were waited for."""
    total = 0.0
    for pid in tree(root):
        try:
            fields = stat(f"/proc/{pid}/stat")
        except OSError:
            continue
        total += sum(int(field) for field in (fields[11:15] if pid == root else fields[11:13])) / TICK
    return total


def tree(root):
    """A process and its children."""
    return [root, *map(int, output(["pgrep", "-P", root], check=False).split())]


def send(pids, number):
    """A signal to those that still live."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def thread_seconds(pid):
    """User and system seconds of each thread that lives, by its name; of those of the same name together."""
    seconds = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            name, fields = (task / "comm").read_text().strip(), stat(task / "stat")
        except OSError:
            continue
        seconds[name] = seconds.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / TICK
    return seconds


def core_ticks():
    """Busy and all ticks of each core; what another guest of the machine took counts as busy."""
    cores = []
    for line in pathlib.Path("/proc/stat").read_text().splitlines():
        if line.startswith("cpu") and line[3].isdigit():
            ticks = [int(field) for field in line.split()[1:9]]
            cores.append((sum(ticks) - ticks[3] - ticks[4], sum(ticks)))
    return cores


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def say(text):
    print(text, file=sys.stderr, flush=True)


def stat(path):
    return pathlib.Path(path).read_text().rpartition(")")[2].split()
