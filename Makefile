# Two commands do everything: `make demo` and `make test`. Both make .venv first.

VENV := .venv
PYTHON := $(VENV)/bin/python
BASE_PYTHON := $(shell for p in python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$p && break; done)

.PHONY: setup demo test check clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@if [ -z "$(BASE_PYTHON)" ]; then \
		echo "No Python 3.12 or newer was found on the PATH; install one and run make again." >&2; exit 1; fi
	$(BASE_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(PYTHON) --constraint constraints.txt \
		--editable ".[dev]"
	@touch $@

demo: setup
	$(PYTHON) tests/demo.py

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: check
	$(PYTHON) -m pytest -n 2 --dist loadfile

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
