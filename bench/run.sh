#!/usr/bin/env bash
# Measures Branchline beside PostgreSQL's own logical replication, on servers started for the run.
#
#   bench/run.sh                     everything, about half an hour
#   bench/run.sh catch-up latency    only these cells (catch-up, latency, capture, maria-db, crowd, storm, adapter, broker)
#   bench/run.sh --help              rows, repetitions, ...
#
# Needs PostgreSQL's server, client and pgbench, RabbitMQ and MariaDB (Debian: postgresql rabbitmq-server mariadb-server).
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build -q --release --locked -p branchline -p branchline-bench
exec "${CARGO_TARGET_DIR:-target}/release/bench" --branchline "${CARGO_TARGET_DIR:-target}/release/branchline" "$@"
