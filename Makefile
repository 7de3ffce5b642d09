# The companion's commands. `make help` lists them.
PYTHON ?= python3
PROFILE ?= profiles/demo.yaml
CORES ?= all
BIN := .venv/bin
READY := .venv/.ready

export HF_HUB_DISABLE_TELEMETRY := 1
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help setup reproduce slurm verify plan graph lab test test-fast test-slurm test-faults lint bench bench-gpu \
  notebooks book readme demo-assets lock clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Say which: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

setup: $(READY) ## create .venv from the lock file

# One job per free card; a job gets its card by name (lib/accelerators.py). Cards and memory of this machine are counted
# here; a cluster counts its own. A failed model is left out of the comparison, and the last line says which and why.
SNAKEMAKE = $(BIN)/python -m snakemake --quiet host rules --keep-going --keep-incomplete --rerun-incomplete \
  --rerun-triggers mtime params input
HERE = --cores $(CORES) --retries 2 --resources gpu=$$($(BIN)/python -m lib.accelerators) \
  mem_mb=$$($(BIN)/python -c 'import psutil; print(psutil.virtual_memory().total // 10**6)')

# The whole run; if something failed, once more with the models that are there; then what came out. Any failure is make's.
RUN = failed=0; $(SNAKEMAKE) $(1) --config profile="$(PROFILE)" || failed=1; \
  if [ $$failed = 1 ] && $(BIN)/python -m lib.failures "$(PROFILE)"; then \
    $(SNAKEMAKE) $(1) --config profile="$(PROFILE)" partial=true; fi; \
  $(BIN)/python -m lib.claims "$(PROFILE)" && exit $$failed

reproduce: $(READY) ## run all nine stages of PROFILE (default: the demo)
	@$(call RUN,$(HERE))

slurm: $(READY) ## run PROFILE on a Slurm cluster; SLURM="--default-resources slurm_partition=gpu" names its things
	@$(call RUN,--profile profiles/slurm $(SLURM))

verify: $(READY) ## compare every finished result of PROFILE with its recorded hash; damaged stages are run again next
	$(BIN)/python -m lib.integrity "$(PROFILE)"

plan: $(READY) ## say what PROFILE will take: jobs, tokens, FLOPs, hours, disk, judge calls and cost
	$(BIN)/python -m lib.plan "$(PROFILE)"

graph: $(READY) ## draw the graph of stages to figures/pipeline.svg (needs graphviz)
	@command -v dot >/dev/null || { echo "graphviz is needed to draw the graph: apt-get install graphviz"; exit 1; }
	$(BIN)/python -m snakemake --rulegraph dot --config profile="$(PROFILE)" | dot -Tsvg -o figures/pipeline.svg
	@echo "graph: figures/pipeline.svg"

lab: $(READY) ## open the notebooks in JupyterLab
	$(BIN)/python -m jupyter lab --notebook-dir .

test: $(READY) lint reproduce ## style, the demo run, all tests, and nbval on the notebooks
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q tests notebooks --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg $(PYTEST)

test-fast: $(READY) ## tests that need no demo run
	$(BIN)/python -m pytest -q -m "not pipeline" tests

test-slurm: $(READY) ## PROFILE on a real Slurm of two nodes on this machine: one job killed, one node drained (root)
	$(BIN)/python tests/slurm/run.py "$(PROFILE)"

test-faults: $(READY) ## break things at every boundary of stages, repair, and compare tables
	$(BIN)/python tests/faults/run.py

bench: $(READY) ## measure everything in benchmarks/ on this machine and render benchmarks/results.md
	$(BIN)/python benchmarks/run.py

bench-gpu: $(READY) ## the measurements that need a card
	$(BIN)/python benchmarks/run.py --gpu

lint: $(READY) ## ruff, for style and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

notebooks: reproduce ## execute the committed notebooks again, with the demo profile
	$(BIN)/python -m lib.notebooks commit

book: $(READY) ## build the book (build/book/html); needs nothing but the committed notebooks, or those of PROFILE's run
	$(BIN)/python -m lib.book "$(PROFILE)"

readme: $(READY) ## write the README's tables of claims and benchmarks
	$(BIN)/python -m lib.readme

demo-assets: $(READY) ## rebuild data/demo: annotations, prompts, tiny models (minutes)
	$(BIN)/python data/demo/build_annotations.py
	$(BIN)/python data/demo/build_prompts.py
	$(BIN)/python data/demo/build_models.py

lock: ## resolve requirements.in into requirements.lock, in a fresh environment
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet torch==2.13.0
	.lock-venv/bin/python -m pip install --quiet -r requirements.in
	$(PYTHON) -c 'print("# Made by `make lock` from requirements.in. Do not edit.")' > requirements.lock
	.lock-venv/bin/python -m pip freeze | sed 's/+cpu$$//' >> requirements.lock
	rm -rf .lock-venv

clean: ## remove runs/demo, caches and .venv; other runs and downloaded data stay
	rm -rf runs/demo .snakemake .venv *.egg-info .pytest_cache .ruff_cache .hypothesis
