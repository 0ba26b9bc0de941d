# `make help` prints what there is. Needs Go, Python 3 with pip, bash and GNU make;
# everything else is built or installed into bin/.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

BIN := $(CURDIR)/bin
TOOLS := $(BIN)/tools
GO ?= go
# For builds, tests and linters alike, so that all of them share what is compiled.
export CGO_ENABLED ?= 0
export GOFLAGS := $(strip $(filter-out -trimpath,$(shell $(GO) env GOFLAGS)) -trimpath)
# go test's limit for one package, and further flags: make test TESTFLAGS='-run TestX'.
# -race wants CGO_ENABLED=1.
TEST_TIMEOUT ?= 30m
TESTFLAGS ?=
# The packages that test, test-unit and lint look at.
PACKAGES ?= ./...

MODULE := github.com/latchkey-dev/latchkey
COMMANDS := ./cmd/manager ./cmd/enforcer ./cmd/kubectl-latchkey ./test/provider/cmd/provider-sim
APPLY_DIR := api/v1alpha1/applyconfiguration
# All that `make generate` writes.
GENERATED := api/keyset/v1/keyset.pb.go api/usage/v1/usage.pb.go api/v1alpha1/zz_generated.deepcopy.go $(APPLY_DIR) config/crd/bases config/rbac/role.yaml docs/cli charts/latchkey/files charts/latchkey/dashboards charts/latchkey/README.md docs/api

##@ Running

.PHONY: help
help: ## Print this
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo

.PHONY: run
run: build ## Start everything on this machine, make a call that is allowed and one that is not, stay up until Ctrl-C (ONCE=1: exit instead)
	@assets=$$(hack/controlplane.sh); \
	envoy=$$(hack/envoy.sh); \
	$(GO) build -o $(BIN)/run ./hack/run; \
	KUBEBUILDER_ASSETS="$$assets" ENVOY="$$envoy" ONCE="$(ONCE)" exec $(BIN)/run

.PHONY: build
build: ## Build manager, enforcer, kubectl-latchkey and the simulated provider into bin/
	@echo "building $(notdir $(COMMANDS)) (the first time takes a minute or two)"
	@$(GO) build -o $(BIN)/ $(COMMANDS)

.PHONY: images
images: ## Build the images of manager and enforcer into bin/images, without Docker (TAG, PLATFORM=linux/amd64)
	@TAG="$(TAG)" PLATFORM="$(PLATFORM)" hack/images.sh $(BIN)/images

.PHONY: clean
clean: ## Remove bin/ and .run/: the next run or test builds the control plane again, some 5 minutes
	rm -rf bin .run

##@ Checking

.PHONY: test
test: build ## Run every test, also those with a real API server, Envoy and SDKs
	@assets=$$(hack/controlplane.sh); \
	envoy=$$(hack/envoy.sh); \
	python=$$(hack/python.sh); \
	helm=$$(hack/helm.sh); \
	gitops=$$(hack/gitops.sh); \
	gateways=$$(hack/gateways.sh); \
	prometheus=$$(hack/prometheus.sh); \
	echo "testing $(PACKAGES) with the control plane in $$assets, Envoy $$envoy and Python $$python"; \
	KUBEBUILDER_ASSETS="$$assets" ENVOY="$$envoy" LATCHKEY_PYTHON="$$python" LATCHKEY_HELM="$$helm" \
		LATCHKEY_GITOPS_CRDS="$$gitops" LATCHKEY_GATEWAY_CRDS="$$gateways" LATCHKEY_PROMETHEUS="$$prometheus" \
		$(GO) test -timeout $(TEST_TIMEOUT) $(TESTFLAGS) $(PACKAGES)

.PHONY: test-unit
test-unit: ## Run the tests that need neither an API server nor Envoy
	@$(GO) test -short $(TESTFLAGS) $(PACKAGES)

.PHONY: bench
bench: build ## Measure: time from apply to effect, controller throughput, cost of a change and of a decision (BENCHFLAGS)
	@assets=$$(hack/controlplane.sh); \
	envoy=$$(hack/envoy.sh); \
	KUBEBUILDER_ASSETS="$$assets" ENVOY="$$envoy" $(GO) run ./test/bench $(BENCHFLAGS)

.PHONY: lint
lint: $(TOOLS)/golangci-lint ## Run the linters, those for the Kubernetes types and the import rules included
	@$(TOOLS)/golangci-lint run $(PACKAGES)

.PHONY: check-generated
check-generated: ## Fail if generated files are not what `make generate` writes
	@hack/check-generated.sh $(GENERATED)

##@ Writing

.PHONY: generate
generate: $(TOOLS)/.generators ## Write generated code and manifests: protobuf, deepcopy, CRDs, apply configurations, RBAC, docs/cli
	@$(TOOLS)/protogen -I . api/keyset/v1/keyset.proto
	@$(TOOLS)/protogen -I . api/usage/v1/usage.proto
	@$(TOOLS)/controller-gen object paths=./api/v1alpha1
	@rm -rf config/crd/bases
	@$(TOOLS)/controller-gen crd paths=./api/v1alpha1 output:crd:dir=config/crd/bases
	@rm -rf $(APPLY_DIR)
	@$(TOOLS)/applyconfiguration-gen --go-header-file /dev/null \
		--output-dir $(APPLY_DIR) --output-pkg $(MODULE)/$(APPLY_DIR) $(MODULE)/api/v1alpha1
	@$(TOOLS)/controller-gen rbac:roleName=latchkey-manager paths=./controllers output:rbac:dir=config/rbac
	@hack/chart-files.sh
	@$(GO) run ./hack/dashboard charts/latchkey/dashboards/latchkey.json
	@$(MAKE) --no-print-directory docs

.PHONY: docs
docs: ## Write docs/cli, a page for each command of the plugin, and the generated part of docs/api
	@$(GO) run ./hack/apidocs config/crd/bases api/v1alpha1/conditions.go docs/api
	@$(GO) run ./cmd/kubectl-latchkey gen-docs docs/cli

.PHONY: fmt
fmt: $(TOOLS)/golangci-lint ## Format the Go code
	@$(TOOLS)/golangci-lint fmt

.PHONY: tools
tools: $(TOOLS)/.generators $(TOOLS)/golangci-lint ## Build the generators and linters into bin/tools/

# The generators are the tools that hack/tools/go.mod lists.
$(TOOLS)/.generators: hack/tools/go.mod hack/tools/go.sum hack/tools/protogen/main.go
	@echo "building the generators (the first time takes about a minute)"
	@mkdir -p $(TOOLS)
	@cd hack/tools && GOWORK=off $(GO) build -buildvcs=false -ldflags='-s -w' -o $(TOOLS)/ tool
	@touch $@

$(TOOLS)/golangci-lint: hack/tools/golangci/go.mod hack/tools/golangci/go.sum hack/tools/golangci/main.go
	@echo "building golangci-lint with kube-api-linter (the first time takes a few minutes)"
	@mkdir -p $(TOOLS)
	@cd hack/tools/golangci && GOWORK=off $(GO) build -buildvcs=false -ldflags='-s -w' -o $@ .
	@touch $@
