#!/usr/bin/env python3
"""sysbench works at a MariaDB branch while the line to its head, and then the branch's own process, are out.

The head is on PostgreSQL (or, with `--head mariadb`, on MariaDB); sysbench makes its tables there, the branch joins and gets
them. `oltp_read_write` then runs at the branch four times: with both offices up, with the head's process stopped in the
middle, with the branch's stopped in the middle, and with both up again; each time in turn with the same load on a bare
database of the same server. In the end `verify` must find the offices equal, and so must a plain comparison of every row.

    BRANCHLINE_TEST_POSTGRES=postgres://... BRANCHLINE_TEST_MYSQL=mysql://... bench/sysbench.py [--binary target/debug/branchline]

The two addresses are those of super-users (as `./test.sh` exports them). `tests/sysbench.sh` runs this for the gate where
BRANCHLINE_TEST_SYSBENCH is set. Needs Debian's `sysbench`.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from offices import Office, are_even, free_port, say, stop_all, verify, wait

ROOT = Path(__file__).resolve().parent.parent


class Server:
    """A database of a server, by its URL."""

    def __init__(self, url):
        self.url, self.parts = url, urlsplit(url)
        self.is_maria = url.startswith("mysql:")
        self.name = self.parts.path[1:]
        self.user, self.password = unquote(self.parts.username or ""), unquote(self.parts.password or "")

    def fresh(self, name):
        self.sql(f"CREATE DATABASE {name}")
        return Server(f"{self.url.rsplit('/', 1)[0]}/{name}")

    def sql(self, statement):
        if self.is_maria:
            words = ["mariadb", "--no-defaults", "--protocol=tcp", f"--host={self.parts.hostname}", f"--port={self.parts.port}",
                     f"--user={self.user}", "--batch", "--raw", "--skip-column-names", "-e", statement, self.name]
            environment = {**os.environ, "MYSQL_PWD": self.password}
        else:
            words = ["psql", "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-c", statement]
            environment = os.environ
        ran = subprocess.run(words, capture_output=True, text=True, env=environment)
        if ran.returncode:
            sys.exit(f"{statement}: {ran.stderr}")
        return ran.stdout

    def sysbench(self, given, verb, *more):
        driver = "mysql" if self.is_maria else "pgsql"
        return [
            "sysbench", f"--db-driver={driver}", f"--{driver}-host={self.parts.hostname}", f"--{driver}-port={self.parts.port}",
            f"--{driver}-user={self.user}", f"--{driver}-password={self.password}", f"--{driver}-db={self.name}",
            f"--tables={given.tables}", f"--table-size={given.rows}", "oltp_read_write", *more, verb,
        ]

    def load(self, given):
        """Transactions a second of `oltp_read_write`, over its whole time."""
        more = [f"--threads={given.threads}", f"--time={given.seconds}", "--mysql-ignore-errors=1213,1205,1020"]
        ran = subprocess.run(self.sysbench(given, "run", *more), capture_output=True, text=True)
        rate = re.search(r"transactions:\s+\d+\s+\(([\d.]+) per sec", ran.stdout)
        if ran.returncode or not rate:
            sys.exit(f"sysbench: {ran.stdout}{ran.stderr}")
        slowest = re.search(r"max:\s+([\d.]+)", ran.stdout)
        late = re.search(r"95th percentile:\s+([\d.]+)", ran.stdout)
        return float(rate[1]), float(late[1]), float(slowest[1])

    def content(self, table):
        # Blanks at the end are no part of a CHAR, on any engine.
        return self.sql(f"SELECT id, k, rtrim(c), rtrim(pad) FROM {table} ORDER BY id")


def prepare(server, given):
    ran = subprocess.run(server.sysbench(given, "prepare"), capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"sysbench: {ran.stdout}{ran.stderr}")


def outage(office, given):
    """Takes the office's process away for the middle half of the load."""

    def away():
        time.sleep(given.seconds / 4)
        office.stop()
        time.sleep(given.seconds / 2)
        office.run()

    thread = threading.Thread(target=away)
    thread.start()
    return thread


def main(given):
    folder = Path(tempfile.mkdtemp(prefix="sysbench-", dir=ROOT / "target"))
    name = f"sysbench_{os.getpid()}"
    postgres, maria = Server(os.environ["BRANCHLINE_TEST_POSTGRES"]), Server(os.environ["BRANCHLINE_TEST_MYSQL"])
    at_head = (maria if given.head == "mariadb" else postgres).fresh(f"{name}_head")
    at_branch, bare = maria.fresh(f"{name}_branch"), maria.fresh(f"{name}_bare")
    prepare(at_head, given)
    prepare(bare, given)
    binary = given.binary.resolve()
    head = Office(folder, "HO", at_head.url, binary)
    branch = Office(folder, "branch", at_branch.url, binary)
    head.command("init", "--name", "HO", "--database", at_head.url, "--tables", "*", "--listen", f"127.0.0.1:{free_port()}")
    code = head.invite(branch.name)
    head.run()
    branch.command("join", "-", "--database", at_branch.url, stdin=code)
    branch.run()
    wait("the branch is even", are_even)
    say(f"{given.tables} tables of {given.rows} rows; head on {given.head}")
    for what, away in [("all are up", None), ("the head is away", head), ("the branch's process is away", branch), ("all are up", None)]:
        plain, *times = bare.load(given)
        say(f"bare:   {plain:7.1f} tx/s, 95 % within {times[0]:.1f} ms, slowest {times[1]:.1f} ms")
        out = outage(away, given) if away else None
        rate, *times = at_branch.load(given)
        began = time.monotonic()
        if out:
            out.join()
        wait("all are even", are_even)
        after = time.monotonic() - began
        say(
            f"branch: {rate:7.1f} tx/s ({rate / plain:.2f}), 95 % within {times[0]:.1f} ms, slowest {times[1]:.1f} ms; "
            f"{what}; even after {after:.1f} s"
        )
    verify(head)
    tables = [f"sbtest{number + 1}" for number in range(given.tables)]
    for table in tables:
        if at_head.content(table) != at_branch.content(table):
            sys.exit(f"{table} differs, and `verify` did not say so")
    conflicts, holds = head.command("conflicts"), head.command("holds")
    if conflicts or holds:
        sys.exit(f"one office wrote, and yet there are {len(conflicts)} conflicts and {len(holds)} holds")
    say(f"equal: {len(tables)} tables")
    stop_all()
    for server in (at_head, at_branch, bare):
        (maria if server.is_maria else postgres).sql(f"DROP DATABASE {server.name}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", type=Path, default=ROOT / "target" / "debug" / "branchline")
    arguments.add_argument("--head", choices=["postgres", "mariadb"], default="postgres")
    arguments.add_argument("--tables", type=int, default=4)
    arguments.add_argument("--rows", type=int, default=10_000)
    arguments.add_argument("--threads", type=int, default=4)
    arguments.add_argument("--seconds", type=int, default=20)
    try:
        main(arguments.parse_args())
    finally:
        stop_all()
