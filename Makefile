# `make` lists what there is to do. GNU make 3.81 is enough.

SHELL := /bin/bash
.DEFAULT_GOAL := help

GOLANGCI_LINT_VERSION := v2.15.0

# Linters of other versions find other things.
golangci_lint := .bin/golangci-lint-$(GOLANGCI_LINT_VERSION)
withpg := go run ./internal/dbtest/withpg

# The modules that are here, the library's first.
modules := $(patsubst %/go.mod,%,$(wildcard ./go.mod test/go.mod bench/go.mod))
go_files = find . -name node_modules -prune -o -name .git -prune -o -name .bin -prune -o -name '*.go' -print0

# Further flags for go test, as in: make test ARGS='-run TestClaim'
ARGS ?=

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## install what tests need beside Go, if it is missing
	@scripts/setup

.PHONY: test
test: setup ## run all tests of the library and of test/, with the race detector, on PostgreSQL and SQLite
	@$(withpg) -- scripts/test -race -timeout 20m $(ARGS)

.PHONY: short
short: setup ## run the library's tests without the race detector and without the long ones
	@$(withpg) -- scripts/test -m . -short -timeout 10m $(ARGS)

.PHONY: soak
soak: setup ## run all tests for long (DELIVERY_SOAK=1), with the race detector; up to 6 hours
	@DELIVERY_SOAK=1 $(withpg) -- scripts/test -race -count=1 -timeout 6h $(ARGS)

.PHONY: bench
bench: setup ## measure beside River, on a PostgreSQL with fsync; ARGS='-h' lists the flags
	@cd bench && go run . $(ARGS)

.PHONY: lint
lint: $(golangci_lint) ## check format, widths, go.mod, go vet and golangci-lint of every module
	@unformatted=$$($(go_files) | xargs -0 gofmt -s -l) || exit 1; \
	if [ -n "$$unformatted" ]; then echo 'not formatted (run make fmt):'; echo "$$unformatted"; exit 1; fi
	@scripts/width
	@$(golangci_lint) config verify
	@root=$$PWD; failed=; for m in $(modules); do \
		cd "$$root/$$m" || exit 1; \
		echo "==> lint $$m: go mod tidy -diff, go vet, golangci-lint"; \
		go mod tidy -diff || { echo "$$m/go.mod or go.sum is not tidy (run make tidy)"; failed="$$failed $$m:tidy"; }; \
		go vet ./... || failed="$$failed $$m:vet"; \
		"$$root/$(golangci_lint)" run --config "$$root/.golangci.yml" ./... || failed="$$failed $$m:golangci-lint"; \
	done; \
	if [ -n "$$failed" ]; then echo "make lint: FAILED:$$failed" >&2; exit 1; fi; \
	echo 'make lint: nothing found'

$(golangci_lint):
	@mkdir -p .bin
	@have=$$(command -v golangci-lint || echo "$$(go env GOPATH)/bin/golangci-lint"); \
	if "$$have" version 2>/dev/null | grep -q -F 'version $(patsubst v%,%,$(GOLANGCI_LINT_VERSION)) '; then \
		ln -sf "$$have" $@; \
	else \
		echo 'installing golangci-lint $(GOLANGCI_LINT_VERSION) into .bin, which takes some minutes'; \
		GOBIN="$$PWD/.bin" go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION) && \
		mv .bin/golangci-lint $@; \
	fi

.PHONY: fmt
fmt: ## format all Go files
	@$(go_files) | xargs -0 gofmt -s -w

.PHONY: tidy
tidy: ## tidy go.mod of every module
	@for m in $(modules); do (cd $$m && go mod tidy) || exit 1; done

.PHONY: quickstart
quickstart: ## run the README's first example, on SQLite
	@[ -d examples/quickstart ] || { echo 'make quickstart: the folder examples/quickstart is missing' >&2; exit 1; }
	@go run ./examples/quickstart
