# The companion's commands. `make help` lists them.
PYTHON ?= python3
PROFILE ?= profiles/demo.yaml
CORES ?= all
RUN ?= runs/demo
BIN := .venv/bin
READY := .venv/.ready
# `make reproduce ENV=conda` uses the active conda environment (conda env create -f environment.yml) and installs nothing.
ifeq ($(ENV),conda)
BIN := $(CONDA_PREFIX)/bin
READY :=
endif
# Packages of a group (pyproject.toml) beyond those that `make reproduce` needs; a target asks for $(LAB), $(TEST), ...
LAB := $(addsuffix -lab,$(READY))
BOOK := $(addsuffix -book,$(READY))
CLUSTER := $(addsuffix -cluster,$(READY))
TEST := $(addsuffix -test,$(READY))
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e

export HF_HUB_DISABLE_TELEMETRY := 1
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help setup reproduce finding check-finding slurm verify plan publish graph lab test test-fast test-slurm test-faults \
  lint bench bench-gpu calibrate \
  notebooks book readme demo-assets lock clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 14))' || { echo "Python 3.11.5 to 3.13 is needed; $(PYTHON) is $$($(PYTHON) --version). Say which: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) .
	touch $@

.venv/.ready-%: .venv/.ready
	$(INSTALL) ".[$*]"
	touch $@

setup: $(READY) ## create .venv with what `make reproduce` needs, in the versions of requirements.lock

# One job per free GPU; a job gets its GPU by name (workflow/gpus.py). GPUs and memory of this machine are counted here;
# a cluster counts its own. A failed model is left out of the comparison, and the last lines say which and why.
HERE = --cores $(CORES) --retries 2 --resources gpu=$$($(BIN)/python -m workflow.gpus) \
  mem_mb=$$($(BIN)/python -c 'import psutil; print(psutil.virtual_memory().total // 10**6)')

reproduce: $(READY) ## run all nine stages of PROFILE (default: the demo), or go on with them
	@$(BIN)/python -m workflow.start "$(PROFILE)" $(HERE)

finding: PROFILE = profiles/finding.yaml
finding: $(READY) ## SmolLM2-135M on real annotations, all nine stages, and the one table that matters (hours; goes on where it stopped)
	@$(BIN)/python -m workflow.start "$(PROFILE)" $(HERE)
	@$(BIN)/python -m workflow.findings show "$(PROFILE)"

check-finding: PROFILE = findings/profile.yaml
check-finding: $(READY) ## diagnose the findings' model again, from its file and the real rows in data/raw, and compare (slow)
	@$(BIN)/python -m workflow.findings check "$(PROFILE)"

slurm: $(CLUSTER) ## run PROFILE on a Slurm cluster; SLURM="--default-resources slurm_partition=gpu" names a partition of yours
	@$(BIN)/python -m workflow.start "$(PROFILE)" --profile profiles/slurm $(SLURM)

verify: $(READY) ## compare every finished result of PROFILE with its recorded hash; damaged stages are run again next
	$(BIN)/python -m workflow.verify "$(PROFILE)"

plan: $(READY) ## say what PROFILE will take: jobs, tokens, FLOPs, hours, disk, judge calls and cost
	$(BIN)/python -m workflow.plan "$(PROFILE)"

publish: $(READY) ## write what others can load of RUN (default: runs/demo) to its folder publish/; nothing is uploaded
	$(BIN)/python -m workflow.publish "$(RUN)"

graph: $(READY) ## draw the graph of stages, without edges that follow from others, to figures/pipeline.svg (needs graphviz)
	@command -v dot >/dev/null || { echo "graphviz is needed to draw the graph: apt-get install graphviz"; exit 1; }
	@edges=$$(mktemp); trap "rm -f $$edges" EXIT; \
	$(BIN)/python -m snakemake claims --rulegraph dot --config profile="$(PROFILE)" >$$edges && \
	tred $$edges | dot -Tsvg -o figures/pipeline.svg
	@echo "graph: figures/pipeline.svg"

