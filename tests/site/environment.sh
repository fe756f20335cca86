#!/bin/sh
# What the site tests need beside the book: playwright in .venv, axe-core and MathJax from npm, a Chromium of the system.
set -eu
cd "$(dirname "$0")/../.."
if ! .venv/bin/python -m pip freeze --disable-pip-version-check 2>/dev/null | grep -qxFf tests/site/requirements.txt; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/site/requirements.txt
fi
cd tests/site
if ! [ -f node_modules/axe-core/axe.min.js ] || ! [ -d node_modules/mathjax/es5 ]; then
    command -v npm >/dev/null || { echo "The site tests need Node.js and npm (nodejs.org, or: sudo apt install npm)." >&2; exit 1; }
    npm install --silent --no-audit --no-fund --no-package-lock
fi
