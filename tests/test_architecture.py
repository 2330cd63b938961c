"""The house: a module imports only from floors below its own, and only `commit` changes anything under the root."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import modelcache

PACKAGE = Path(modelcache.__file__).parent
# DESIGN.md section 7, from the ground up. A module may import from every floor below its own.
FLOORS = [
    {"errors.base"},
    {
        "errors.archives", "errors.builds", "errors.calls", "errors.clusters", "errors.contents", "errors.places",
        "errors.storage",
    },
    {"errors", "events", "eviction", "forks", "protobuf", "report", "workspace"},
    {"eventlog"},
    {"layout"},
    {"sealed"},
    {"config", "digest", "patterns", "recipes", "reference", "tomltext"},
    {
        "companions", "derivation", "files", "hit", "isolation", "listing", "milprogram", "notes", "platforms",
        "process", "settings", "archive.registration",
    },
    {"bundle", "formats", "glance", "hubcache", "packed", "policy", "sampling", "trees"},
    {"configfiles", "manifest", "mlpackage", "sharing", "signatures", "stamps", "tier"},
    {"commit"},
    {"hints", "locks", "looks", "retry", "roots"},
    {"backoff", "breaker", "failures", "flights", "jobs", "leases", "objects", "outbox", "pins", "records", "turns"},
    {"selection", "usage", "usage.tally"},
    {"usage.store"},
    {"leasing", "partials", "sources.base", "backends.base"},
    {
        "sources.connections", "sources.file",
        "backends.ahead", "backends.directory", "backends.memory", "backends.objectstore", "backends.refs",
        "backends.sqlite",
    },
    {"sources.http", "sources.tier", "backends.contents"},
    {"sources.hf"},
    {"backends", "sources"},
    {"fleet.bucket", "fleet.claims", "fleet.garbage", "fleet.growing", "fleet.index"},
    {"fleet.parts"},
    {"fleet.flight"},
    {"fleet"},
    {"levels.base"},
    {"levels.bucket", "levels.directory", "levels.health"},
    {"levels"},
    {"mending", "promises", "ranges", "staged", "sweep", "tiers", "transfer"},
    {"footprint"},
    {"gate", "gc", "products", "retention", "unpacking", "verification"},
    {"deriving", "exporting", "importing", "intake", "doctor", "sidecar"},
    {"download"},
    {"archived", "repository"},
    {"together"},
    {"fetch"},
    {"question"},
    {"measuring"},
    {"archive.exits", "archive.reading"},
    {"archive.health"},
    {"archive.queue"},
    {"archive.carrier", "archive.writer"},
    {"archive.lane"},
    {"archive.archivist"},
    {"archive"},
    {"backends.locations", "memory", "usage.summary"},
    {"usage.archive"},
    {"usage.recorder"},
    {"getting"},
    {"replication", "warmup"},
    {"syncing"},
    {"usage.wanted"},
    {"keeper"},
    {"making"},
    {"tiering"},
    {"cache"},
    {"cluster.hosts", "cluster.onhost"},
    {"cluster.engine"},
    {"cluster"},
    {"metrics.samples"},
    {"metrics.otel", "metrics.prometheus"},
    {"metrics"},
    {"api", "testing.server", "testing.victims", "cli.console", "coreml.library"},
    {"coreml.packages"},
    {"coreml.compiling"},
    {"coreml"},
    {"onnx.graph", "onnx.runtime"},
    {"onnx.options", "onnx.sources"},
    {"onnx.building"},
    {"onnx.engines"},
    {"onnx.contexts"},
    {"onnx.sessions"},
    {"onnx"},
    {"cli.asking", "cli.each", "cli.sharing", "cli.tierstates"},
    {"cli.fanout"},
    {
        "cli.config", "cli.derive", "cli.doctor", "cli.du", "cli.export", "cli.gc", "cli.get", "cli.import_",
        "cli.info", "cli.init", "cli.lock", "cli.ls", "cli.path", "cli.pin", "cli.prewarm", "cli.remove", "cli.stats",
        "cli.tiers", "cli.unpin", "cli.verify",
    },
    {"cli", "testing"},
    {"__init__", "__main__"},
]  # fmt: skip
LEVEL = {module: level for level, floor in enumerate(FLOORS) for module in floor}
MUTATING = {
    "chmod", "chown", "fchmod", "fdatasync", "fsync", "ftruncate", "link", "makedirs", "mkdir", "mkfifo", "mknod",
    "remove", "removedirs", "rename", "renames", "replace", "rmdir", "symlink", "truncate", "unlink", "utime",
    "write", "pwrite",
}  # fmt: skip
# Where a change is not one of the root, or is what that module is for.
ALLOWED = {
    ("locks", "ftruncate"), ("locks", "pwrite"),  # Lock files: the holder's name, and a note. They only inform.
    ("isolation", "write"),  # A pipe to a process of our own.
    ("leases", "write"),  # A pipe to the parent of a fork.
    ("looks", "write"),  # One line, appended to a file that `commit` has made: what makes files takes 10 ms to import.
    ("__main__", "write"),  # The path, to standard output.
    ("testing.victims", "write"), ("testing.victims", "TemporaryFile"),  # A pipe to the parent; what a victim says.
}  # fmt: skip


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found.append((name, path))
    return found


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_from_floors_below(name: str, path: Path) -> None:
    assert name in LEVEL, f"{name} has no floor: give it one here and in DESIGN.md section 7"
    package = path.relative_to(PACKAGE).parent.parts

    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = package[: len(package) - node.level + 1]
        inside = ".".join([*base, *(node.module.split(".") if node.module else [])])
        for alias in node.names:
            candidates = [".".join(filter(None, [inside, alias.name])), inside]
            target = next((one for one in candidates if one in LEVEL), None)
            assert target is not None, f"{name} imports {alias.name} from {inside}, which has no floor"
            assert LEVEL[target] < LEVEL[name], f"{name} imports {target}, which is not below it"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_only_commit_changes_the_file_system(name: str, path: Path) -> None:
    if name == "commit":
        return

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = node.value.id, node.attr
            changes = (called[0] == "os" and called[1] in MUTATING) or called[0] in {"shutil", "tempfile"}
            assert not changes or (name, node.attr) in ALLOWED, f"{path.name}:{node.lineno} changes files by {called}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            mode = node.args[1] if len(node.args) > 1 else None
            plain = mode is None or (isinstance(mode, ast.Constant) and set(str(mode.value)) <= set("rb"))
            assert plain, f"{path.name}:{node.lineno} opens a file for writing"


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("tenacity", {"retry"}),
        ("fasteners", {"locks"}),
        ("urllib3", {"sources.connections", "sources.http"}),
        ("coremltools", {"coreml.library"}),
        ("model_signing", {"signatures"}),
        ("tomllib", {"tomltext"}),
        ("onnxruntime", {"onnx.runtime"}),
        ("distributed", {"cluster.engine"}),
        ("obstore", {"backends.objectstore"}),
        ("sqlite3", {"backends.sqlite"}),
        ("prometheus_client", {"metrics.prometheus"}),
        ("opentelemetry", {"metrics.otel"}),
    ],
)
def test_a_library_is_imported_in_its_one_place(library: str, home: set[str]) -> None:
    importers = set()
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == library for alias in node.names):
                importers.add(name)
            if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == library:
                importers.add(name)

    assert importers == home


def test_fail_points_are_literal_unique_and_named_after_their_module() -> None:
    seen: dict[str, str] = {}
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fail_point":
                assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"
                point = str(node.args[0].value)
                assert point not in seen, f"{point} stands in {seen.get(point)} and in {name}"
                assert point.startswith(f"{name}."), f"{point} stands in {name}"
                seen[point] = name

    assert {"commit", "download", "partials", "locks"} <= set(seen.values())


def test_the_public_names_are_exactly_those_that_load() -> None:
    assert modelcache.__all__ == sorted(modelcache.__all__)
    for name in modelcache.__all__:
        assert getattr(modelcache, name) is not None
