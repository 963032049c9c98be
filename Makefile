# What there is to do in this repository. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
TEST_FLAGS ?=
CHAOS_FLAGS ?=
BENCH_FLAGS ?=
PACKAGES ?= ./schema ./internal/seal ./internal/idp/...
BASE ?=
REALIDP_FLAGS ?=

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: export CI = true
test: ## Check everything: installs what is missing, then lint, fuzz smoke, all tests with -race
	@scripts/setup.sh
	@scripts/lint.sh
	@scripts/fuzz.sh 5000
	@scripts/test.sh $(TEST_FLAGS)

lint: ## Check format, go vet, staticcheck and errcheck, and that everything builds
	@scripts/setup.sh
	@scripts/lint.sh

fuzz: ## Run every fuzz target with 300,000 inputs
	@scripts/fuzz.sh 300000

chaos: ## Kill, stall, cut off and restart everything for 20 minutes, and count what must not happen
	@scripts/setup.sh
	@go run ./cmd/chaos $(CHAOS_FLAGS)

bench: ## Measure renewd against a loop over a table, River and the limits of HTTP, store and stream; takes 40 minutes
	@scripts/setup.sh
	@cd bench && go run . $(BENCH_FLAGS)

microbench: ## Run the benchmarks of the packages and sum them up; BASE=FILE compares with a run of before
	@scripts/microbench.sh '$(PACKAGES)' '$(BASE)'

vuln: ## Look whether renewd calls something that is known as vulnerable
	@scripts/vuln.sh ./...

# Without cgo Dex comes without its driver for sqlite, whose C code would take minutes to build.
realidp: export CGO_ENABLED = 0
realidp: ## Run renewd against Dex, zitadel's server and, where they are installed, Glewlwyd and Hydra; takes minutes
	@scripts/setup.sh
	@scripts/lint.sh internal/e2e/realidp
	@cd internal/e2e/realidp && go test -vet=off -timeout 15m -parallel 16 $(REALIDP_FLAGS) .

build: ## Build a static ./renewd
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o renewd ./cmd/renewd

image: ## Build the container image renewd:<version>
	docker build --build-arg VERSION='$(VERSION)' --tag 'renewd:$(VERSION)' .

pin: ## Write the digests of the images into Dockerfile and docker-compose.yml
	@scripts/pin-images.sh

release: ## Build the archives of a release into dist, each binary twice; needs VERSION=v1.2.3
	@scripts/release.sh '$(VERSION)' dist

fmt: ## Format the code
	gofmt -w .

.PHONY: help test lint fuzz chaos bench microbench vuln realidp build image pin release fmt
