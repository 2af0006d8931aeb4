"""A small real git repository with something for every connector, made anew for each test that asks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

APP = '''"""Sessions."""
from shop.pool import release


class Session:
    """One user's session."""

    def close(self, reason):
        """Close it and give the socket back."""
        return release(self, reason)


def open_session(host):
    return Session()
'''

POOL = '''"""The pool of sockets."""


def release(session, reason):
    return (session, reason)
'''

TEST = """from shop.app import open_session


def test_open_session():
    assert open_session("host")
"""

README = """# Shop

## Development

The tests of `shop.app` are in [tests](tests/test_app.py).
"""

BUG = """---
id: SHOP-7
title: Sockets leak when a session is closed twice
service: shop
severity: high
status: open
symptoms:
  summary: The pool runs dry after an hour
root_cause: release was called without the lock
fix:
  commit: 0123456789abcdef0123456789abcdef01234567
  files: [shop/pool.py]
  tests: [tests/test_app.py]
---
The pool must count every socket.
"""

RULE = """---
title: Take the lock
globs: ["shop/**"]
severity: high
---
Hold the pool's lock while a socket changes hands.
"""


def git(folder: Path, *arguments: str) -> str:
    """One git command in a folder, with an author and a time that never change."""
    done = subprocess.run(
        [
            "git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false",
            "-c", "init.defaultBranch=main", *arguments,
        ],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write(folder: Path, path: str, text: str) -> Path:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def make_repository(folder: Path) -> Path:
    """Six files, two pull requests (one merged, one squashed), one bug record, one rule."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    write(folder, "README.md", README)
    write(folder, "shop/app.py", APP)
    write(folder, "shop/pool.py", POOL)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Sessions and their pool")
    git(folder, "checkout", "-qb", "tests")
    write(folder, "tests/test_app.py", TEST)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Test sessions")
    git(folder, "checkout", "-q", "main")
    git(
        folder,
        "merge",
        "-q",
        "--no-ff",
        "tests",
        "-m",
        "Merge pull request #1 from ada/tests\n\nTest opening a session",
    )
    write(folder, "bugs/shop-7.md", BUG)
    write(folder, ".context-os/rules/lock.md", RULE)
    write(folder, "shop/pool.py", POOL.replace("(session, reason)\n", "(session, reason)  # locked\n"))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Lock the pool (#2)\n\nFixes the leak of SHOP-7.")
    return folder


def clone_of(name: str) -> Path:
    """A clone of ``owner/name``, for tests that want a real repository: below TEST_CLONES as ``owner+name/repo``. Skips
    where there is none."""
    clones = Path(os.environ.get("TEST_CLONES") or Path(__file__).parents[2] / ".mirror")
    place = clones / name.replace("/", "+") / "repo"
    if not place.is_dir():
        pytest.skip(f"no clone of {name} at {place}; set TEST_CLONES to where clones are")
    return place
