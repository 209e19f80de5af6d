#!/usr/bin/env bash
# The PostgreSQL adapter's tests on other versions of PostgreSQL. Off by default:
#
#   BRANCHLINE_TEST_POSTGRES_VERSIONS=/opt/postgresql-13:/opt/postgresql-18 tests/postgres_versions.sh
#
# Each folder has bin/initdb and bin/postgres, as an installation or an unpacked archive has them. Each server runs on a
# free port, in a folder that is removed.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${BRANCHLINE_TEST_POSTGRES_VERSIONS:-}" ]; then
  echo "skipped: BRANCHLINE_TEST_POSTGRES_VERSIONS names no installations"
  exit 0
fi

as_server() {
  if [ "$(id -u)" = 0 ]; then setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; else "$@"; fi
}

work=
server=
finish() {
  local status=$?
  if [ -n "$server" ]; then kill -INT "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
  if [ -n "$work" ]; then rm -rf "$work"; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

free_port() {
  local port
  while port=$((20000 + RANDOM % 12000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

IFS=: read -ra installations <<<"$BRANCHLINE_TEST_POSTGRES_VERSIONS"
for installation in "${installations[@]}"; do
  "$installation/bin/postgres" --version
  work=$(mktemp -d)
  chmod 777 "$work"
  port=$(free_port)
  echo branchline >"$work/password"
  as_server "$installation/bin/initdb" -D "$work/data" -U postgres -A scram-sha-256 --pwfile "$work/password" --no-sync --encoding UTF8 --locale C >"$work/log" 2>&1 \
    || { cat "$work/log" >&2; exit 1; }
  as_server "$installation/bin/postgres" -D "$work/data" -p "$port" -k "$work" -c listen_addresses=127.0.0.1 \
    -c max_connections=200 -c fsync=off -c log_min_messages=fatal </dev/null >>"$work/log" 2>&1 &
  server=$!
  for _ in $(seq 300); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
  done
  export BRANCHLINE_TEST_POSTGRES="postgres://postgres:branchline@127.0.0.1:$port/postgres"
  # A pg_dump does not read newer servers.
  cargo test --locked -p branchline-database --test postgres -- --skip the_schema_dump_is_the_same
  cargo test --locked -p branchline-database --test conformance -- postgres
  kill -INT "$server"
  wait "$server" || true
  server=
  rm -rf "$work"
done
