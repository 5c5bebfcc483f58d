# Everything is set up by itself, in .venv; it takes Python 3.10-3.13, git and make.
PYTHON ?= python3
BIN := .venv/bin

# The engine of a rehearsal is installed with uv, which does not read pip's configuration: it is told what pip has.
demo prove serve truss clients e2e gpu docs-site: export UV_DEFAULT_INDEX ?= $(or $(PIP_INDEX_URL),$(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null))
demo prove serve truss clients e2e gpu docs-site: export UV_FIND_LINKS ?= $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))

.PHONY: demo test check prove e2e serve truss clients gpu docs docs-site render clean

demo: .venv/demo  ## the script of pixtral.yaml on this machine, asked about two pictures
	$(BIN)/pixtral-sky rehearse

# Bytecode is written, whatever the shell says: the tests start Python often, and pytest rewrites their asserts.
export PYTHONDONTWRITEBYTECODE =

test: .venv/dev  ## the fast tests
	$(BIN)/pytest --ignore-glob='tests/real/*/*' -n 2 --dist loadfile -m "not engine and not install and not e2e and not serve and not truss and not clients"

check: .venv/dev  ## lint, types, and what is rendered or drawn against what it is made from
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/arrows.py
	$(BIN)/python tools/render.py --check
	$(BIN)/python tools/autoscaling.py --check
	$(BIN)/python tools/capacity.py --check
	$(BIN)/python tools/gpus.py --check
	$(BIN)/python tools/reference.py --check
	$(BIN)/python tools/prices.py --check
	$(MAKE) docs-site

prove: .venv/dev  ## the tests on the real vLLM, whose engine is made in .cache; the README's way to a cloud
	XDG_CACHE_HOME=$(CURDIR)/.cache $(BIN)/pytest -m "(engine and not serve) or install"

e2e: .venv/dev  ## the real SkyPilot launches pixtral.yaml on a real Slurm here; as root, on Debian, whose packages it installs
	bash tests/real/slurm/install.sh
	XDG_CACHE_HOME=$(CURDIR)/.cache $(BIN)/pytest -m e2e

serve: .venv/dev  ## SkyServe's real balancer and controller on service.yaml: replicas die, and the client is watched
	XDG_CACHE_HOME=$(CURDIR)/.cache $(BIN)/pytest -m serve

truss: .venv/dev  ## the real Truss and its proxy before the real vLLM, on examples/truss; as root, on Debian
	XDG_CACHE_HOME=$(CURDIR)/.cache bash tests/real/truss/install.sh
	XDG_CACHE_HOME=$(CURDIR)/.cache $(BIN)/pytest -m truss tests/real/truss

clients: .venv/dev  ## the clients of docs/guides/clients.md, the page of `chat` and Prometheus before a rehearsal (all: ALL=1); as root, on Debian
	XDG_CACHE_HOME=$(CURDIR)/.cache ALL=$(ALL) bash tests/real/clients/install.sh
	$(BIN)/pip install --quiet --group browser
	XDG_CACHE_HOME=$(CURDIR)/.cache ALL=$(ALL) $(BIN)/pytest -m clients tests/real/clients

gpu: .venv/demo  ## the script of pixtral.yaml on this machine's GPUs, with random weights of full size: does it start and fit?
	$(BIN)/python -m benchmarks.gpu

docs: .venv/dev  ## draw and measure again what docs/ shows
	$(BIN)/python tools/autoscaling.py
	$(BIN)/python tools/capacity.py
	$(BIN)/python tools/gpus.py
	$(BIN)/python tools/reference.py
	$(BIN)/python -m benchmarks.balancer --write
	$(BIN)/python -m benchmarks.batch --write
	$(BIN)/python -m benchmarks.images --write
	$(BIN)/python -m benchmarks.client --write

docs-site: .venv/dev  ## docs/ and the README as pages, in site/; a broken link, a broken anchor or a forgotten page fails
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

render:  ## write pixtral.yaml, service.yaml and the files of examples/ that come from templates/
	$(PYTHON) tools/render.py

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --editable ".[rehearse]"
	@touch $@

.venv/dev: .venv/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"  # the first that knows dependency groups
	$(BIN)/pip install --quiet --editable ".[rehearse,heic,slurm]" --group dev
	@touch $@

clean:
	rm -rf .venv .*_cache dist site
