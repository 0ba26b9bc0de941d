#!/usr/bin/env bash
# Copies into the chart what it installs besides its own templates, and writes its README, so that neither differs from what `config` and
# values.yaml say.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
files=charts/latchkey/files
rm -rf "$files"
mkdir -p "$files/crds" "$files/guard"
cp config/crd/bases/*.yaml "$files/crds/"
cp config/rbac/role.yaml config/rbac/leader_election_role.yaml config/rbac/user_roles.yaml "$files/"
cp config/guard/apikeys.yaml config/guard/applications.yaml "$files/guard/"
cp config/guard/secrets/policy.yaml "$files/guard/secrets.yaml"
"${GO:-go}" run ./hack/chartdocs charts/latchkey
