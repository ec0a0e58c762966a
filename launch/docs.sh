#!/usr/bin/env bash
# Builds the documentation into site/. A broken link or an unknown name of the API is an error.
# Usage: launch/docs.sh [serve]. `serve` shows the pages on http://127.0.0.1:8000 and builds them again at each change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export NO_MKDOCS_2_WARNING=1 # a notice of the theme about its successor; no page depends on it
mkdocs=("${ASTRO_VENV:-.venv}/bin/python" -m mkdocs)
case "${1:-build}" in
    build) exec "${mkdocs[@]}" build --strict --quiet ;;
    serve) exec "${mkdocs[@]}" serve --strict ;;
    *) echo "Usage: launch/docs.sh [serve]" >&2; exit 2 ;;
esac
