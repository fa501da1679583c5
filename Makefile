# make demo   sweep the embedded data        make test   all quick tests
# make lint   ruff and mypy                  make test-slow   the long ones
#                                            make test-system   these, and what wants Debian packages
# make bench SKETCHY=DIR   speed, beside plain loops (benchmarks/RESULTS.md); needs 10 GB in .bench
# make bench-long   what takes longer: QuickDraw's size, the overhead of a sweep of long trials
# make pictures OF=runs/NAME   the README's pictures, from a run of the demonstration
PYTHON ?= python3
VENV := .venv
PACKAGES := wordnet-base chromium prometheus openssh-server rsync iproute2
RUN := $(VENV)/bin/python

.PHONY: demo test test-slow test-system sketchy bench bench-long pictures lint format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[demo,report,serve,dev]'
	touch $@

demo: $(VENV)/.installed
	$(RUN) -m dsn_ray.tune --space search_spaces/lambdas.yaml

test: $(VENV)/.installed
	$(RUN) -m pytest

test-slow: $(VENV)/.installed
	$(RUN) -m pytest -m slow

test-system: $(VENV)/.installed
	-(test -d /usr/share/wordnet && which chromium prometheus sshd rsync ip) > /dev/null || \
		(apt-get update -qq && apt-get install -qq -y $(PACKAGES))
	$(RUN) -m pytest -m "system or slow"

sketchy:
	@test -d "$(SKETCHY)" || { echo 'make bench SKETCHY=DIR: DIR is Sketchy-extended or a part of it.'; exit 2; }

bench: sketchy $(VENV)/.installed
	$(RUN) -m benchmarks.data "$(SKETCHY)" --work .bench
	$(RUN) -m benchmarks.evaluation
	$(RUN) -m benchmarks.search
	$(RUN) -m benchmarks.step "$(SKETCHY)" --work .bench
	$(RUN) -m benchmarks.start --work .bench
	$(RUN) -m benchmarks.scaling
	$(RUN) -m benchmarks.report

bench-long: $(VENV)/.installed
	$(RUN) -m benchmarks.evaluation --size quickdraw --sample 60
	$(RUN) -m benchmarks.overhead --work .bench
	$(RUN) -m benchmarks.asha .bench/overhead/runs/overhead

pictures: $(VENV)/.installed
	$(RUN) docs/pictures.py $(OF)

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
