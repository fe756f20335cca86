# Neural Collapse, Executed. `make book` and `make test` do all of their own set-up in .venv.
.DEFAULT_GOAL := help
.PHONY: help environment book test serve notebooks lint picture site-test seeds bench clean

PORT ?= 8000
SEEDS ?= 20
export JUPYTER_PLATFORM_DIRS := 1
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONUNBUFFERED := 1

RUN := . .venv/bin/activate &&
CODE := ncbook book/_tools tests

help:
	@echo "make book                 run every page, check every claim, build the site into _build/html"
	@echo "make test                 tests, linters, type checker, and every notebook under nbval"
	@echo "make serve                serve the built site at http://localhost:$(PORT)"
	@echo "make notebooks            write the Colab notebooks anew after a change of the text"
	@echo "make picture              draw the README's picture anew"
	@echo "make seeds CHAPTER=03     run a chapter with twenty seeds, record the least margin of each claim"
	@echo "make site-test            look at the built site in Chromium (needs Chromium and npm)"
	@echo "make bench                measure the speed goals"
	@echo "make clean                remove the environment and everything built"

environment:
	@./book/_tools/environment.sh

book: environment
	@$(RUN) python book/_tools/build.py

lint: environment
	@$(RUN) ruff format --check $(CODE)
	@$(RUN) ruff check $(CODE)
	@$(RUN) mypy

test: lint
	@$(RUN) OMP_NUM_THREADS=1 pytest --quiet -n 2 --dist worksteal --doctest-modules ncbook tests/library tests/book
	@$(RUN) OMP_NUM_THREADS=1 pytest --quiet -n 2 --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout 300 book

serve:
	@test -f _build/html/index.html || { echo "There is no site yet: run 'make book' first." >&2; exit 1; }
	@echo "http://localhost:$(PORT)  (Ctrl-C stops)"
	@$(RUN) python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

notebooks: environment
	@$(RUN) python book/_tools/notebooks.py

picture: environment
	@$(RUN) python book/_tools/picture.py

seeds: environment
	@test -n "$(CHAPTER)" || { echo "Say which chapter: make seeds CHAPTER=03" >&2; exit 1; }
	@$(RUN) python book/_tools/seeds.py $(CHAPTER) $(SEEDS)

site-test: environment
	@./tests/site/environment.sh
	@$(RUN) pytest --quiet -n 2 --dist worksteal tests/site

bench: environment
	@$(RUN) pytest --quiet tests/bench

clean:
	rm -rf .venv _build tests/site/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
