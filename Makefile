# make demo | test | slow | check | bench: each sets up its own .venv first and needs nothing but Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# one thread for each test process: the machine's cores are shared among them
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: demo test slow check format bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,onnx,vision,hf,report]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/prunus demo

test: $(VENV)/.installed
	$(PYTEST) -m "not slow"

slow: $(VENV)/.installed
	$(PYTEST) -m slow

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# every figure that the README states; each file in benchmarks/ also runs alone
bench: $(VENV)/.installed
	for file in benchmarks/[a-z]*.py; do $(BIN)/python "$$file" || exit 1; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -rf src/*.egg-info
