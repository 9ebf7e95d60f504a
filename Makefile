# make demo | demo-page | test | docs | test-browser | test-integrations | test-hosts | test-lowest | sanitize | lint | format | clean.
# Needs Python 3.11 or newer and make; everything else goes into .venv, except for the native kernel: a C++ compiler, where
# there is one, compiles it into the cache of the user.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
LOWEST := .venv-lowest
INTEGRATIONS := .venv-integrations
BROWSER := .venv-browser
DOCS := .venv-docs
DEMO := runs/demo
# The package from npm that runs networks in the browser.
RUNTIME := onnxruntime-web-1.23.0
# Threads that wait asleep: on a busy machine spinning ones slow each other down many times over.
export OMP_WAIT_POLICY ?= passive
# Workers of the test run; each uses one thread.
JOBS ?= 2

# Minutes of random problems of `make sanitize`.
MINUTES ?= 1

.PHONY: demo demo-page test docs test-browser test-integrations test-hosts test-lowest sanitize lint format clean install native
.DEFAULT_GOAL := test

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"lambdanets needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	@echo "Installing into .venv (PyTorch is large: some minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

install: native

native: $(INSTALLED)
	@$(BIN)/lambdanets native || echo "Going on without the native kernel: the others compute the same results."

demo: native
	@rm -rf $(DEMO)
	@$(BIN)/lambdanets train digits --out $(DEMO)
	@$(BIN)/lambdanets eval $(DEMO)
	@$(BIN)/lambdanets predict $(DEMO) --samples 24 --out $(DEMO)/predictions.png
	@echo "Look at $(DEMO): curves.png, confusion.png, predictions.png, summary.txt"

test: native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# The oldest versions that pyproject.toml claims, in an environment of their own.
$(LOWEST)/.installed: pyproject.toml
	@echo "Installing the oldest supported versions into $(LOWEST) (some minutes) ..."
	@rm -rf $(LOWEST)
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--editable '.[detection,export,audio,bench]' --group test
	@touch $@

test-lowest: $(LOWEST)/.installed
	@$(LOWEST)/bin/lambdanets native || true
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(JOBS) --dist worksteal

# The pages' programs with libraries that the project does not install, and its loggers: in an environment of their own.
$(INTEGRATIONS)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(INTEGRATIONS) (some minutes) ..."
	@rm -rf $(INTEGRATIONS)
	@$(PYTHON) -m venv $(INTEGRATIONS)
	@$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[export,explain]' --group test --group integrations
	@touch $@

test-integrations: $(INTEGRATIONS)/.installed
	OMP_NUM_THREADS=1 $(INTEGRATIONS)/bin/python -m pytest tests/test_pages.py tests/train/test_loggers.py \
		tests/cli/test_explain.py

# The pages of `lambdanets explain` in headless Chromium. The program that drives it, playwright, is in a folder of its
# own, which is added to the environment for this target.
$(BROWSER)/.installed: pyproject.toml $(INSTALLED)
	@echo "Installing playwright into $(BROWSER) ..."
	@rm -rf $(BROWSER)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(BROWSER) --group browser
	@touch $@

test-browser:
	@command -v chromium > /dev/null || \
		{ echo "make test-browser needs Chromium: apt-get install chromium"; exit 1; }
	@$(MAKE) --no-print-directory $(BROWSER)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(BROWSER) $(BIN)/python -m pytest tests/explaining/in_browser.py
	@if command -v npm > /dev/null; then \
		$(MAKE) --no-print-directory demo-page && \
		OMP_NUM_THREADS=1 PYTHONPATH=$(BROWSER) $(BIN)/python -m pytest tests/demo/in_browser.py; \
	else echo "The demo page is not tested: it needs npm (apt-get install npm)"; fi

build/$(RUNTIME)/package.json:
	@command -v npm > /dev/null || { echo "make demo-page needs npm: apt-get install npm"; exit 1; }
	@mkdir -p build/$(RUNTIME)
	@cd build && npm pack --silent $(subst web-,web@,$(RUNTIME)) > /dev/null \
		|| { echo "make demo-page needs $(RUNTIME), which npm could not download: see above."; exit 1; }
	@tar -xzmf build/$(RUNTIME).tgz -C build/$(RUNTIME) --strip-components 1

# A static page that runs trained networks in the browser, in build/demo.
demo-page: $(INSTALLED) build/$(RUNTIME)/package.json
	@OMP_NUM_THREADS=1 $(BIN)/python docs/demo/build.py build/$(RUNTIME) build/demo
	@echo "Serve it: $(PYTHON) -m http.server --directory build/demo"

# Sphinx in an environment of its own, which sees the packages of .venv too.
$(DOCS)/.installed: $(INSTALLED)
	@echo "Installing Sphinx, Furo and MyST-NB into $(DOCS) ..."
	@rm -rf $(DOCS)
	@$(BIN)/python -m venv $(DOCS)
	@packages() { $$1 -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
		echo "import site; site.addsitedir('$$(packages $(BIN)/python)')" > $$(packages $(DOCS)/bin/python)/main.pth
	@{ $(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip \
		&& $(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group docs \
		&& $(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .; } \
		|| { echo "make docs needs Sphinx, Furo and MyST-NB (group docs of pyproject.toml), which pip could not install: see above."; exit 1; }
	@touch $@

# The site, in build/docs. The first build executes the tutorials; their outputs are cached in build/tutorials.
docs: native $(DOCS)/.installed
	@OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(DOCS)/bin:$$PATH" $(DOCS)/bin/python -m sphinx \
		--fail-on-warning --keep-going --fresh-env --quiet -c docs -d build/doctrees . build/docs
	@echo "Open build/docs/index.html"

# Two hosts, as network namespaces: needs root and ip (iproute2).
test-hosts: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/train/two_hosts.py

# The native kernel's tests and random problems under AddressSanitizer and UndefinedBehaviorSanitizer; needs g++.
sanitize: $(INSTALLED)
	$(BIN)/python tests/ops/sanitize.py --minutes $(MINUTES)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv $(LOWEST) $(INTEGRATIONS) $(BROWSER) $(DOCS) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
