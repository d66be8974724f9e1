# Everything runs in .venv, made here on first use. Needs Python 3.11 or newer, and make.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint talk readme bench bench-all logits servers clean

demo: $(READY)
	@echo "== myna: learning noisy parity with 64 bits by asking =="
	@$(BIN)/myna demo --out demo-out

test: $(READY)
	@echo "== myna: tests, with array shapes enforced =="
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal
	@echo "== all tests passed; try next: make demo, or .venv/bin/myna --help =="

lint: $(READY)
	@echo "== ruff, pyright, import-linter =="
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

# Every command of docs/talk.md; what they print is kept in docs/talk-output.md.
talk: $(READY)
	@echo "== myna: the talk, topic by topic =="
	@$(BIN)/python tools/talk.py

# Every command of README.md's use cases; what they print is written below them.
readme: $(READY)
	@echo "== myna: the use cases of README.md =="
	@$(BIN)/python tools/readme.py

# The benchmarks that take minutes (20 in all, on 2 cores), and the pictures of all kept results.
bench: $(READY)
	@echo "== myna: benchmarks that take minutes; results in bench/results =="
	@$(BIN)/python tools/bench.py minutes

# The others, but those that need an environment of their own (bench/README.md): most of a day.
bench-all: bench logits
	@echo "== myna: benchmarks that take hours; results in bench/results =="
	@$(BIN)/python tools/bench.py hours

# Every figure of logit space (docs/spectrum.md, biased-apis.md, lingen.md, copytest.md, logit-learners.md): hours.
logits: $(READY)
	@echo "== myna: logit space; results in bench/results =="
	@set -e; for part in exact size ranks samples; do $(BIN)/python bench/logit_learners.py $$part; done
	@$(BIN)/python bench/logit_noise.py
	@$(BIN)/python bench/hidden_width.py
	@$(BIN)/python bench/copytest.py
	@set -e; for part in speed spectra centred; do $(BIN)/python bench/spectrum.py $$part; done
	@set -e; for name in stories260k "stories260k --openings" "stories260k --nonsense" charrnn-shakespeare \
		charrnn-darwin bundled; do $(BIN)/python bench/lingen.py $$name; done
	@$(BIN)/python bench/lingen_likely.py
	@$(BIN)/python bench/lingen_samples.py
	@$(BIN)/python bench/history_embeddings.py
	@set -e; for seed in 0 1 2; do \
		$(BIN)/python bench/text_students.py charrnn-shakespeare --part ours --seed $$seed; done
	@$(BIN)/python bench/text_students.py charrnn-shakespeare --part ngrams --seed 0
	@$(BIN)/python bench/text_students.py charrnn-shakespeare --part probabilities --part speed --seed 0
	@$(BIN)/python bench/text_students.py charrnn-shakespeare --part lstm --epochs 20 --seed 0
	@set -e; for states in 128 256; do $(BIN)/python bench/text_students.py charrnn-shakespeare \
		--part hidden-markov --dimension $$states --seed 0; done
	@$(BIN)/python bench/text_students.py charrnn-shakespeare --part ours --start random --epochs 20 --seed 0
	@set -e; for part in ours ngrams hidden-markov speed; do \
		$(BIN)/python bench/text_students.py stories260k --part $$part --seed 0; done
	@$(BIN)/python bench/text_students.py --picture

# Three servers of language models, each in an environment of its own (about 4 GB, half an hour
# or more: llama.cpp is compiled), then asked side by side. Not part of the tests.
servers: $(READY)
	@echo "== myna: real servers beside transformers; results in bench/results/servers.json =="
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[transformers,http]"
	@PYTHON=$(PYTHON) tools/servers/install.sh
	@$(BIN)/python bench/servers.py
	@test ! -d src/myna/data/bundled || $(BIN)/python bench/servers.py --model src/myna/data/bundled --result servers_bundled
	@test ! -e .venv-servers/harness/.ready || .venv-servers/harness/bin/python bench/harness.py

clean:
	rm -rf .venv demo-out

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "myna needs Python 3.11 or newer on the PATH"; exit 2; }
	@echo "== myna: setting up .venv (once; a few minutes) =="
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $(READY)
