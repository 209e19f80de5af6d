#!/usr/bin/env python3
"""A Django project migrates at the head, one migration after the other, while branches write.

The project is made of applications with long histories of migrations (django-oscar, wiki, Django's own), installed from
PyPI into a venv. The head is on PostgreSQL, the branches are on MariaDB and SQLite; the SQLite branch is stopped for a
third of the migrations, and has unsent changes then. In the end `verify` must find all equal, and every office must
hold every row that any office's application wrote.

    BRANCHLINE_TEST_POSTGRES=postgres://... BRANCHLINE_TEST_MYSQL=mysql://... bench/django.py [--binary target/debug/branchline]

The two addresses are those of super-users (as `./test.sh` exports them). `tests/django.sh` runs this for the gate where
BRANCHLINE_TEST_DJANGO is set: it takes some minutes, most of them Django's own.
"""

import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from urllib.parse import unquote, urlsplit

from offices import Office, are_even, free_port, say, stop_all, verify, wait

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["django>=4.2,<5.3", "psycopg[binary]", "pymysql", "django-oscar==4.2.*", "wiki==0.13.*"]

SETTINGS = """
import os
from urllib.parse import unquote, urlsplit
from oscar.defaults import *
place = urlsplit(os.environ["HEAD_DATABASE"])
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "HOST": place.hostname, "PORT": place.port,
    "USER": unquote(place.username or ""), "PASSWORD": unquote(place.password or ""), "NAME": place.path[1:]}}
SECRET_KEY = "of a test"
SITE_ID = 1
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
INSTALLED_APPS = [
    "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
    "django.contrib.messages", "django.contrib.sites", "django.contrib.flatpages", "django.contrib.humanize",
    "oscar.apps.analytics.apps.AnalyticsConfig", "oscar.apps.checkout.apps.CheckoutConfig",
    "oscar.apps.address.apps.AddressConfig", "oscar.apps.shipping.apps.ShippingConfig",
    "oscar.apps.catalogue.apps.CatalogueConfig", "oscar.apps.catalogue.reviews.apps.CatalogueReviewsConfig",
    "oscar.apps.communication.apps.CommunicationConfig", "oscar.apps.partner.apps.PartnerConfig",
    "oscar.apps.basket.apps.BasketConfig", "oscar.apps.payment.apps.PaymentConfig",
    "oscar.apps.offer.apps.OfferConfig", "oscar.apps.order.apps.OrderConfig",
    "oscar.apps.customer.apps.CustomerConfig", "oscar.apps.search.apps.SearchConfig",
    "oscar.apps.voucher.apps.VoucherConfig", "oscar.apps.wishlists.apps.WishlistsConfig",
    "widget_tweaks", "haystack", "treebeard", "sorl.thumbnail", "django_tables2",
    "mptt", "sekizai", "django_nyt", "wiki", "wiki.plugins.attachments", "wiki.plugins.notifications",
    "wiki.plugins.images",
]
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
"""

# Migrates by one step for each line that it reads, and tells which; the first line tells how many there are.
MIGRATOR = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django
django.setup()
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
executor = MigrationExecutor(connection)
plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
print(len(plan), flush=True)
for (migration, _), line in zip(plan, sys.stdin):
    executor = MigrationExecutor(connection)
    executor.migrate([(migration.app_label, migration.name)])
    print(f"{migration.app_label}.{migration.name}", flush=True)
"""


def inside_venv(binary):
    """Runs this script again with the venv's interpreter, made on the first run."""
    home = ROOT / "target" / "django-venv"
    python = home / "bin" / "python"
    marker = home / "installed"
    if not marker.exists() or marker.read_text() != " ".join(PACKAGES):
        say(f"installing {', '.join(PACKAGES)}")
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES], check=True)
        marker.write_text(" ".join(PACKAGES))
    os.execv(python, [str(python), __file__, "--inside", "--binary", str(binary)])


class Application:
    """A branch's application: adds users and groups, and keeps a journal."""

    def __init__(self, place, first):
        self.place, self.next, self.journal = place, first, {}
        self.open = None

    def execute(self, statement, values=()):
        if self.open is None:
            if self.place.startswith("sqlite:"):
                self.open = sqlite3.connect(self.place.removeprefix("sqlite:"), timeout=20, isolation_level=None)
            else:
                import pymysql

                url = urlsplit(self.place)
                self.open = pymysql.connect(
                    host=url.hostname, port=url.port, user=unquote(url.username), password=unquote(url.password or ""),
                    database=url.path[1:], autocommit=True, charset="utf8mb4",
                )
        cursor = self.open.cursor()
        if not self.place.startswith("sqlite:"):
            statement = statement.replace("?", "%s")
        cursor.execute(statement, values)
        return cursor.fetchall()

    def work(self):
        number = self.next
        self.next += 1
        name = f"user {number}"
        self.execute(
            "INSERT INTO auth_user (id, username, password, is_superuser, first_name, last_name, email, is_staff, is_active, date_joined, last_login) "
            "VALUES (?, ?, '', ?, ?, 'Ö', '', ?, ?, '2024-02-29 12:00:00', '2024-02-29 12:00:00')",
            (number, name, False, "first", False, True),
        )
        self.journal[number] = "first"
        again = random.choice(list(self.journal))
        self.journal[again] = f"again {number}"
        self.execute("UPDATE auth_user SET first_name = ? WHERE id = ?", (self.journal[again], again))
        self.execute("INSERT INTO auth_group (id, name) VALUES (?, ?)", (number, f"group {number}"))
        self.execute("INSERT INTO auth_user_groups (id, user_id, group_id) VALUES (?, ?, ?)", (number, number, number))