lab: $(LAB) ## open the notebooks in JupyterLab
	$(BIN)/python -m jupyter lab --notebook-dir .

# Linear algebra in one thread, as in a run's jobs: two tests with two threads each on two cores spin and wait for each other.
ONE_THREAD = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
TESTS = PATH="$(abspath $(BIN)):$$PATH" $(ONE_THREAD) $(BIN)/python -m pytest -q $(PYTEST)
THREE = -n 3 --dist loadfile --no-loadscope-reorder

# Three tests at a time, also on two cores, those that start runs of their own first: jobs, servers and browsers wait for each
# other, and other tests fill the gaps. Beside them the run on Slurm, which mostly waits; then the notebooks.
test: $(TEST) lint reproduce ## style, the demo run, all tests, and nbval on the notebooks
	@failed=0; \
	said=$$(mktemp); $(TESTS) -m slurm tests/workflow/test_slurm.py >$$said 2>&1 & slurm=$$!; \
	trap "kill $$slurm 2>/dev/null; rm -f $$said" EXIT; trap "exit 130" INT TERM; \
	$(TESTS) $(THREE) -m "not slurm" tests || failed=1; \
	$(TESTS) $(THREE) -p tests.nbval_numbers notebooks --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg || failed=1; \
	wait $$slurm || failed=1; cat $$said; \
	exit $$failed

test-fast: $(TEST) ## tests that need no demo run
	$(TESTS) -m "not pipeline" tests

test-slurm: $(TEST) ## PROFILE on a real Slurm of two nodes on this machine: one job killed, one node drained (root)
	$(BIN)/python tests/slurm/run.py "$(PROFILE)"

test-faults: $(TEST) ## break things at every boundary of stages, repair, and compare tables
	$(BIN)/python tests/faults/run.py

bench: $(TEST) ## measure everything in benchmarks/ on this machine and render benchmarks/results.md
	$(BIN)/python benchmarks/run.py

bench-gpu: $(TEST) ## the measurements that need a GPU
	$(BIN)/python benchmarks/run.py --gpu

calibrate: $(TEST) ## how often claims and diagnosis are decided wrongly, in worlds whose truth is known (hours; goes on where it stopped)
	PYTHONPATH=. $(BIN)/python benchmarks/calibrate_claims.py
	PYTHONPATH=. $(BIN)/python benchmarks/calibrate.py $(CALIBRATE)

lint: $(TEST) ## ruff, for style and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

notebooks: $(TEST) reproduce ## execute the committed notebooks again, with the demo profile
	$(BIN)/python -m workflow.execution commit

book: $(BOOK) ## build the book (build/book/html); needs nothing but the committed notebooks, or those of PROFILE's run
	$(BIN)/python -m docs.build "$(PROFILE)"

readme: $(BOOK) ## write the README's generated parts, findings/README.md, and the profiles' JSON Schema for editors
	$(BIN)/python -m docs.readme
	$(BIN)/python -m workflow.schema

demo-assets: $(READY) ## rebuild data/demo: annotations, prompts, tiny models (minutes)
	$(BIN)/python data/demo/build_annotations.py
	$(BIN)/python data/demo/build_prompts.py
	$(BIN)/python data/demo/build_models.py

lock: ## resolve the packages of pyproject.toml into requirements.lock, in a fresh environment
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet torch==2.13.0
	.lock-venv/bin/python -m pip install --quiet -e ".[test]"
	$(PYTHON) -c 'print("# Made by `make lock` from pyproject.toml. Do not edit.")' > requirements.lock
	.lock-venv/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >> requirements.lock
	rm -rf .lock-venv

clean: ## remove runs/demo, caches and .venv; other runs and downloaded data stay
	rm -rf runs/demo .snakemake .venv *.egg-info .pytest_cache .ruff_cache .hypothesis
