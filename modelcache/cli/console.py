"""What the commands print, and where: data on stdout, progress and errors on stderr."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..errors import ModelCacheError
from ..events import Event

HEARTBEAT_S = 10.0
HEARTBEAT_SHARE = 0.1
# What a person wants to know without having asked for progress.
_NEWS = {"retry", "waiting", "mirror", "restarted", "quarantined", "stale", "ranges", "evicted", "building"}
_DONE = {"fetched", "exported", "imported", "verified", "derived"}


class _Progress(Protocol):
    def show(self, event: Event) -> None: ...
    def close(self) -> None: ...


class Console:
    """The two output streams of one command."""

    def __init__(self, *, json: bool = False, quiet: bool = False, progress: str = "none") -> None:
        self.json, self.quiet = json, quiet
        self.lost: OSError | None = None
        self._guard = threading.Lock()  # Events come from several threads.
        self._progress = _progress(progress, quiet=quiet, say=self.say)

    def data(self, line: str) -> None:
        """Print a line of data; events that are data come from several threads.

        Raises:
            OSError: It could not be printed (a full disk, a closed pipe); `lost` holds that from then on.
        """
        with self._guard:
            if self.lost is not None:
                raise self.lost
            try:
                if sys.stdout is None:  # It was closed before we began.
                    raise OSError(errno.EBADF, "standard output is closed")
                try:
                    sys.stdout.write(f"{line}\n")
                except UnicodeEncodeError:
                    # A terminal of another encoding: a path is told as the file system knows it, byte for byte.
                    sys.stdout.buffer.write(os.fsencode(line) + b"\n")
                sys.stdout.flush()
            except OSError as error:
                self.lost = error
                raise

    def data_json(self, value: Any) -> None:
        """Print *value* as one line of JSON."""
        self.data(json.dumps(value, ensure_ascii=False, default=str))

    def table(self, rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> None:
        """Print *rows*, the first being the heads, in aligned columns; those in *right* flush right."""
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = [c.rjust(w) if n in right else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))]
            self.data("  ".join(cells).rstrip())

    def say(self, line: str) -> None:
        """Print a line for a person; a stderr that cannot be written is no reason to fail."""
        try:
            if sys.stderr is not None:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
        except OSError:
            return

    def note(self, line: str) -> None:
        """Print a line for a person who did not ask for quiet."""
        if not self.quiet and not self.json:
            self.say(line)

    def error(self, error: ModelCacheError) -> None:
        """Print *error*: what happened, then what to do."""
        self.close()
        if self.json:
            facts = {"error": type(error).__name__, "message": error.summary, "hint": error.hint}
            self.say(json.dumps({**facts, "exit_code": error.exit_code}, ensure_ascii=False, default=str))
            return
        self.say(f"error: {error.summary}")
        if error.hint:
            self.say(f"hint: {error.hint}")

    def interrupted(self, how: str) -> None:
        """Say that a signal ended the command."""
        self.close()
        self.say(f"{how}: what is cached stays, and what had arrived of the rest is resumed next time")

    def event(self, event: Event) -> None:
        """Show *event*, from whatever thread."""
        with self._guard:
            self._progress.show(event)

    def close(self) -> None:
        """End the progress display."""
        with self._guard:
            self._progress.close()


def one_line(text: str) -> str:
    """Return *text*, which may hold names that a stranger chose, with what ends a line or steers a terminal escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def size(count: float) -> str:
    """Return a number of bytes for a person, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return a time span for a person."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length * 2:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


class _Silent:
    def show(self, event: Event) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing is open."""


class _Json:
    """One line of JSON an event, on stderr."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say

    def show(self, event: Event) -> None:
        self._say(json.dumps({"event": event.kind, "time": round(time.time(), 3), **_facts(event)}, ensure_ascii=False))

    def close(self) -> None:
        """Nothing is open."""


class _Plain:
    """Heartbeat lines: every ten seconds or ten per cent, and what is news."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._last: dict[str, tuple[float, int]] = {}

    def show(self, event: Event) -> None:
        now = time.monotonic()
        said_at, said = self._last.get(event.ref, (now, event.done))
        if event.kind == "started":
            self._last[event.ref] = now, event.done
            resumed = f", {size(event.done)} of it here already" if event.done else ""
            self._say(f"{event.ref}: {'size unknown' if event.total is None else size(event.total)}{resumed}")
        elif event.kind == "progress":
            due = event.done - said >= event.total * HEARTBEAT_SHARE if event.total else False
            # A fast transfer needs no ten lines: not more than one a second.
            if now - said_at >= HEARTBEAT_S or (due and now - said_at >= 1):
                self._last[event.ref] = now, event.done
                rate = (event.done - said) / max(now - said_at, 1e-9)
                share = f"{100 * event.done // event.total} %, " if event.total else ""
                left = f", {duration((event.total - event.done) / rate)} left" if event.total and rate else ""
                self._say(f"{event.ref}: {share}{size(event.done)}, {size(rate)}/s{left}")
        elif event.kind in _DONE:
            took = f" in {event.seconds:.1f} s" if event.seconds is not None else ""
            self._say(f"{event.ref}: done, {size(event.done)}{took}")
        elif event.kind in _NEWS:
            self._say(news(event))

    def close(self) -> None:
        """Nothing is open."""


class _Bars:
    """A tqdm bar a transfer."""

    def __init__(self, say: Callable[[str], object]) -> None:
        from tqdm import tqdm

        self._tqdm, self._say = tqdm, say
        self._bars: dict[str, Any] = {}

    def show(self, event: Event) -> None:
        bar = self._bars.get(event.ref)
        if event.kind == "started":
            if bar is None:
                label = event.ref.partition("?")[0].rpartition("/")[2][:40]
                bar = self._bars[event.ref] = self._tqdm(
                    total=event.total, unit="B", unit_scale=True, desc=label, file=sys.stderr, leave=False
                )
            bar.reset(total=event.total)
            bar.update(event.done)
        elif event.kind == "progress" and bar is not None:
            bar.update(event.done - bar.n)
        elif event.kind in {*_DONE, "failed", "unchanged"}:
            if bar is not None:
                bar.close()
                del self._bars[event.ref]
            if event.kind in _DONE:
                self._tqdm.write(
                    f"{event.ref}: done, {size(event.done)} in {event.seconds or 0:.1f} s", file=sys.stderr
                )
        elif event.kind in _NEWS:
            self._tqdm.write(news(event), file=sys.stderr)

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()


def news(event: Event) -> str:
    """Return what *event* says, as a line for a person."""
    if event.kind == "retry":
        when = f"again in {event.seconds:.1f} s" if event.seconds else "again at once"
        return f"{event.ref}: {event.detail}; {when}"
    if event.kind == "ranges":
        return f"{event.ref}: the link is slow; {event.done} connections from here on"
    return f"{event.ref}: {event.kind}" + (f": {event.detail}" if event.detail else "")


def _facts(event: Event) -> dict[str, Any]:
    return {key: value for key, value in event.as_dict().items() if key != "kind"}


def _progress(kind: str, *, quiet: bool, say: Callable[[str], object]) -> _Progress:
    if kind == "none" or (quiet and kind == "auto"):
        return _Silent()
    if kind == "json":
        return _Json(say)
    terminal = (
        sys.stderr is not None
        and sys.stderr.isatty()
        and not os.environ.get("CI")
        and not os.environ.get("TQDM_DISABLE")
    )
    if kind == "bar" or (kind == "auto" and terminal):
        try:
            return _Bars(say)
        except ImportError:  # tqdm comes with modelcache[cli]; lines do without it.
            return _Plain(say)
    return _Plain(say)
