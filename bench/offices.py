"""Offices as processes, for the scripts beside this one."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

BEGAN = time.monotonic()
PATIENCE = 900
OFFICES = []


def say(what):
    print(f"{time.monotonic() - BEGAN:6.1f} s: {what}", flush=True)


class Office:
    """An office of the program `binary`; it is stopped with `stop_all`."""

    def __init__(self, folder, name, database, binary):
        self.name, self.database, self.binary = name, database, binary
        self.config = folder / f"{name}.toml"
        self.log = folder / f"{name}.log"
        self.process = None
        OFFICES.append(self)

    def command(self, *words, code=0, stdin=""):
        ran = subprocess.run(
            [self.binary, "--config", self.config, *words, "--json"],
            input=stdin, capture_output=True, text=True, timeout=PATIENCE * 2,
        )
        if code is not None and ran.returncode != code:
            sys.exit(f"{self.name}: {' '.join(words)}: code {ran.returncode}: {ran.stdout}{ran.stderr}\n{self.tail()}")
        return json.loads(ran.stdout) if ran.stdout.strip().startswith(("{", "[")) else ran.stdout.strip()

    def invite(self, name):
        code = self.command("invite", name)
        return code["code"] if isinstance(code, dict) else code

    def run(self):
        record = Path(f"{self.config}.api")
        record.unlink(missing_ok=True)
        with open(self.log, "a") as log:
            self.process = subprocess.Popen([self.binary, "--config", self.config, "run"], stdout=log, stderr=log)
        wait(f"{self.name} runs", record.exists)

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def tail(self):
        return "\n".join(self.log.read_text().splitlines()[-40:]) if self.log.exists() else ""


def stop_all():
    for office in OFFICES:
        office.stop()


def wait(what, look, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not (seen := look()):
        if time.monotonic() > deadline:
            sys.exit(f"not within {patience} s: {what}\n" + "\n".join(f"-- {o.name}\n{o.tail()}" for o in OFFICES))
        time.sleep(0.2)
    return seen


def are_even():
    """Whether all stand at one version of the schema and know of nothing that is not everywhere."""
    statuses = [office.command("status") for office in OFFICES]
    return len({status["schema_version"] for status in statuses}) == 1 and all(status["in_sync"] for status in statuses)


def verify(head):
    """Fails where the offices differ, and says where."""
    compared = head.command("verify", code=None)
    differing = [
        (branch["name"], table) for branch in compared["branches"] for table in branch["tables"]
        if table["different"] or table["only_head"] or table["only_branch"] or table["pending"]
    ]
    if not compared["equal"]:
        sys.exit(f"the offices differ: {json.dumps(differing, indent=1)}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
