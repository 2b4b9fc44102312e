#!/usr/bin/env bash
# Builds .venv from requirements.txt with whichever Python 3.10 this machine has.
set -euo pipefail
cd "$(dirname "$0")/.."

# Prints the path of the interpreter that a command starts, if that is Python 3.10.
python310() {
    "$1" -c 'import sys; sys.version_info[:2] == (3, 10) or sys.exit(1); print(sys.executable)' 2>/dev/null
}

find_python310() {
    python310 python3.10 && return
    python310 python3 && return
    # pyenv's commands work only where a version is chosen, so look at what is installed.
    local root
    root=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")}
    for candidate in "$root"/versions/3.10*/bin/python; do
        python310 "$candidate" && return
    done
    candidate=$(UV_PYTHON_DOWNLOADS=never uv python find 3.10 2>/dev/null) && python310 "$candidate" && return
    return 1
}

python=$(find_python310) || {
    echo "setup: no Python 3.10 found; TFX 1.16 needs it. Get it with one of: \`pyenv install 3.10\`, \`uv python install 3.10\`, \`apt install python3.10-venv\`" >&2
    exit 2
}

started=$SECONDS
echo "setup: building .venv with $("$python" --version), once; this takes a few minutes" >&2
"$python" -m venv --clear .venv
# uv installs several times faster than pip; its version and hashes come from the lock too.
awk '/^[^ ]/ {wanted = /^uv==/} wanted' requirements.txt > .venv/uv.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.txt
export VIRTUAL_ENV=$PWD/.venv
# Byte-compiled now, so that the first start of every command is not four times slower.
.venv/bin/uv pip install --quiet --require-hashes --compile-bytecode -r requirements.txt
.venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
touch .venv/.complete
echo "setup: done in $((SECONDS - started)) s" >&2
