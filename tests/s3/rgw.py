"""Run the S3 tests against Ceph's object gateway, a server that is no simulator: ``make test-s3`` (docs/testing.md).

Usage: ``python tests/s3/rgw.py [--keep] [--minutes N] [--] [what pytest takes]``

It installs Debian's packages where it may (root, apt), starts one monitor, one OSD in memory and one gateway in a
temporary directory on free ports of 127.0.0.1, makes a user and the bucket ``models``, runs pytest with
``--s3-endpoint``, and ends what it has started, also when it is interrupted. Only the standard library is needed.

Exit codes: pytest's own; 69 when there is no Ceph here and it cannot be installed; 70 when it does not start.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import hmac
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import FrameType

PACKAGES = ("ceph-mon", "ceph-osd", "radosgw", "ceph-common")
PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")
BUCKET, ACCESS_KEY, SECRET_KEY = "models", "modelcache", "modelcache-secret"
UNAVAILABLE, DID_NOT_START = 69, 70
HERE = Path(__file__).resolve().parent
WHAT = ("tests/s3", "tests/contract/test_backends.py")
_START_S, _INSTALL_S, _STEP_S, _END_S = 180.0, 600.0, 60.0, 10.0

# Auth none also needs `ms mon client mode = crc`, or the gateway waits for 300 s and gives up. One OSD, one copy of
# everything, in memory; small pools, because each of the gateway's twelve would else have more than one OSD may hold.
CONFIG = """
[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{mon}/0]
ms bind ipv4 = true
ms bind msgr2 = true
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
run dir = {top}
admin socket = {top}/$name.asok
log file = {top}/$name.log
pid file = {top}/$name.pid
keyring = {top}/keyring

[mon.a]
host = localhost
mon data = {top}/mon

[osd]
osd data = {top}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd class load list = *
osd class default list = *

