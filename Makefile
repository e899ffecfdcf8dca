# Everything here runs on a fresh Debian or Ubuntu; each step says what it installs.
PY := .venv/bin/python
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help venv lint demo test setup-vm test-fast test-rest test-vm test-xen coverage bench bench-fairness bench-sources bench-egd bench-xen gallery pictures guest clean
help:            ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

venv: .venv/ready  ## the Python environment for development, in .venv
.venv/ready: pyproject.toml scripts/setup
	@scripts/setup venv

lint: venv       ## ruff, mypy --strict, import contracts, Python floors
	.venv/bin/ruff check .
	.venv/bin/mypy
	PYTHONPATH=hostd:guest .venv/bin/lint-imports --no-cache
	.venv/bin/vermin -q --no-tips --eval-annotations -t=3.6- --violations guest/netrng_guest
	.venv/bin/vermin -q --no-tips --no-eval-annotations -t=3.9- --violations --backport typing hostd/netrng_hostd

guest: .venv/ready  ## dist/netrng-guest.pyz, the agent in one reproducible file
	@$(PY) scripts/build_pyz.py dist/netrng-guest.pyz

demo: venv guest setup-vm  ## three small VMs fed from the hardware RNG, seen live (DEMO_SECONDS=20 for the impatient)
	@scripts/demo

test: setup-vm lint test-fast test-rest coverage test-vm test-xen  ## everything: linters, fast tests, 100 % branches of the core, real VMs, real Xen

setup-vm:       # before the fast tests: some of them use strace and QEMU where they are
	@scripts/setup vm

# The edge tests that start a QEMU (paused, without a guest), a downloaded rngd or other people's sources are not
# fast ones.
WITH_REAL := tests/edge/test_hypervisor_stream.py tests/edge/test_attach.py tests/edge/test_real_rngd.py \
	tests/edge/test_upstreams.py tests/edge/test_serve_stunnel.py tests/edge/test_serve_clients.py \
	tests/edge/test_chained.py
# Nor are those of the benchmarks, those that compute distributions or feed tens of megabytes, and those that
# start whole daemons, agents and commands.
OF_BENCH := tests/core/test_simulation.py tests/core/test_gallery.py tests/edge/test_bench_ends.py \
	tests/edge/test_bench_sources.py tests/edge/test_bench_egd.py
OF_NUMBERS := tests/core/test_blocktest.py tests/core/test_false_alarms.py
OF_PROGRAMS := tests/edge/test_daemon.py tests/edge/test_several_sources.py tests/edge/test_main.py \
	tests/edge/test_guest_main.py tests/edge/test_check_on_demand.py tests/edge/test_egd_channel.py
NOT_FAST := $(WITH_REAL) $(OF_BENCH) $(OF_NUMBERS) $(OF_PROGRAMS)
PYTEST := .venv/bin/pytest -q -p no:cacheprovider
WORKERS := $(shell echo $$((2 * $$(nproc))))  # many tests wait for something most of the time

test-fast: venv  ## no VM, no root, no program as a whole: about a minute
	$(PYTEST) -n $(WORKERS) --dist worksteal tests/core tests/edge $(addprefix --ignore=,$(NOT_FAST))

test-rest: venv setup-vm  ## wheel, documentation, units; whole programs; a real QEMU, real rngds, real sources; the simulator
	$(PYTEST) -n $(WORKERS) --dist worksteal tests/packaging $(NOT_FAST)

coverage: venv   ## each core module covered by its own test file alone, every branch
	@PATH=$(CURDIR)/.venv/bin:$$PATH scripts/coverage

test-vm: venv guest setup-vm  ## real VMs on a private libvirt
	@scripts/setup sudo
	$(PYTEST) -n 2 --dist worksteal tests/vm

test-xen: venv guest setup-vm  ## a real Xen: dom0, libvirt and PV domUs on an emulated computer (4.5 GB of memory)
	@scripts/setup xen
	@.venv/bin/python -m bed.xen

bench: venv      ## is it fair? the quotas' promises on a virtual clock, a line each; half a minute
	@PYTHONPATH=hostd:guest $(PY) -m bench.simulate

pictures: venv   ## draws docs/pictures again
	@scripts/setup pictures
	@PYTHONPATH=hostd:guest $(PY) -m bench.pictures docs/pictures

bench-fairness: venv  ## the quotas' promises, measured on the real daemon, a line each; about a quarter of an hour
	@PYTHONPATH=hostd:guest $(PY) -m bench.fairness

bench-sources: venv guest setup-vm  ## two sources and real VMs, one source goes bad, or both, a line each; three minutes
	@PYTHONPATH=hostd:guest $(PY) -m bench.sources

bench-egd: venv   ## how fast EGD is spoken, beside a plain server, a line each; two minutes
	@PYTHONPATH=hostd:guest $(PY) -m bench.egd

bench-xen: venv guest setup-vm  ## netrng's throughput over a Xen console, beside what the console carries; three minutes
	@scripts/setup xen
	@.venv/bin/python -m bed.xen -m bench.xen

gallery: venv    ## how soon each health test sees each broken source: docs/health.md's tables; some minutes
	@PYTHONPATH=hostd:guest $(PY) -m bench.gallery docs/health.md

clean:           ## removes what was built, downloaded and cached here
	rm -rf .venv .cache dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
