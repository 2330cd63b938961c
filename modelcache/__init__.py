"""modelcache: a multiprocess cache for machine-learning models with crash-safe writes.

``path = modelcache.get("https://host/model.onnx", digest="sha256:…")`` for scripts, `Cache` for programs.
Names are loaded when they are first used: importing the package costs next to nothing.
"""

TYPE_CHECKING = False  # typing takes 10 ms to import; type checkers take this name for its constant.
if TYPE_CHECKING:
    from typing import Any

    from .api import aderive as aderive
    from .api import aget as aget
    from .api import aget_many as aget_many
    from .api import aget_tree as aget_tree
    from .api import close as close
    from .api import derive as derive
    from .api import entries as entries
    from .api import explain as explain
    from .api import export as export
    from .api import get as get
    from .api import get_many as get_many
    from .api import get_tree as get_tree
    from .api import health as health
    from .api import import_ as import_
    from .api import init as init
    from .api import lease as lease
    from .api import lookup as lookup
    from .api import prewarm as prewarm
    from .api import put as put
    from .api import put_tree as put_tree
    from .api import stats as stats
    from .api import verify as verify
    from .cache import Cache as Cache
    from .config import ArchiveLimits as ArchiveLimits
    from .config import RetryPolicy as RetryPolicy
    from .config import Timeout as Timeout
    from .derivation import Derivation as Derivation
    from .digest import Digest as Digest
    from .errors import ModelCacheError as ModelCacheError
    from .events import Event as Event
    from .making import Input as Input
    from .policy import Policy as Policy
    from .policy import Signatures as Signatures
    from .records import Entry as Entry
    from .report import Health as Health
    from .report import Stats as Stats
    from .sources.hf import HfSource as HfSource
    from .sources.http import HttpSource as HttpSource
    from .tier import Tier as Tier
    from .workspace import Workspace as Workspace

_HOMES = {
    "ArchiveLimits": "config",
    "Cache": "cache",
    "Derivation": "derivation",
    "Digest": "digest",
    "Entry": "records",
    "Event": "events",
    "Health": "report",
    "HfSource": "sources.hf",
    "HttpSource": "sources.http",
    "Input": "making",
    "ModelCacheError": "errors",
    "Policy": "policy",
    "RetryPolicy": "config",
    "Signatures": "policy",
    "Stats": "report",
    "Tier": "tier",
    "Timeout": "config",
    "Workspace": "workspace",
    "aderive": "api",
    "aget": "api",
    "aget_many": "api",
    "aget_tree": "api",
    "close": "api",
    "derive": "api",
    "entries": "api",
    "explain": "api",
    "export": "api",
    "get": "api",
    "get_many": "api",
    "get_tree": "api",
    "health": "api",
    "import_": "api",
    "init": "api",
    "lease": "api",
    "lookup": "api",
    "prewarm": "api",
    "put": "api",
    "put_tree": "api",
    "stats": "api",
    "verify": "api",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605  # One list of names is enough.


def __getattr__(name: str) -> "Any":
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> "list[str]":
    return [*globals(), *_HOMES]
