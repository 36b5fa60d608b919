# Two commands: `make demo` and `make test`, on a GPU where there is one.
# They make .venv and install into it; `make test PYTHON=python3` uses that environment as it is and
# installs only this project into it.

ifdef PYTHON
python := $(PYTHON)
install := installed
else
python := .venv/bin/python
install := .venv/installed
endif

.PHONY: demo test lint installed clean

demo: $(install)
	$(python) -m tritonconv.nets train lenet

test: $(install)
	$(python) -m pytest

lint: $(install)
	$(python) -m ruff check .
	$(python) -m ruff format --check .

installed:
	$(python) -m pip install --quiet --no-deps --no-build-isolation --editable .

.venv/installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,test,bench]'
	touch $@

clean:
	rm -rf .venv runs build *.egg-info
