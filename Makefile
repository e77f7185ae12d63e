# Two commands do everything: `make reproduce` and `make test`. Both make the environment in .venv first. `make help` lists the rest.
PYTHON ?= python3
SEEDS ?= 42
JOBS ?= 2
override SEEDS := $(value SEEDS)
override JOBS := $(value JOBS)
export SEEDS JOBS wanted
export OMP_NUM_THREADS = 1

# an environment belongs to one checkout and one Python; where either has changed, it is made anew
wanted := $(CURDIR) $(shell $(PYTHON) -c 'import sys; print(sys.version.split()[0], sys.base_prefix)')
ifneq ($(wanted),$(shell cat .venv/installed 2>/dev/null))
.PHONY: .venv/installed
clear := --clear
endif

.venv/installed: pyproject.toml
	$(PYTHON) -m venv $(clear) .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --progress-bar off --editable '.[dev]'
	printf '%s\n' "$$wanted" > $@

.venv/bin/ruff:
	$(MAKE) .venv/installed

.PHONY: help reproduce test check house readme book docs clean
help:  ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

reproduce: .venv/installed  ## train the synthetic column, regenerate every table and figure into _reproduced/index.html; the book beside it
	.venv/bin/dals reproduce --seeds "$$SEEDS" --jobs "$$JOBS"
	.venv/bin/python tools/book.py

test: .venv/installed  ## everything that must hold
	.venv/bin/python -m pytest -n "$$JOBS" --dist worksteal

# the tests that need neither training nor a kernel, in the order in which they usually fail
# (an environment that is there is taken as it is: nbdev_export rewrites pyproject.toml, and nobody wants an installation after each)
FAST = tests/test_house.py tests/test_door.py tests/test_published.py tests/test_schedule.py tests/test_strategies.py tests/test_makefile.py
check: .venv/bin/ruff  ## before a commit: lint, types, notebooks in step with the library, drawings, the fast tests (a minute or so)
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python tools/sync.py
	.venv/bin/python tools/house.py --check
	.venv/bin/python tools/readme.py --check
	.venv/bin/python -m pytest -q $(FAST)

house: .venv/bin/ruff  ## draw docs/architecture.md and the picture in CONTRIBUTING.md from the imports of dals/
	.venv/bin/python tools/house.py

readme: .venv/installed  ## render README.md from nbs/index.ipynb
	.venv/bin/python tools/readme.py

book: .venv/installed  ## the chapters as a static book in _reproduced/book, without Quarto
	.venv/bin/python tools/book.py

docs: .venv/installed  ## the documentation site (needs Quarto)
	@command -v quarto > /dev/null || { echo "make docs needs Quarto, from https://quarto.org: install it first, or use make book, which does without" >&2; exit 1; }
	.venv/bin/nbdev_docs && .venv/bin/python tools/readme.py

clean:  ## remove the environment and everything that was made
	rm -rf .venv _reproduced build dist *.egg-info
