# Two commands: `make demo` and `make test`, on a GPU where there is one.
# They make .venv and install into it; `make test PYTHON=python3` uses that environment as it is and
# installs only this project into it; `make test TORCH=2.11.0` makes one of that torch, with the
# triton that torch asks for, and runs in it.

ifdef PYTHON
python := $(PYTHON)
install := installed
else ifdef TORCH
python := .venv-torch-$(TORCH)/bin/python
install := .venv-torch-$(TORCH)/installed
else
python := .venv/bin/python
install := .venv/installed
endif

# The interpreter multiplies small blocks, which waiting for a busy core slows down far more.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo test test-stub lint docs offline sweep installed clean

demo: $(install)
	$(python) -m tritonconv.nets train lenet

# In several processes where pytest-xdist is installed: a process a core, of about 1 GB, and on a GPU
# 0.5 GB there for its context. pytest-benchmark, which warns beside it, has nothing to do here.
test: $(install)
	$(python) -m pytest -p no:benchmark $$($(python) -c "import xdist" 2>/dev/null && \
		echo "-n auto --maxprocesses 16 --dist worksteal")

# What the host does for a GPU, on one that does nothing (tests/stub).
STUBBED := .venv-torch-2.11.0/bin/python
test-stub: .venv-torch-2.11.0/installed
	$(STUBBED) tests/stub/run.py $(STUBBED) -m pytest -p no:benchmark \
		tests/benchmarks/test_step.py $(addprefix tests/kernels/test_,$(addsuffix .py, \
		launch plan recall arguments dispatch_keys in_place)) \
		tests/nets/test_graph.py::test_a_step_waits_for_nothing

lint: $(install)
	$(python) -m ruff check .
	$(python) -m ruff format --check .

# docs/operators.md, from the tests that cover each operator.
docs: $(install)
	$(python) tests/operators_table.py > docs/operators.md

# What the compiler made of every kernel, without a GPU; TRITON=3.6.0 for another Triton.
ifdef TRITON
offline: .venv-triton-$(TRITON)/installed
	.venv-triton-$(TRITON)/bin/python tests/offline/check.py
else
offline: $(install)
	$(python) tests/offline/check.py
endif

# For a GPU machine: all there is to measure in so many seconds, into the folder $$OUT.
SECONDS ?= 540
sweep: $(install)
	$(python) -m benchmarks sweep --seconds $(SECONDS) --out "$${OUT:?names the folder for results}"

installed:
	$(python) -m pip install --quiet --no-deps --no-build-isolation --editable .

.venv/installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,test,bench]'
	touch $@

# What is pinned for another torch is left out; triton 3.6's interpreter takes no newer numpy.
.venv-torch-%/installed: pyproject.toml constraints.txt
	python3 -m venv $(@D)
	grep -vE '^(torch|triton|numpy|setuptools)=' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt \
		torch==$* 'numpy<2.4' --editable '.[demo,test,bench]'
	touch $@

# Triton alone, before everything else of .venv's: its release may not be the one torch asks for.
.venv-triton-%/installed: $(install)
	$(python) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps triton==$*
	$(python) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $(@D)/lib/$$(ls $(@D)/lib)/site-packages/others.pth
	touch $@

clean:
	rm -rf .venv .venv-torch-* .venv-triton-* runs build *.egg-info
