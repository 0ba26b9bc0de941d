#!/usr/bin/env bash
# Prints, as the one line on stdout, the path of a Python that has the SDKs which
# test/e2e/python/requirements.txt pins, to be used as LATCHKEY_PYTHON. Installs
# them into bin/pip/sdks first where they are not there yet. Progress goes to
# stderr.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/hack/lib.sh"

folder=$root/bin/pip/sdks
wrapper=$root/bin/python
with_lock "$root/bin/pip/.sdks.lock"
pip_target "$folder" "$root/test/e2e/python/requirements.txt"

# The interpreter's own path rather than a version manager's shim, which would
# cost each start some 100 ms.
interpreter=$(python3 -c 'import sys; print(sys.executable)')
cat >"$wrapper.$$" <<EOF
#!/bin/sh
PYTHONPATH='$folder' PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 exec '$interpreter' "\$@"
EOF
chmod +x "$wrapper.$$"
mv -f "$wrapper.$$" "$wrapper"
say "openai and anthropic for $("$wrapper" --version) are in ${folder#"$root"/}"
printf '%s\n' "$wrapper"
