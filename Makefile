# make demo: trains the default FlexTok in front of you; make test: the whole suite.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready
# a file at a time, as its tests share what they compile and train
SHARED := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test slow lint format
demo: $(READY)
	$(VENV)/bin/python -m nexttok.main --config=configs/flextok.py --workdir=runs/flextok

test: $(READY)
	$(VENV)/bin/python -m pytest $(SHARED) -m "not slow"

slow: $(READY)
	$(VENV)/bin/python -m pytest $(SHARED) -m slow

lint: $(READY)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/lint-imports

format: $(READY)
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

$(READY): requirements.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'nexttok needs Python 3.11 or newer'"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet -r requirements.txt
	touch $(READY)
