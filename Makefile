# Everything runs in .venv, which is made once. After that nothing here uses the network, but `make bench` once for
# .venv-peers and for the emulated boards.
#
#   make demo       export the Fashion-MNIST networks, verify them, measure CSR-Conv against its backbone
#   make test       the tests; make test-full: the full matrix as well
#   make bench-mcu  microcontrollers in QEMU: instructions, RAM and flash of ours and of peers
#   make bench      CSR networks against their backbones, int8 with one thread: instructions on an emulated
#                   Raspberry Pi 4 and 5, time and memory here, stock converters as the peer (once 2 GB into
#                   .venv-peers); with CIFAR-10 (see CIFAR10 below) accuracy as well. About an hour; interrupted,
#                   it goes on where it was. A quick look: make bench ARGS='--networks resnet56-t4 --runtimes litert'
#   make bench-full the same with float32 and with two threads too: some four hours
#   make lint       ruff and mypy
#   make clean      removes what the targets made, except .venv and .venv-peers
#
# Variables: PYTHON (the interpreter .venv is made with), CIFAR10 (folder or zip file with CIFAR-10; $CSR_DATA
# or ../shared/data/cifar10.zip by default), OUT (where artifacts go), ARGS (more arguments for pytest or a
# benchmark), WORKERS (tests at the same time, 2 by default).

PYTHON ?= python3
OUT ?= out
ARGS ?=
CIFAR10 ?= $(or $(CSR_DATA),$(wildcard ../shared/data/cifar10.zip))

BIN := .venv/bin
INSTALLED := .venv/.installed
FASHION_MNIST := /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

.DEFAULT_GOAL := demo
.DELETE_ON_ERROR:
.PHONY: bench bench-accuracy bench-full bench-mcu bench-peers clean demo lint test test-full tools venv

venv: $(INSTALLED)

# tensorrt-stubs asks for TensorRT itself, gigabytes that nothing here runs without a GPU: it comes alone.
# The build backend comes first and from the constraints too: with build isolation pip would take its newest
# release, and ask the registry again at every later install.
$(INSTALLED): pyproject.toml constraints.txt tools/repair_tensorrt_stubs.py
	@echo "Installing into .venv; this downloads PyTorch and other packages, once."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt hatchling
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[all,dev]'
	$(BIN)/pip install --quiet -c constraints.txt --no-deps tensorrt-stubs
	$(BIN)/python tools/repair_tensorrt_stubs.py
	@touch $@

# Only tests read the full Fashion-MNIST; without it they skip and say so.
$(FASHION_MNIST):
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  echo "Installing Debian's dataset-fashion-mnist."; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq --yes --no-install-recommends dataset-fashion-mnist > /dev/null; } \
	  || echo "It could not be installed: tests that need the full Fashion-MNIST will be skipped."; \
	else \
	  echo "Debian's package dataset-fashion-mnist is not installed: tests that need the full" \
	    "Fashion-MNIST will be skipped. To run them: sudo apt-get install dataset-fashion-mnist"; \
	fi

# What tests need: compilers and emulators for microcontroller and board code, an SSH server that stands for a device,
# a browser that opens the report and the camera demo, a database that workers of a search share. Without them those
# tests skip and say so.
TOOL_PACKAGES := gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user clang cmake openssh-server openssh-client chromium postgresql
TOOL_PROGRAMS := arm-none-eabi-gcc qemu-system-arm aarch64-linux-gnu-gcc qemu-aarch64 clang cmake /usr/sbin/sshd ssh chromium pg_createcluster

tools:
	@missing=""; for p in $(TOOL_PROGRAMS); do command -v $$p > /dev/null || missing="$$missing $$p"; done; \
	[ -f /usr/include/newlib/string.h ] || [ -f /usr/lib/arm-none-eabi/include/string.h ] || missing="$$missing newlib"; \
	[ -f /usr/aarch64-linux-gnu/include/string.h ] || missing="$$missing libc6-dev-arm64-cross"; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  echo "Installing Debian's $(TOOL_PACKAGES) (missing:$$missing)."; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq --yes --no-install-recommends $(TOOL_PACKAGES) > /dev/null; } \
	  || echo "They could not be installed: tests that need them will be skipped."; \
	else \
	  echo "Missing:$$missing. Tests that need them will be skipped." \
	    "To run them: sudo apt-get install $(TOOL_PACKAGES)"; \
	fi

DEMO := $(OUT)/demo
DEMO_EXPORT := --target tflite-int8 --target onnx --calibration fashion-mnist --out $(DEMO) --force

demo: venv
	$(BIN)/csr-export demos/models/fashion-resnet20.pt $(DEMO_EXPORT)
	$(BIN)/csr-export demos/models/fashion-resnet20-csr.pt $(DEMO_EXPORT)
	$(BIN)/csr-bench $(DEMO)/fashion-resnet20-tflite-int8 $(DEMO)/fashion-resnet20-csr-tflite-int8 \
	  $(DEMO)/fashion-resnet20-onnx $(DEMO)/fashion-resnet20-csr-onnx --data fashion-mnist

BENCH := $(OUT)/bench
BENCH_TARGETS := tflite-int8 onnx-int8
BENCH_NETWORKS := resnet56 resnet56-csr2

# The stock converters, in an environment of their own: their packages pin others than .venv has.
PEERS := .venv-peers
BENCH_LOWERING = $(BIN)/python tools/bench_lowering.py --out $(OUT)/bench-lowering $(if $(CIFAR10),--data "$(CIFAR10)")

bench: bench-accuracy tools
	@$(MAKE) --no-print-directory bench-peers || echo "No stock converters: their rows will say so."
	$(BENCH_LOWERING) --numbers int8 $(ARGS)

bench-full: bench
	$(BENCH_LOWERING) --threads 1 2 $(ARGS)

bench-peers: $(PEERS)/.installed

$(PEERS)/.installed: tools/peers/constraints.txt
	@echo "Installing the stock converters into $(PEERS): 2 GB, once."
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet -r tools/peers/constraints.txt
	@touch $@

bench-accuracy: venv
	@[ -n "$(CIFAR10)" ] || echo "No CIFAR-10, so no accuracy: make bench CIFAR10=<folder or zip file>."
	$(if $(CIFAR10),$(MAKE) --no-print-directory bench-cifar10)

.PHONY: bench-cifar10
bench-cifar10: venv
	for network in $(BENCH_NETWORKS); do \
	  $(BIN)/csr-export demos/models/$$network.pt $(addprefix --target ,$(BENCH_TARGETS)) \
	    --calibration "$(CIFAR10)" --out $(BENCH) --force || exit; \
	done
	$(BIN)/csr-bench $(foreach t,$(BENCH_TARGETS),$(foreach n,$(BENCH_NETWORKS),$(BENCH)/$(n)-$(t))) \
	  --data "$(CIFAR10)"

# BAKENN: the interpreter of an environment with the peer (pip install 'bakenn[tflite]'); without it its rows say so.
BAKENN ?=

bench-mcu: venv tools
	$(BIN)/python tools/bench_mcu.py --out $(OUT)/bench-mcu --json $(OUT)/bench-mcu.json \
	  $(if $(BAKENN),--bakenn-python $(BAKENN)) $(ARGS)

# A file's tests stay together, so that what they share is made once; a thread each, as the workers fill the cores.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: venv tools | $(FASHION_MNIST)
	$(PYTEST) $(ARGS)

test-full: venv tools | $(FASHION_MNIST)
	$(PYTEST) -m "" $(ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(OUT) dist build .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +
