#!/bin/sh
# Make or update the local environment .venv from requirements.txt. Does nothing when it is up to date.
#   PYTHON=/path/to/python   which Python to use (3.11, 3.12 or 3.13); found by itself when unset
#   TORCH_INDEX_URL=...      an index to take torch from, e.g. PyTorch's CPU-only one
set -eu
cd "$(dirname "$0")/../.."

suitable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }
digest() { cat requirements.txt pyproject.toml | cksum; echo "${TORCH_INDEX_URL:-}"; pwd; }

if [ -f .venv/ready ] && [ "$(cat .venv/ready)" = "$(digest)" ]; then exit 0; fi

found=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if suitable "$candidate"; then found=$candidate; break; fi
done
if [ -z "$found" ]; then
    echo "This book needs Python 3.11, 3.12 or 3.13; ${PYTHON:-python3} is $(${PYTHON:-python3} --version 2>&1 || echo 'not there')." >&2
    echo "Install one of them (python.org, apt, brew, pyenv, conda or uv), then: make book PYTHON=/path/to/python3.12" >&2
    exit 1
fi

if ! [ -x .venv/bin/python ] || ! suitable .venv/bin/python; then
    echo "Making .venv with $("$found" --version) ..."
    rm -rf .venv
    if ! "$found" -m venv .venv; then
        rm -rf .venv
        echo "Python could not make a virtual environment. On Debian or Ubuntu: sudo apt install python3-venv" >&2
        exit 1
    fi
fi
rm -f .venv/ready
echo "Installing requirements.txt into .venv (the first time takes some minutes) ..."
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
if [ -n "${TORCH_INDEX_URL:-}" ]; then
    pip install --quiet --index-url "$TORCH_INDEX_URL" "$(grep '^torch==' requirements.txt)"
fi
pip install --quiet -r requirements.txt
pip install --quiet --no-deps --no-build-isolation --editable .
digest >.venv/ready
