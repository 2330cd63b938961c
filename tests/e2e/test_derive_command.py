"""`modelcache derive`, and manifests that derive: recipes of an installed package, as a user meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Cache
from modelcache.testing import FaultServer

Run = Callable[..., subprocess.CompletedProcess[str]]
_RECIPE = '''
"""A package that has added recipes."""
import os
def double(cache, ref, *, times=2, force=False):
    def build(workspace):
        with open(workspace.inputs["model"], "rb") as source, open(f"{workspace}/doubled.bin", "wb") as product:
            product.write(source.read() * workspace.params["times"])
    return cache.derive(
        build, recipe="double", version="1", inputs={"model": ref}, params={"times": times}, platform={}, force=force
    )
def broken(cache, ref):
    def build(workspace):
        raise ValueError("no such operator")
    return cache.derive(build, recipe="broken", version="1", inputs=[ref])
nothing = None
'''


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    """The command line, beside which a package with recipes is installed."""
    place = tmp_path / "packages"
    (place / "recipes-1.0.dist-info").mkdir(parents=True)
    (place / "recipes-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: recipes\nVersion: 1.0\n")
    points = "\n".join(f"{name} = some_recipes:{name}" for name in ("double", "broken", "nothing", "absent"))
    (place / "recipes-1.0.dist-info/entry_points.txt").write_text(f"[modelcache.recipes]\n{points}\n")
    (place / "some_recipes.py").write_text(_RECIPE)
    path = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()])])

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MODELCACHE_DIR": str(root), "PYTHONPATH": path, "MODELCACHE_HTTP_RETRIES": "0"}
        command = [sys.executable, "-m", "modelcache", *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def test_derive_prints_the_path_alone_and_builds_once(server: FaultServer, run: Run) -> None:
    url = server.add("/m.bin", b"weights")

    cold, warm = run("derive", "double", url), run("derive", "double", url)

    assert cold.returncode == warm.returncode == 0
    assert cold.stdout == warm.stdout
    assert Path(cold.stdout.strip()).read_bytes() == b"weightsweights"
    assert any(line.endswith(": building") for line in cold.stderr.splitlines())
    assert warm.stderr == ""
    other = run("derive", "double", url, "--set", "times=3", "--json")
    facts = json.loads(other.stdout)
    assert Path(facts["path"]).read_bytes() == b"weights" * 3
    assert (facts["recipe"], facts["params"], facts["inputs"][0]["ref"]) == ("double", {"times": 3}, url)
    assert "params.times: 2 → 3" in other.stderr
    assert "building" in run("derive", "double", url, "--force").stderr


def test_info_shows_what_it_depends_on_and_what_depends_on_it(server: FaultServer, run: Run) -> None:
    url = server.add("/m.bin", b"weights")
    facts = json.loads(run("derive", "double", url, "--json").stdout)

    told, of_input = run("info", facts["ref"]).stdout, json.loads(run("info", url, "--json").stdout)

    assert "recipe        double, version 1" in told
    assert "param         times = 2" in told
    assert url in told
    assert of_input["products"] == [facts["ref"]]
    assert facts["ref"] in run("ls").stdout
    assert run("rm", url).returncode == 0
    assert run("ls", "--json").stdout.strip() in {"[]", ""}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("unknown", "m"), 2, "Known recipes: absent, broken, coreml, double, nothing, onnx"),
        (("nothing", "m"), 2, "is no callable"),
        (("absent", "m"), 2, "cannot be loaded"),
        (("double", "m", "--set", "times"), 2, "KEY=VALUE"),
        (("double", "m", "--set", "size=3"), 2, "does not take these options (size)"),
        (("double", "m", "--set", "ref=3"), 2, "does not take these options (ref)"),
        (("double", "not-there"), 4, "not in the cache"),
        (("broken", "m"), 13, "it raised ValueError: no such operator"),
    ],
    ids=str,
)
def test_what_goes_wrong_is_told_with_its_exit_code(
    arguments: tuple[str, ...], code: int, says: str, root: Path, run: Run
) -> None:
    with Cache(root) as cache:
        cache.put(b"weights", name="m")

    done = run("derive", *arguments)

    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "hint: " in done.stderr


def test_prewarm_derives_what_the_manifest_says(server: FaultServer, run: Run, tmp_path: Path) -> None:
    url = server.add("/m.bin", b"weights")
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[[model]]\nref = "{url}"\nderive = ["double", {{ recipe = "double", times = 5 }}]\n')

    run("lock", "models.toml")
    done = run("prewarm", "--locked", "--json", "--ready-file", "ready", "models.toml")

    report = json.loads(done.stdout.splitlines()[-1])
    assert [len(Path(path).read_bytes()) for path in report["models"][0]["derived"]] == [14, 35]
    assert (tmp_path / "ready").exists()
    again = json.loads(run("prewarm", "--json", "models.toml").stdout.splitlines()[-1])
    assert again["models"][0]["derived"] == report["models"][0]["derived"]


def test_prewarm_fails_where_a_step_fails_and_before_anything_where_there_is_none(
    server: FaultServer, run: Run, tmp_path: Path
) -> None:
    url = server.add("/m.bin", b"weights")
    (tmp_path / "models.toml").write_text(f'[[model]]\nref = "{url}"\nderive = ["broken"]\n')
    (tmp_path / "none.toml").write_text(f'[[model]]\nref = "{url}"\nderive = ["unknown"]\n')

    assert run("prewarm", "none.toml").returncode == 2
    assert len(server.seen()) == 0
    done = run("prewarm", "--ready-file", "ready", "models.toml")

    assert done.returncode == 13
    assert "no such operator" in done.stderr
    assert not (tmp_path / "ready").exists()


@pytest.mark.parametrize("wrong", ["[7]", "[{}]", '["a/b"]', '"double"', "[{ recipe = 7 }]", "[[]]"])
def test_a_step_that_makes_no_sense_is_told_with_file_line_and_key(wrong: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(f'[[model]]\nref = "https://example.org/m"\nderive = {wrong}\n')

    done = run("prewarm", "models.toml")

    assert done.returncode == 2
    assert "models.toml:3: derive: is a list" in done.stderr


def test_info_takes_the_path_of_a_product(root: Path, run: Run) -> None:
    with Cache(root) as cache:
        cache.put(b"weights", name="m")
    path = run("derive", "double", "m").stdout.strip()

    said = run("info", path)

    assert (said.returncode, said.stderr) == (0, "")
    assert "recipe        double, version 1" in said.stdout
    assert "admitted" not in said.stdout


def test_a_manifest_with_a_wrong_option_fails_for_that_model_alone(root: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"weights")
    (tmp_path / "models.toml").write_text(
        f'[[model]]\nref = "{tmp_path}/m.bin"\nderive = [{{ recipe = "double", size = 3 }}]\n'
    )

    done = run("prewarm", str(tmp_path / "models.toml"))

    assert done.returncode == 2, done.stderr
    assert "does not take these options (size)" in done.stderr
    assert "Traceback" not in done.stderr
