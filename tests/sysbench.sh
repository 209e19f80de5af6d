#!/usr/bin/env bash
# sysbench works at a MariaDB branch while the line, and then the branch's process, are out (bench/sysbench.py). It takes
# minutes and needs Debian's sysbench, so that it runs only where it is asked for: BRANCHLINE_TEST_SYSBENCH=1 ./test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${BRANCHLINE_TEST_SYSBENCH:-}" ]; then
  echo "left out; BRANCHLINE_TEST_SYSBENCH=1 runs it"
  exit 0
fi
command -v sysbench >/dev/null || { echo "sysbench is missing (Debian: sysbench)" >&2; exit 1; }
cargo build -q --locked -p branchline
exec python3 bench/sysbench.py --seconds "${BRANCHLINE_SYSBENCH_SECONDS:-10}" --binary "${CARGO_TARGET_DIR:-target}/debug/branchline"
