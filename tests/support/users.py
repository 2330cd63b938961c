"""Real users: what a function does as another user of this machine, in a forked process. Only root can run these."""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import modelcache

needs_users = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users (setuid)")


@dataclass(frozen=True)
class User:
    """A user of this machine, by number; it need not be in its user database."""

    uid: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022

    def begin(self, work: Callable[..., Any], *arguments: Any) -> Call:
        """Begin to do *work* as this user, in a process of its own."""
        _import_all()
        reading, writing = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            try:
                os.setgroups(list(self.groups))
                os.setgid(self.uid)
                os.setuid(self.uid)
                os.umask(self.umask)
                answer: tuple[bool, Any] = True, work(*arguments)
            except BaseException as error:  # noqa: BLE001  # The child must not go on to be a pytest.
                answer = False, (error if _travels(error) else RuntimeError(traceback.format_exc()))
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
            os._exit(0)
        os.close(writing)
        return Call(pid, reading)

    def does(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do *work* as this user; return, or raise, what came of it."""
        return self.begin(work, *arguments).result()


@dataclass
class Call:
    """Work that is under way."""

    pid: int
    reading: int

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.reading)
        os.waitpid(self.pid, 0)

    def died(self) -> bool:
        """Wait for its end; tell whether a signal was that."""
        os.close(self.reading)
        return os.WIFSIGNALED(os.waitpid(self.pid, 0)[1])

    def result(self) -> Any:
        with os.fdopen(self.reading, "rb") as pipe:
            data = pipe.read()
        os.waitpid(self.pid, 0)
        worked, answer = pickle.loads(data)  # Our own.
        if not worked:
            raise answer
        return answer


@contextmanager
def common_directory() -> Iterator[Path]:
    """Yield a directory that every user may enter: not below pytest's own, which is closed to others."""
    with tempfile.TemporaryDirectory(prefix="modelcache-users-", ignore_cleanup_errors=True) as place:
        os.chmod(place, 0o755)
        yield Path(place)


def _travels(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001
        return False
    return True


def _import_all() -> None:
    """Import what a child may need: the interpreter may lie where only its owner can read."""
    if "tests.support.users.done" in sys.modules:
        return
    for found in pkgutil.walk_packages(modelcache.__path__, "modelcache."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in ("tomllib", "grp", "fasteners", "tenacity", "tqdm", "encodings.idna", "concurrent.futures.thread"):
        importlib.import_module(name)
    for name in modelcache.__all__:
        getattr(modelcache, name)
    sys.modules["tests.support.users.done"] = sys
