"""Two hosts on one machine, with an ssh server each, for `ray up` to find.

Each has network, process, mount and name-of-host namespaces of its own, and of its own `/root`,
`/run`, `/tmp/ray` and `/dev/shm`; all else they share, as machines share what they have mounted.
They reach each other and nothing else.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("ip", "unshare", "sshd", "ssh-keygen", "rsync")
_SSH = ("ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
_SSHD = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
"""
_INIT = """
set -e
hostname {name}
mount --make-rprivate /
mount -t tmpfs tmpfs /dev/shm
mkdir -p /tmp/ray
mount --bind {own}/ray /tmp/ray
mount --bind {own}/run /run
mkdir -p /run/sshd
{kept}
mount --rbind {own}/root /root
exec {sshd} -D -e -f {own}/sshd_config
"""


def allowed() -> bool:
    """Whether this machine lets us make namespaces."""
    probe = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "mount", "-t", "tmpfs"]
    try:
        done = subprocess.run([*probe, "tmpfs", "/mnt"], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class Host:
    """One of them."""

    def __init__(self, folder: Path, name: str, address: str) -> None:
        self.folder, self.name, self.address = folder, name, address
        self.own = folder / name
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts its ssh server, the parent of all that will run there."""
        for part in ("ray", "run", "root/.ssh"):
            (self.own / part).mkdir(parents=True)
        key = self.own / "root" / ".ssh" / "id_ed25519"
        key.write_bytes((self.folder / "key").read_bytes())
        key.chmod(0o600)
        environment = Path(sys.prefix)
        (self.own / "root" / "dsn_ray_env").symlink_to(environment)
        paths = {"PATH": f"{environment}/bin:$PATH", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        lines = [f'export {name}="{value}"' for name, value in paths.items()]
        (self.own / "root" / ".bashrc").write_text("\n".join(lines) + "\n")
        (self.own / "sshd_config").write_text(
            _SSHD.format(address=self.address, folder=self.folder)
        )
        (self.own / "init").write_text(
            _INIT.format(name=self.name, own=self.own, sshd=shutil.which("sshd"), kept=self._kept())
        )
        spaces = ["unshare", "--pid", "--mount", "--uts", "--fork", "--mount-proc", "--kill-child"]
        with (self.own / "log").open("w") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *spaces, "bash", str(self.own / "init")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _kept(self) -> str:
        """Commands that keep what of Python and of this project lies in `/root`."""
        places = {Path(sys.base_prefix), Path(sys.prefix), Path(__file__).resolve().parents[1]}
        lines = []
        for place in sorted(place for place in places if place.is_relative_to("/root")):
            inside = f"{self.own}{place}"
            lines.append(f"mkdir -p {inside} && mount --bind {place} {inside}")
        return "\n".join(lines)

    def run(self, command: str, timeout: float = 120) -> str:
        """Runs a command there, as somebody who has logged in; returns what it said."""
        login = [*_SSH, "-o", "LogLevel=ERROR", "-i", str(self.folder / "key")]
        inside = f"cd ~ && {command}"
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *login, f"root@{self.address}", inside],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{self.name}: {command}\n{said}"
        return said

    def die(self) -> None:
        """Ends at once, with all that runs there."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def two_hosts(folder: Path):
    """The two, which both answer; nothing is left of them afterwards.

    Args:
        folder: an empty one for their own files.
    """
    for name in ("key", "host_key"):
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    names = [f"dsn{os.getpid()}{letter}" for letter in "ab"]
    hosts = [Host(folder, name, f"10.77.0.{n}") for n, name in enumerate(names, start=1)]
    try:
        for host in hosts:
            _do("ip", "netns", "add", host.name)
        ends = [f"v{name}"[:15] for name in names]
        first = ["ip", "link", "add", ends[0], "netns", names[0], "type", "veth"]
        _do(*first, "peer", "name", ends[1], "netns", names[1])
        for host, end, other in zip(hosts, ends, reversed(hosts), strict=True):
            inside = ("ip", "-n", host.name)
            _do(*inside, "link", "set", "lo", "up")
            _do(*inside, "addr", "add", f"{host.address}/24", "dev", end)
            _do(*inside, "link", "set", end, "up")
            _do(*inside, "route", "add", "default", "via", other.address)
        for host in hosts:
            host.start()
        for host in hosts:
            _until_it_answers(host)
        yield hosts
    finally:
        for host in hosts:
            host.die()
            subprocess.run(["ip", "netns", "delete", host.name], check=False, capture_output=True)


def _until_it_answers(host: Host) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            host.run("true", timeout=10)
            return
        except (AssertionError, subprocess.TimeoutExpired):
            assert time.monotonic() < deadline, (host.own / "log").read_text()
            time.sleep(0.5)


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