def fresh_databases(postgres, mysql, name):
    import psycopg
    import pymysql

    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    url = urlsplit(mysql)
    admin = pymysql.connect(host=url.hostname, port=url.port, user=unquote(url.username), password=unquote(url.password or ""))
    admin.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    return [f"{place.rsplit('/', 1)[0]}/{name}" for place in (postgres, mysql)]


def main(binary):
    seed = int(os.environ.get("BRANCHLINE_TEST_SEED", random.randrange(1 << 30)))
    random.seed(seed)
    say(f"seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="django-", dir=ROOT / "target"))
    name = f"django_{os.getpid()}"
    at_head, at_maria = fresh_databases(os.environ["BRANCHLINE_TEST_POSTGRES"], os.environ["BRANCHLINE_TEST_MYSQL"], name)
    (folder / "settings.py").write_text(SETTINGS)
    migrator = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", MIGRATOR], cwd=folder, env={**os.environ, "HEAD_DATABASE": at_head},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )

    def migrate():
        migrator.stdin.write("on\n")
        migrator.stdin.flush()
        done = migrator.stdout.readline().strip()
        if not done:
            sys.exit("the migrator failed")
        return done

    steps = int(migrator.stdout.readline())
    done = 0
    while True:
        done += 1
        if migrate() == "auth.0001_initial":
            break
    head = Office(folder, "HO", at_head, binary)
    maria = Office(folder, "maria", at_maria, binary)
    lite = Office(folder, "lite", f"sqlite:{folder / 'lite.db'}", binary)
    head.command("init", "--name", "HO", "--database", at_head, "--tables", "*", "--listen", f"127.0.0.1:{free_port()}")
    codes = [head.invite(branch.name) for branch in (maria, lite)]
    head.run()
    for branch, code in zip((maria, lite), codes):
        branch.command("join", "-", "--database", branch.database, stdin=code)
        branch.run()
    say(f"{steps} migrations; {done} made, all have joined")
    applications = [Application(maria.database, 1_000_000), Application(lite.database, 2_000_000)]
    away = range(done + (steps - done) // 3, done + 2 * (steps - done) // 3)
    while done < steps:
        if done == away.start:
            lite.stop()
            say("one branch goes away")
        if done == away.stop:
            lite.run()
            say("and is back")
        migration = migrate()
        done += 1
        for application in applications:
            application.work()
        if done % 25 == 0:
            say(f"{done}: {migration}, schema version {head.command('status')['schema_version']}")
    say("all is migrated")
    migrator.stdin.close()

    wait("all are even", are_even)
    say("all are even")
    verify(head)
    import psycopg

    journal = {number: name for application in applications for number, name in application.journal.items()}
    query = "SELECT id, first_name FROM auth_user WHERE id >= 1000000"
    with psycopg.connect(at_head) as connection:
        found = {"HO": dict(connection.execute(query).fetchall())}
    for office, application in zip((maria, lite), applications):
        found[office.name] = dict(application.execute(query))
    for office, rows in found.items():
        if rows != journal:
            wrong = {number for number in journal | rows if journal.get(number) != rows.get(number)}
            sys.exit(f"the journals are not whole at {office}: {sorted(wrong)[:20]}")
    shown = head.command("plan", "show")
    for branch in (maria, lite):
        here = branch.command("plan", "show")
        if here["differs"] or here["would_create"]:
            sys.exit(f"{branch.name}: {here['differs']} {here['would_create']}")
    holds = head.command("holds")
    for one in shown["cannot"]:
        say(f"not shared: {one['table']}: {one['problem']}")
    say(
        f"equal: {len(shown['tables'])} tables at schema version {shown['schema_version']}, {steps} migrations, "
        f"{len(journal)} rows of branches, {len(holds)} holds"
    )
    stop_all()
    shutil.rmtree(folder)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", type=Path, default=ROOT / "target" / "debug" / "branchline")
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if not given.inside:
        inside_venv(given.binary.resolve())
    try:
        main(given.binary.resolve())
    finally:
        stop_all()
