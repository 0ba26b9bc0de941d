#!/usr/bin/env bash
# Fetches the CRDs of Flux and Argo CD that config/gitops has samples for, and
# prints the folder that holds them as the one line on stdout. Progress goes to
# stderr.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/hack/lib.sh"

folder=$root/bin/gitops/crds
with_lock "$root/bin/gitops/.lock"
module_files "$folder" github.com/fluxcd/source-controller v1.9.6 config/crd/bases/source.toolkit.fluxcd.io_gitrepositories.yaml
module_files "$folder" github.com/fluxcd/kustomize-controller v1.9.6 config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml
module_files "$folder" github.com/argoproj/argo-cd/v3 v3.5.7 manifests/crds/application-crd.yaml
printf '%s\n' "$folder"
