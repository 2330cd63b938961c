"""A function in a process of its own, which may crash, hang or be killed without harm to ours.

The process is a new interpreter, never a fork: ours may have threads, and a runtime in it that does not survive one. It
ends when this process does, however that ends, and is killed with its whole group when it has taken too long or nobody
wants its result any more. Function, arguments and result travel as pickles between the two alone; what it prints goes
nowhere but into the error of one that dies.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from .errors import ModelCacheError, UsageError

_LOOK_S = 0.2  # How soon a caller that has given up is noticed; a result takes no such while.
_SAID_BYTES = 4096
_READ_BYTES = 1 << 16
_LENGTH_BYTES = 8  # Before the result: a process that it has forked may hold the pipe open, and delay its end for ever.
_HINT = "Isolation needs a function at the top of a module, and arguments that can be pickled"
_DEATH_SIGNAL = 1  # prctl(2), PR_SET_PDEATHSIG.
# Until the path of modules is ours, only what comes with Python can be imported (-P: nothing of the working directory,
# where a build, or a product, may have what is called like a module). The first frame holds that path.
_BOOTSTRAP = """
import os, pickle, sys
with os.fdopen({fd}, "rb", closefd=False) as orders:
    parent, sys.path[:] = pickle.load(orders)
    from modelcache.isolation import serve
    serve(orders, {result}, parent)
"""


class DiedError(Exception):
    """The process died before it had a result. ``how`` is the signal or exit code, ``said`` what it printed last."""

    def __init__(self, how: str, said: str) -> None:
        super().__init__(f"died of {how}")
        self.how, self.said = how, said


class TimedOutError(Exception):
    """The process took too long, and was killed."""


class ForeignError(Exception):
    """What the function raised cannot travel between processes. ``kind`` is its class, ``text`` what it says."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text

    def __str__(self) -> str:
        return self.text


def no_interpreter() -> str:
    """Return why no Python can be started here; ``""`` if one can.

    A frozen program would start itself, which would ask for the same, and start itself.
    """
    if not sys.executable:
        return "sys.executable is empty"
    return "this is a frozen program" if getattr(sys, "frozen", False) else ""


