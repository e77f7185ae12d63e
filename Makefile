# Two commands do everything: `make reproduce` and `make test`. Both make the environment in .venv first.
PYTHON ?= python3
SEEDS ?= 42
JOBS ?= 2
export OMP_NUM_THREADS = 1

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --progress-bar off --editable '.[dev]'
	touch $@

.PHONY: reproduce test readme docs clean
reproduce: .venv/installed  ## train the synthetic column, regenerate every table and figure into _reproduced/index.html
	.venv/bin/dals reproduce --seeds $(SEEDS) --jobs $(JOBS)

test: .venv/installed  ## everything that must hold
	.venv/bin/python -m pytest -n $(JOBS) --dist worksteal

readme: .venv/installed  ## render README.md from nbs/index.ipynb
	.venv/bin/python tools/readme.py

docs: .venv/installed  ## the documentation site (needs Quarto)
	.venv/bin/nbdev_docs && .venv/bin/python tools/readme.py

clean:
	rm -rf .venv _reproduced build dist *.egg-info
