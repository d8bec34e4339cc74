# Two commands on a fresh machine with Python 3.11 or newer; each one makes what it needs, once.
#
#   make quickstart                                  environment, installation, and the bundled model at work
#   make quickstart MODEL=TIGER-Lab/ABC-Qwen2VL-Instruct         the same with the published model
#   make quickstart ARGS="--model TIGER-Lab/ABC-Qwen2VL-Instruct"    any options of `abc-embed quickstart`
#   make test                                        what CI runs: scripts/check, then scripts/test
#   make miniature                                   the paper's findings tried on scenes, under 90 minutes on two cores
#   make serve-stress                                10,000 mutated requests, 1,000 clients at once, the server's own OpenAPI
#   make screenshots                                 the pictures of the server's pages in the docs; a minute, needs Chromium
#   make serve-load                                  latency and rate of the server, two models, on an idle machine; a quarter of an hour
#   make batch-kills                                 20,000 pictures through `batch`, 20 workers and 5 drivers killed
#   make fuzz                                        damaged pictures, records and models, kills, full disks, in parts that go on after a stop
#   make docs                                        the documentation as a site, in build/site
#   make bundled                                     the small model of the package from nothing, in runs/bundled
#   make measure                                     every record and figure of the small model, anew; about an hour
#
# PYTHON chooses the interpreter, VENV the place of the environment, ARGS goes to the command at the end.

PYTHON ?= python3
VENV ?= .venv
MODEL ?=
ARGS ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The recipes hand only what they name to the scripts: not make's own variables.
MAKEOVERRIDES =
unexport MODEL ARGS PYTHON

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test check docs miniature bundled measure serve-stress serve-load screenshots fuzz batch-kills clean

help:
	@sed -n 's/^#   //p' Makefile

quickstart: $(VENV)/.installed
	@$(BIN)/abc-embed quickstart $(if $(MODEL),--model "$(MODEL)") $(ARGS)

test: $(VENV)/.installed-dev
	@export VENV="$(VENV)"; status=0; \
	scripts/check || status=$$?; \
	scripts/test $(ARGS) || status=$$?; \
	exit $$status

check: $(VENV)/.installed-dev
	@VENV="$(VENV)" scripts/check

docs: $(VENV)/.installed-dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet $(ARGS)
	@echo "build/site holds the pages; for the search as well: $(BIN)/python -m mkdocs serve" >&2

miniature: $(VENV)/.installed-dev
	@$(BIN)/python -m experiments.miniature --out runs/miniature --into . $(ARGS)

bundled: $(VENV)/.installed
	@$(BIN)/python -m experiments.curriculum --out runs/bundled $(ARGS)

measure: $(VENV)/.installed-dev
	@$(BIN)/python tools/measure_bundled.py $(ARGS)

serve-stress: $(VENV)/.installed-dev
	@$(BIN)/python tools/stress_serve.py --out results/serving/stress.json $(ARGS)

serve-load: $(VENV)/.installed-dev
	@$(BIN)/python tools/bench_serve.py --out results/serving/load.json $(ARGS)

screenshots: $(VENV)/.installed-dev
	@$(BIN)/python tools/make_screenshots.py docs/images

fuzz: $(VENV)/.installed-dev
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

batch-kills: $(VENV)/.installed-dev
	@$(BIN)/python tools/bench_batch.py --out results/scale/batch.json $(ARGS)

clean:
	rm -rf "$(VENV)" build dist

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "abc-embed needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": name another one with make PYTHON=python3.12")'
	@echo "installing abc-embed into $(VENV) (once; a few minutes with an empty pip cache)" >&2
	@$(PYTHON) -m venv "$(VENV)"
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the development tools into $(VENV)" >&2
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

#   make docs-walk                                   every command of README and docs/, as printed, long ones too
.PHONY: docs-walk
docs-walk: $(VENV)/.installed-dev
	@VENV="$(VENV)" ABC_EMBED_DOCS_WALK=1 scripts/test tests/cli/test_docs.py $(ARGS)
