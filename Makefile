# Two commands do everything: `make reproduce` and `make test`. Both make the environment in .venv first.
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

.PHONY: reproduce test readme docs clean
reproduce: .venv/installed  ## train the synthetic column, regenerate every table and figure into _reproduced/index.html
	.venv/bin/dals reproduce --seeds "$$SEEDS" --jobs "$$JOBS"

test: .venv/installed  ## everything that must hold
	.venv/bin/python -m pytest -n "$$JOBS" --dist worksteal

readme: .venv/installed  ## render README.md from nbs/index.ipynb
	.venv/bin/python tools/readme.py

docs: .venv/installed  ## the documentation site (needs Quarto)
	.venv/bin/nbdev_docs && .venv/bin/python tools/readme.py

clean:
	rm -rf .venv _reproduced build dist *.egg-info
