#!/usr/bin/env bash
# The one gate, for people and for CI: format, lints, all tests, on real servers started for the run.
#
#   ./test.sh         everything
#   ./test.sh quick   format, lints, every crate's unit tests, and the simulator in memory: no servers
#
# BRANCHLINE_TEST_SYSBENCH=1 adds sysbench at a MariaDB branch during outages (bench/sysbench.py; minutes).
# BRANCHLINE_TEST_DJANGO=1 adds a Django project that migrates while branches write (bench/django.py; minutes).
#
# Needs Rust with rustfmt and clippy. Missing system packages are installed with apt-get, as root or by `sudo -n`. Servers run in folders below target/servers and end with this
# script, however it ends. To use running servers instead, set BRANCHLINE_TEST_POSTGRES and
# BRANCHLINE_TEST_MYSQL (a super-user's URL each), and BRANCHLINE_TEST_AMQP (an administrator's URL) with BRANCHLINE_TEST_AMQP_CTL (a rabbitmqctl for it).
set -euo pipefail
cd "$(dirname "$0")"
exec </dev/null

mode=${1:-all}
case $mode in
  all|quick) ;;
  *) echo "usage: ./test.sh [quick]" >&2; exit 2 ;;
esac

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}
started_all=$SECONDS
current=start
step() {
  local began=$SECONDS
  current=$1
  shift
  echo "==> $current"
  "$@"
  echo "==> $current: $((SECONDS - began)) s"
}

servers_pid=
guard=
skipped=
finish() {
  local status=$?
  # The servers live as long as this pipe is open.
  exec 9>&-
  if [ -n "$servers_pid" ]; then wait "$servers_pid" || true; fi
  if [ -n "$guard" ]; then as_root rm -f "$guard"; fi
  if [ -n "$skipped" ]; then rm -f "$skipped"; fi
  if [ "$status" != 0 ]; then echo "==> FAILED in: $current, after $((SECONDS - started_all)) s" >&2; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Installs packages without starting the services that they bring: a machine's own servers are not ours to touch.
install_packages() {
  local policy=/usr/sbin/policy-rc.d status=0
  command -v apt-get >/dev/null || { echo "missing: $*; install them by hand, there is no apt-get here" >&2; return 1; }
  if [ ! -e "$policy" ]; then
    guard=$policy
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$guard" >/dev/null
    as_root chmod 755 "$guard"
  fi
  { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" \
    || { as_root apt-get update -q \
      && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; }; } || status=$?
  if [ -n "$guard" ]; then as_root rm -f "$guard"; fi
  guard=
  return "$status"
}

packages() {
  local missing=()
  command -v cc >/dev/null || missing+=(gcc libc6-dev)
  command -v pkg-config >/dev/null || missing+=(pkg-config)
  if [ "$mode" = all ]; then
    if [ -z "${BRANCHLINE_TEST_POSTGRES:-}" ] && ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
      missing+=(postgresql)
    fi
    command -v psql >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/psql' >/dev/null || missing+=(postgresql-client)
    if [ -z "${BRANCHLINE_TEST_MYSQL:-}" ] && [ ! -x /usr/sbin/mariadbd ] && ! command -v mariadbd >/dev/null; then
      missing+=(mariadb-server)
    fi
    command -v mariadb >/dev/null || missing+=(mariadb-client)
    if [ -z "${BRANCHLINE_TEST_AMQP:-}" ] && [ ! -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then
      missing+=(rabbitmq-server)
    fi
    [ -z "${BRANCHLINE_TEST_SYSBENCH:-}" ] || command -v sysbench >/dev/null || missing+=(sysbench)
    command -v sqlite3 >/dev/null || missing+=(sqlite3)
    command -v curl >/dev/null || missing+=(curl ca-certificates)
  fi
  if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi
}

toolchain() {
  if ! command -v cargo >/dev/null && [ -r "$HOME/.cargo/env" ]; then . "$HOME/.cargo/env"; fi
  command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.90 or later from https://rustup.rs" >&2; return 1; }
  local part
  for part in fmt clippy; do
    cargo "$part" --version >/dev/null 2>&1 || { echo "cargo $part is missing: rustup component add rustfmt clippy" >&2; return 1; }
  done
  cargo --version
}

# Runs a command without the servers' pipe, so that nothing it leaves behind keeps the servers alive.
with_servers() {
  "$@" 9>&-
}

start_servers() {
  cargo build -q --locked -p branchline-testkit --bin test_servers
  local target work
  target=${CARGO_TARGET_DIR:-target}
  mkdir -p "$target/servers"
  work=$(mktemp -d "$target/servers/run-XXXXXX")
  mkfifo "$work/pipe"
  "$target/debug/test_servers" <"$work/pipe" >"$work/environment" &
  servers_pid=$!
  exec 9>"$work/pipe"
  until grep -q '^# ready' "$work/environment"; do
    kill -0 "$servers_pid" 2>/dev/null || { echo "the servers did not start" >&2; return 1; }
    sleep 0.2
  done
  . "$work/environment"
  rm -rf "$work"
}

other_scripts() {
  local script
  for script in tests/*.sh; do
    [ -e "$script" ] || continue
    step "$script" with_servers bash "$script"
  done
}

step "system packages" packages
step "toolchain" toolchain
step "format" cargo fmt --all --check
step "lints" cargo clippy -q --workspace --all-targets --locked -- -D warnings
if [ "$mode" = quick ]; then
  step "unit tests" cargo test -q --locked --workspace --lib --bins
  step "simulation" cargo test -q --locked --workspace --test simulation companies_in_memory
else
  step "servers" start_servers
  skipped=$(mktemp)
  export BRANCHLINE_TEST_SKIPPED=$skipped
  step "tests" with_servers cargo test --workspace --locked
  other_scripts
fi
if [ -s "$skipped" ]; then
  echo "==> SKIPPED, since this machine does not allow it:"
  sort -u "$skipped" | sed 's/^/      /'
fi
echo "==> all good: $mode in $((SECONDS - started_all)) s"