[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw data = {top}/rgw
rgw thread pool size = 32
"""


class SetupError(Exception):
    """There is no server to test against. ``code`` is what the process ends with."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


def say(text: str) -> None:
    print(f"test-s3: {text}", file=sys.stderr, flush=True)


def install() -> None:
    """Make sure that Ceph's programs are here; raise SetupError."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if not missing:
        return
    by_hand = f"Install it, for Debian and Ubuntu: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    if shutil.which("apt-get") is None:
        raise SetupError(
            f"Ceph is not installed ({', '.join(missing)}), and there is no apt-get. {by_hand}", code=UNAVAILABLE
        )
    if os.geteuid() != 0:
        raise SetupError(
            f"Ceph is not installed ({', '.join(missing)}), and you are not root. {by_hand}", code=UNAVAILABLE
        )
    say(f"installing {', '.join(PACKAGES)} (about 200 MB)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_INSTALL_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise SetupError(f"{' '.join(command)} took more than {_INSTALL_S:g} s", code=UNAVAILABLE) from error
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
            raise SetupError(f"{' '.join(command)} failed:\n{last}\n{by_hand}", code=UNAVAILABLE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tied() -> list[str]:
    """Return what stands before a command that is to end with this process, also when that is killed."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


class Cluster:
    """Three daemons in the directory *top*. Each ends with this process, or after *seconds*, whatever happens."""

    def __init__(self, top: Path, seconds: float) -> None:
        self._top, self._seconds = top, seconds
        self._daemons: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.endpoint = ""

    def start(self) -> None:
        """Start all of it; raise SetupError."""
        fsid, mon, gateway = str(uuid.uuid4()), free_port(), free_port()
        self.endpoint = f"http://127.0.0.1:{gateway}"
        for name in ("mon", "osd", "rgw"):
            (self._top / name).mkdir()
        (self._top / "keyring").touch()
        self._conf.write_text(CONFIG.format(fsid=fsid, mon=mon, gateway=gateway, top=self._top))
        monmap = str(self._top / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon}]", monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")
        self._until("the monitor", lambda: self._works("ceph", "--connect-timeout", "2", "mon", "stat"))
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._daemon("ceph-osd", "-i", "0")
        self._until("the OSD", lambda: "1 up" in self._output("ceph", "osd", "stat"))
        self._daemon("radosgw", "-n", "client.rgw.a")
        self._until("the gateway", self._answers)
        keys = ("--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY)
        self._run("radosgw-admin", "user", "create", "--uid", "modelcache", "--display-name", "modelcache", *keys)
        self._make_bucket()

    def stop(self) -> None:
        """End every daemon that was started, the last one first."""
        for name, daemon in reversed(self._daemons):
            if daemon.poll() is None:
                daemon.terminate()  # `timeout` hands it on.
            try:
                daemon.wait(_END_S)
            except subprocess.TimeoutExpired:
                say(f"{name} does not end, and is killed")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(daemon.pid, signal.SIGKILL)  # A session of its own: `timeout` and the daemon.
                daemon.wait()
        self._daemons.clear()

    @property
    def _conf(self) -> Path:
        return self._top / "ceph.conf"

    def _daemon(self, program: str, *arguments: str) -> None:
        limit = [*tied(), "timeout", "--kill-after=10", str(int(self._seconds))]
        with (self._top / f"{program}.out").open("wb") as out:
            daemon = subprocess.Popen(
                [*limit, program, "-f", "-c", str(self._conf), *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self._daemons.append((program, daemon))

    def _output(self, *command: str) -> str:
        """Return what *command* prints; "" if it fails."""
        program, *arguments = command
        try:
            done = subprocess.run(
                [program, "-c", str(self._conf), *arguments],
                capture_output=True,
                text=True,
                timeout=_STEP_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout + done.stderr + " " if done.returncode == 0 else ""

    def _works(self, *command: str) -> bool:
        return self._output(*command) != ""

    def _run(self, *command: str) -> None:
        if not self._works(*command):
            raise SetupError(f"{' '.join(command[:3])} failed; {self._evidence()}", code=DID_NOT_START)

    def _until(self, what: str, is_there: Callable[[], bool]) -> None:
        """Wait for *what*: there is nothing but asking. Raise SetupError when it has ended, or is not there in time."""
        until = time.monotonic() + _START_S
        while not is_there():
            name, daemon = self._daemons[-1]
            if daemon.poll() is not None:
                raise SetupError(f"{name} has ended ({daemon.returncode}); {self._evidence()}", code=DID_NOT_START)
            if time.monotonic() > until:
                raise SetupError(f"{what} was not there in {_START_S:g} s; {self._evidence()}", code=DID_NOT_START)
            time.sleep(0.2)  # A daemon of somebody else's says by no event that it is up.

    def _evidence(self) -> str:
        lines = []
        for path in sorted([*self._top.glob("*.out"), *self._top.glob("*.log")]):
            lines += [f"{path.name}: {line}" for line in path.read_text(errors="replace").splitlines()[-5:]]
        return "the last lines of its logs:\n" + "\n".join(lines)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def _make_bucket(self) -> None:
        date, what = formatdate(usegmt=True), f"/{BUCKET}"
        signed = hmac.new(SECRET_KEY.encode(), f"PUT\n\n\n{date}\n{what}".encode(), hashlib.sha1).digest()
        request = urllib.request.Request(f"{self.endpoint}{what}", method="PUT")
        request.add_header("Date", date)
        request.add_header("Authorization", f"AWS {ACCESS_KEY}:{base64.b64encode(signed).decode()}")
        try:
            urllib.request.urlopen(request, timeout=_STEP_S).close()
        except OSError as error:
            raise SetupError(f"the bucket could not be made: {error}", code=DID_NOT_START) from error


@contextlib.contextmanager
def gateway(*, seconds: float, keep: bool = False) -> Iterator[str]:
    """Run a gateway for *seconds* at most; yield its address."""
    top = Path(tempfile.mkdtemp(prefix="modelcache-rgw-"))
    cluster = Cluster(top, seconds)
    try:
        began = time.monotonic()
        cluster.start()
        say(f"the gateway answers at {cluster.endpoint} after {time.monotonic() - began:.1f} s")
        yield cluster.endpoint
    finally:
        cluster.stop()
        if keep:
            say(f"the logs are in {top}")
        else:
            shutil.rmtree(top, ignore_errors=True)


def _interrupted(number: int, _frame: FrameType | None) -> None:
    """Leave by the ordinary way: the daemons are ended on it."""
    sys.exit(128 + number)


def main(arguments: list[str]) -> int:
    """Do what the usage says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="keep the servers' logs")
    parser.add_argument("--minutes", type=float, default=20, help="after which the servers end, whatever happens (20)")
    parser.add_argument("pytest", nargs="*", help="what pytest takes; after --. Default: the S3 tests")
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background job ignores it.
    try:
        install()
        with gateway(seconds=given.minutes * 60, keep=given.keep) as endpoint:
            began = time.monotonic()
            keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
            pytest = [sys.executable, "-m", "pytest", "-q", f"--s3-endpoint={endpoint}"]
            command = [*tied(), *pytest, *(given.pytest or WHAT)]
            code = subprocess.call(command, cwd=HERE.parent.parent, env={**os.environ, **keys})
            say(f"pytest ended with {code} after {time.monotonic() - began:.1f} s")
            return code
    except SetupError as error:
        say(str(error))
        return error.code
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
