# Two commands do everything on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test smoke lint docs notebooks zoo benchmark clean

demo: .venv/installed
	$(BIN)/tightrope demo

test: export OMP_WAIT_POLICY ?= PASSIVE
test: export OMP_NUM_THREADS ?= 1
test: lint docs
	$(BIN)/python -m pytest -q --numprocesses 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation, as files in build/site that fetch nothing from anywhere. Every warning is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open build/site/index.html, or: $(BIN)/python -m http.server --directory build/site"

# The outputs that the notebooks keep, made anew.
notebooks: .venv/installed
	$(BIN)/python -m docs.generate.notebooks

# The experiment at reduced settings: does every kind of cell train, certify and compare? About a minute.
smoke: .venv/installed
	rm -rf .venv/smoke
	$(BIN)/tightrope experiment paradox --size digits --smoke --out .venv/smoke

# Add a finished and completely certified run to the zoo: make zoo RUN=runs/... NAME=...
zoo: .venv/installed
	$(BIN)/python -m tools.zoo $(RUN) $(NAME)

benchmark: .venv/installed
	$(BIN)/python -m benchmarks all

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tightrope needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist demo