def run(
    function: Callable[..., Any],
    /,
    *args: Any,
    timeout: float | None = None,
    check: Callable[[], object] = lambda: None,
    directory: str | None = None,
) -> Any:
    """Return ``function(*args)``, called in a new process.

    Args:
        function: One that can be imported there: of a module, or of the program itself.
        args: What can be pickled.
        timeout: Longest time, in seconds.
        check: Called several times a second while it runs; what it raises ends the process.
        directory: The working directory of the process. Default: this one's.

    Raises:
        UsageError: *function* or *args* cannot be sent to another process.
        DiedError: It died.
        TimedOutError: It was not done in time.
        ForeignError: It raised what cannot be sent back; anything else that it raised is raised as it is.
    """
    check_may_start()
    orders = _orders(function, args)
    if no_interpreter():
        raise UsageError(problem=f"there is no Python to start: {no_interpreter()}", hint="Do it without isolation")
    end = None if timeout is None else time.monotonic() + timeout
    orders_out, orders_in = os.pipe()
    result_out, result_in = os.pipe()
    process = None
    try:
        process = subprocess.Popen(  # noqa: S603  # This very interpreter.
            [sys.executable, "-P", "-c", _BOOTSTRAP.format(fd=orders_out, result=result_in)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            pass_fds=(orders_out, result_in),
            start_new_session=True,
        )
        os.close(orders_out)
        os.close(result_in)
        orders_out = result_in = -1
        exchange = _Exchange(process, orders, orders_in, result_out, end, check)
        orders_in = result_out = -1
        return exchange.outcome()
    finally:
        for descriptor in (orders_out, orders_in, result_out, result_in):
            if descriptor >= 0:
                os.close(descriptor)
        if process is not None:
            _end(process)
            if process.stdout is not None:
                process.stdout.close()


class _Exchange:
    """What goes to the process and comes from it, without either waiting for the other."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        orders: bytes,
        orders_in: int,
        result_out: int,
        end: float | None,
        check: Callable[[], object],
    ) -> None:
        self._process, self._end, self._check = process, end, check
        self._orders, self._orders_in, self._result_out = memoryview(orders), orders_in, result_out
        self._result, self._said = bytearray(), bytearray()

    def outcome(self) -> Any:
        """Return the function's result, or raise."""
        try:
            self._talk()
        finally:
            # The pipe of orders stays open until here: its end tells the process that we are gone.
            os.close(self._orders_in)
            os.close(self._result_out)
        try:
            kind, value = pickle.loads(self._result[_LENGTH_BYTES:])  # noqa: S301  # Of our own process.
        except Exception:  # noqa: BLE001  # It died before it had written all of it.
            raise DiedError(_how(self._process), self._last_words()) from None
        if kind == "result":
            return value
        raise value

    def _talk(self) -> None:
        assert self._process.stdout is not None
        os.set_blocking(self._orders_in, False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._result_out, selectors.EVENT_READ)
            selector.register(self._process.stdout, selectors.EVENT_READ)
            selector.register(self._orders_in, selectors.EVENT_WRITE)
            while True:
                self._check()
                left = _LOOK_S if self._end is None else min(_LOOK_S, self._end - time.monotonic())
                if left <= 0:
                    raise TimedOutError
                for key, _ in selector.select(left):
                    if key.fd == self._orders_in:
                        self._send(selector)
                        continue
                    chunk = os.read(key.fd, _READ_BYTES)
                    if key.fd == self._result_out:
                        self._result += chunk
                        if not chunk or self._is_whole():
                            return
                    elif chunk:
                        self._said = (self._said + chunk)[-_SAID_BYTES:]
                    else:
                        selector.unregister(key.fd)
                if _has_ended(self._process):
                    self._drain()
                    return

    def _is_whole(self) -> bool:
        length = int.from_bytes(self._result[:_LENGTH_BYTES], "big")
        return len(self._result) >= _LENGTH_BYTES + length > _LENGTH_BYTES

    def _drain(self) -> None:
        """Take what is left in the pipe of a process that has ended, whoever else holds the other end."""
        os.set_blocking(self._result_out, False)
        try:
            while chunk := os.read(self._result_out, _READ_BYTES):
                self._result += chunk
        except BlockingIOError:
            pass

    def _send(self, selector: selectors.BaseSelector) -> None:
        try:
            self._orders = self._orders[os.write(self._orders_in, self._orders) :]
        except BrokenPipeError:
            self._orders = self._orders[:0]  # It has died: the end of the other pipe says so.
        if not self._orders:
            selector.unregister(self._orders_in)

    def _last_words(self) -> str:
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        try:
            self._said += self._process.stdout.read() or b""
        except OSError:
            pass
        lines = [line.strip() for line in self._said.decode(errors="replace").splitlines() if line.strip()]
        return " ".join(lines[-3:])[-500:]


def serve(orders: Any, result: int, parent: int) -> None:
    """Do in the new process what the old one has ordered. It ends here."""
    _die_with(parent)
    os.set_inheritable(result, False)  # What a build starts must not keep the pipe open.
    os.set_inheritable(orders.fileno(), False)
    try:
        function, args = _loaded(orders)
        _watch(orders)
        found = "result", function(*args)
    except BaseException as error:  # noqa: BLE001  # Whatever it is, our parent raises it.
        found = "error", _portable(error)
    try:
        data = pickle.dumps(found)
    except Exception as error:  # noqa: BLE001
        data = pickle.dumps(("error", ForeignError(type(error).__name__, f"its result cannot be pickled: {error}")))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    with os.fdopen(result, "wb") as file:
        file.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    os._exit(0)  # What a runtime does at its end may crash, and says nothing of the result.


def check_may_start() -> None:
    """Raise UsageError in a process that loads the program of its own orders: it would wait for itself."""
    if _loading:
        problem = "the program begins what it is loaded for: to find a function, another process imports its file"
        raise UsageError(problem=problem, hint='Put what the program does under `if __name__ == "__main__":`')


_loading = False


def _loaded(orders: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the function that was ordered, and its arguments, having imported what they are of.

    Raises:
        UsageError: They cannot be had here.
    """
    global _loading
    _loading = True
    try:
        main = pickle.load(orders)  # noqa: S301  # Of our own parent.
        if main:
            from multiprocessing import spawn

            spawn.prepare(main)
        function, args = pickle.load(orders)  # noqa: S301
    except ModelCacheError:
        raise
    except Exception as error:
        problem = f"what is to be done cannot be loaded in another process: {type(error).__name__}: {error}"
        raise UsageError(problem=problem, hint=_HINT) from error
    finally:
        _loading = False
    return function, args


def _orders(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """Return what the new process reads: the path of modules, how to find the program, and what to do."""
    from multiprocessing import spawn

    # Its own words are those of multiprocessing: which file, or module, the program is, and what it was called with.
    told = spawn.get_preparation_data("modelcache")
    main = {name: value for name, value in told.items() if name.startswith("init_") or name == "sys_argv"}
    try:
        work = pickle.dumps((function, args))
    except Exception as error:
        problem = f"{function!r:.200} cannot be sent to another process: {error}"
        raise UsageError(problem=problem, hint=_HINT) from error
    if b"__main__" not in work:
        main = {}
    # The process may have another working directory: what is relative is meant from ours.
    modules = [os.path.abspath(place) for place in sys.path]
    return pickle.dumps((os.getpid(), modules)) + pickle.dumps(main) + work


def _die_with(parent: int) -> None:
    """Let the kernel end this process when *parent* ends, where it can; elsewhere `_watch` notices."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # It has ended already.


def _watch(orders: Any) -> None:
    """End this process when nobody holds the other end of *orders* any more."""
    from threading import Thread

    def wait() -> None:
        try:
            while os.read(orders.fileno(), 1):
                pass
        except (OSError, ValueError):
            return
        os._exit(1)

    Thread(target=wait, name="modelcache-parent", daemon=True).start()


def _portable(error: BaseException) -> BaseException:
    """Return *error* if it comes out of a pickle as it went in, else what tells of it."""
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301
        if type(copy) is type(error) and str(copy) == str(error) and isinstance(error, Exception):
            return error
    except Exception:  # noqa: BLE001, S110
        pass
    if isinstance(error, ModelCacheError):
        return error
    return ForeignError(type(error).__name__, str(error))


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether *process* has ended, and leave it to be waited for: until then nobody else has its number."""
    if not hasattr(os, "waitid"):
        return False  # macOS, before Python 3.13: the end of the pipe tells.
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # Somebody else has waited for it: a program may ignore SIGCHLD.


def _how(process: subprocess.Popen[bytes]) -> str:
    """Return how *process*, which has closed its pipe, ended. A signal that comes after that changes nothing."""
    _end(process)
    if process.returncode >= 0:
        return f"exit code {process.returncode}"
    known = {one.value: one.name for one in signal.Signals}
    return known.get(-process.returncode, f"signal {-process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End *process* and all that it has started; a second call does nothing."""
    if process.returncode is not None:
        return
    try:
        # Nobody else can have its number, or its group's, before it is waited for.
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
