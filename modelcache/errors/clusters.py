"""What a cluster, or a host of it, could not do. The whole tree is drawn in `modelcache.errors`."""

from __future__ import annotations

from collections.abc import Mapping

from .base import ModelCacheError, shown


class ClusterError(ModelCacheError, ConnectionError):
    """The cluster cannot be used; nothing was begun on any host. ``address`` is its scheduler's."""

    exit_code = 6
    hint = "Check the address of the scheduler, and that this machine reaches it"

    def __init__(self, *, address: str, detail: str) -> None:
        super().__init__(address=address, detail=detail)
        self.address, self.detail = address, detail
        self.summary = f"the cluster at {shown(address)} cannot be used: {detail}; nothing was begun on any host"


class NoSchedulerError(ClusterError):
    """Nothing answers at that address."""

    hint = "Check host and port (8786 by default), and that `dask scheduler` runs there"


class NotASchedulerError(ClusterError):
    """Something answers at that address, and it is no dask scheduler, or one of another time."""

    hint = "Give the address that `dask scheduler` prints, not that of a worker or a dashboard"


class ClusterTLSError(ClusterError):
    """One side speaks TLS and the other does not, or they do not trust each other."""

    hint = "Use tls:// for a scheduler with TLS, with the certificates in dask's settings (distributed.comm.tls)"


class NoWorkersError(ClusterError):
    """The scheduler has no workers."""

    hint = "Start workers, or wait longer for the first: --connect-timeout"


class SchedulerLostError(ClusterError):
    """The scheduler was there and has gone."""

    hint = "What hosts have is kept; run it again when the scheduler is back"

    def __init__(self, *, address: str, detail: str) -> None:
        super().__init__(address=address, detail=detail)
        self.summary = (
            f"the scheduler at {shown(address)} has gone ({detail}); the hosts that were not done are not known"
        )


class HostError(ModelCacheError):
    """A host of the cluster is not ready. ``host`` is its address, ``detail`` what went wrong."""

    hint = "What had arrived there is kept; run it again"

    def __init__(self, *, host: str, detail: str) -> None:
        super().__init__(host=host, detail=detail)
        self.host, self.detail = host, detail
        self.summary = f"{shown(host)} is not ready: {detail}"


class HostSetupError(HostError):
    """modelcache is not installed there, cannot be imported, or is of a version that does not take our orders."""

    hint = "Install the same modelcache in the environment of the workers"


class HostLostError(HostError):
    """Its workers died, as often as that is tried again, or none came back."""

    hint = "See the logs of its workers; what had arrived there is kept, and run again it goes on"


class HostTimeoutError(HostError, TimeoutError):
    """It was not done in time, or did not answer."""

    hint = "Raise --deadline, or see why the host hangs; what had arrived there is kept"


class HostFailedError(HostError):
    """What ran there failed: ``error`` is the name of its error, ``code`` that error's exit code."""

    def __init__(self, *, host: str, error: str, detail: str, advice: str = "", code: int = 1) -> None:
        ModelCacheError.__init__(self, host=host, error=error, detail=detail, advice=advice, code=code)
        self.host, self.error, self.detail, self.advice, self.code = host, error, detail, advice, code
        self.summary = f"{shown(host)} is not ready: {detail}"
        self.hint = advice or HostError.hint


class HostsError(ModelCacheError):
    """Some hosts of a cluster are not ready; the other ones are. ``failures`` maps each host to its error."""

    exit_code = 3

    def __init__(self, *, failures: Mapping[str, ModelCacheError], total: int) -> None:
        super().__init__(failures=failures, total=total)
        self.failures, self.total = failures, total
        first = next(iter(failures.values()), None)
        self.summary = f"{len(failures)} of {total} hosts are not ready. First: {first}"
        self.hint = "Run it again: what is done is not done again, what is half there is resumed"
