#!/usr/bin/env bash
# A Django project migrates at the head while branches write (bench/django.py). It takes minutes and installs from PyPI, so
# that it runs only where it is asked for: BRANCHLINE_TEST_DJANGO=1 ./test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${BRANCHLINE_TEST_DJANGO:-}" ]; then
  echo "left out; BRANCHLINE_TEST_DJANGO=1 runs it"
  exit 0
fi
cargo build -q --locked -p branchline
exec python3 bench/django.py --binary "${CARGO_TARGET_DIR:-target}/debug/branchline"
