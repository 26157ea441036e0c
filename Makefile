# Everything a developer or a user runs. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# bundled: the cluster of devcluster/; current: the current kube context.
CLUSTER ?= bundled
DEVCLUSTER := PYTHONPATH=devcluster/src python3 -m cloister_devcluster
CODE := operator/src sandbox-image/src egress-gateway/src client/src devcluster/src scripts bench
CACHE := $(or $(CLOISTER_CACHE),$(if $(filter 0,$(shell id -u)),/var/cache/cloister,$(HOME)/.cache/cloister))
# Tests that need no cluster. What the others import takes longer than some of these.
LOCAL := tests --ignore=tests/e2e --ignore=tests/redteam --ignore=tests/faults_operator
# What Python and mypy compile lies beside the binaries: the tree stays clean, the next run starts sooner.
export PYTHONPYCACHEPREFIX := $(CACHE)/pycache
export MYPY_CACHE_DIR := $(CACHE)/mypy
# Where it is set, every worker of pytest compiles all of it, in every run.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list every command
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# --- the main commands ---------------------------------------------------------------------------

.PHONY: demo
demo: $(STAMP) ## set up a cluster, install Cloister, run an agent's tools in a sandbox (CLUSTER=current: yours)
	$(PY) scripts/demo.py --cluster $(CLUSTER)

.PHONY: test
test: check long ## `make check`, `make long`, then the end-to-end tests on the bundled cluster; not `redteam` and `outages`
	$(PY) scripts/e2e.py

.PHONY: check
check: $(STAMP) lint ## what needs no cluster: lint, types, unit, contract and chart tests
	@$(MAKE) --no-print-directory -j 2 types unit

.PHONY: long
long: $(STAMP) ## the rest of what needs no cluster: attacks, races, floods, 2,000 schedules, a thousand calls
	$(VENV)/bin/pytest -n 3 --dist loadfile -m long $(LOCAL)

# --- parts of check ------------------------------------------------------------------------------

.PHONY: lint
lint: $(STAMP) ## formatting, lint rules and the import contracts
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports --no-cache

.PHONY: types
types: $(STAMP) ## mypy --strict
	$(VENV)/bin/mypy $(CODE) tests

.PHONY: unit
unit: $(STAMP) ## unit, contract and chart tests
	@$(DEVCLUSTER) build --only helm --only promtool
	@$(DEVCLUSTER) unpack egress-gateway >/dev/null
	HELM=$$($(DEVCLUSTER) bin helm) $(VENV)/bin/pytest -n 7 --dist loadfile -m 'not long' $(LOCAL)

.PHONY: format
format: $(STAMP) ## rewrite the code in the project's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

.PHONY: golden
golden: $(STAMP) ## rewrite the golden files; read the diff before you commit it
	HELM=$$($(DEVCLUSTER) bin helm) $(VENV)/bin/pytest -n 4 --dist loadfile $(LOCAL) --update-golden

# How long `make soak` runs, and its first seed; CALL=n makes one call of that seed's run again.
SECONDS ?= 3600
SEED ?= 1

.PHONY: soak
soak: $(STAMP) ## the long fault and fuzz tests (SECONDS=3600 SEED=1; CALL=n repeats one call)
	$(if $(CALL),,SOAK=1 $(VENV)/bin/pytest -q -n 4 --dist loadfile tests/unit/sandbox)
	GRPC_VERBOSITY=NONE PYTHONPATH=tests $(PY) tests/faults/soak.py \
	  --seconds $(SECONDS) --seed $(SEED) $(if $(CALL),--call $(CALL))

.PHONY: soak-operator
soak-operator: $(STAMP) ## the operator killed, and behind an API server that fails, for long (SECONDS=3600 SEED=1)
	@$(DEVCLUSTER) build --only etcd --only kube-apiserver --only kube-controller-manager --only helm
	HELM=$$($(DEVCLUSTER) bin helm) PYTHONPATH=devcluster/src:tests $(PY) tests/faults_operator/soak.py \
	  --seconds $(SECONDS) --seed $(SEED)

# --- generated files -----------------------------------------------------------------------------

.PHONY: generate
generate: $(STAMP) ## regenerate the gRPC stubs and the chart's README
	$(PY) scripts/generate_stubs.py
	$(PY) scripts/chart_readme.py

.PHONY: lock
lock: $(STAMP) ## recompile requirements/*.txt from pyproject.toml
	for group in sandbox operator gateway client dev; do \
	  $(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-emit-find-links --no-header --no-annotate --group $$group -o requirements/$$group.txt; \
	done

# --- the cluster ---------------------------------------------------------------------------------

.PHONY: cluster-up
cluster-up: ## build (once) and start the bundled cluster
	$(DEVCLUSTER) up

.PHONY: cluster-down
cluster-down: ## stop the bundled cluster and remove everything of it
	$(DEVCLUSTER) down

.PHONY: cluster-status
cluster-status: ## what of the bundled cluster is running, and where its kubeconfig is
	$(DEVCLUSTER) status

.PHONY: images
images: ## build the images, and load them into the bundled cluster when it runs (ENGINE=docker: for docker)
	$(DEVCLUSTER) images $(if $(ENGINE),--engine $(ENGINE))

.PHONY: sbom
sbom: $(STAMP) ## write what each image contains as CycloneDX JSON, to build/sbom
	$(DEVCLUSTER) images
	$(PY) scripts/sbom.py

.PHONY: deploy
deploy: $(STAMP) ## install or upgrade Cloister on the cluster with helm
	$(PY) scripts/deploy.py --cluster $(CLUSTER)

.PHONY: e2e
e2e: $(STAMP) ## only the end-to-end tests (ARGS='-k name' narrows them down)
	$(PY) scripts/e2e.py -- $(ARGS)

.PHONY: outages
outages: $(STAMP) ## kill the kubelet, containerd, API server and etcd of the bundled cluster under load
	$(PY) scripts/e2e.py -- --outages $(ARGS)

.PHONY: redteam
redteam: $(STAMP) ## attack Cloister from inside its sandboxes, before a fake internet (ARGS='-k name' narrows it down)
	$(PY) scripts/redteam.py -- $(ARGS)

# --- measurements --------------------------------------------------------------------------------

.PHONY: bench-exec
bench-exec: $(STAMP) ## the exec server next to its floors, on loopback and in pods; writes bench/results/exec.json
	$(PY) bench/bench_exec.py

.PHONY: bench-egress
bench-egress: $(STAMP) ## the egress gateway next to a direct way, on loopback; writes bench/results/egress.json
	@$(DEVCLUSTER) unpack egress-gateway >/dev/null
	$(PY) bench/bench_egress.py
	$(PY) bench/egress_cluster.py

.PHONY: bench-claims
bench-claims: $(STAMP) ## claims on the bundled cluster; writes bench/results/claims.json
	$(PY) bench/bench_claims.py

.PHONY: bench-scale
bench-scale: $(STAMP) ## claims beside 10,000 pods on pretended nodes; writes bench/results/scale.json (PODS=1000 CHURN=60)
	$(PY) bench/bench_scale.py

# --- housekeeping --------------------------------------------------------------------------------

.PHONY: init
init: $(STAMP) ## only make the virtual environment

$(STAMP): requirements/dev.txt pyproject.toml
	@echo "setting up $(VENV) from requirements/dev.txt"
	test -x $(PY) || python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.PHONY: clean
clean: ## remove what was built in this folder; the cluster's binaries stay in their cache
	rm -rf $(VENV) build dist bench/results .mypy_cache .ruff_cache .pytest_cache .hypothesis
