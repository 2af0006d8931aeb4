"""Goldsets: their files, cases made of real history, and a gate that catches every kind of regression and no other."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from samples import git, make_repository, write

from context_os import evaluation, goldsets, packs, settings
from context_os.cli import cli
from context_os.errors import ConfigurationError, NotFound, SourceRefused, SourceUnavailable, StoreUnavailable
from context_os.evaluation import Comparison, Evaluation, Run, Runs, accept, bootstrap, compare, mcnemar
from context_os.git import Git
from context_os.goldsets import Case, Folder, Goldset, Place, Things
from context_os.model import Access, Confidentiality, utcnow
from context_os.selectors.hybrid import Hybrid
from context_os.selectors.neighbours import Neighbours
from context_os.settings import Settings
from context_os.stores import Filter, KnowledgeStore, Page, Record, lab
from context_os.stores.lab import LabStore

WORDS = (
    "amber basil cedar delta ember fjord grove heron inlet jolly kayak lilac maple nylon ocean pearl quartz raven "
    "sable tulip umber velvet willow xenon yonder zephyr acorn birch coral daisy"
).split()
CASES = 14
CHECKOUT = Path(__file__).resolve().parent.parent

STORE = '''"""Where {0} orders are kept."""


def keep_{0}(order, ledger):
    """Write one {0} order down."""
    ledger["{0}"] = order
    return order


def drop_{0}(ledger):
    """Forget the {0} order."""
    return ledger.pop("{0}", None)
'''
VIEW = '''"""How {0} orders are shown."""


def draw_{0}(order, page):
    """One line of the page for a {0} order."""
    return page.line("{0}", order)


def blank_{0}(page):
    """The line of a {0} order that was dropped."""
    return page.line("{0}", "")
'''
RULE = """---
title: Draw in one pass
globs: ["shop/**"]
---
A page is drawn in one pass, from top to bottom.
"""
SECRET = """---
title: Prices of partners
globs: ["shop/**"]
confidentiality: restricted
---
Partners pay half.
"""


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop in which each pull request edits how one kind of order is kept and how it is shown."""
    folder = tmp_path_factory.mktemp("goldsets") / "shop"
    folder.mkdir()
    git(folder, "init", "-q")
    for word in WORDS:
        write(folder, f"shop/{word}_store.py", STORE.format(word))
        write(folder, f"shop/{word}_view.py", VIEW.format(word))
    write(folder, ".context-os/rules/draw.md", RULE)
    write(folder, ".context-os/rules/prices.md", SECRET)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "A shop")
    base = git(folder, "rev-parse", "HEAD")
    for number, word in enumerate(WORDS[:CASES], start=1):
        git(folder, "checkout", "-q", "--detach", base)
        write(folder, f"shop/{word}_store.py", STORE.format(word).replace("return order", f"return {word}_of(order)"))
        write(folder, f"shop/{word}_view.py", VIEW.format(word).replace(", order)", f", {word}_of(order))"))
        git(folder, "commit", "-qam", f"Orders of {word} are wrapped (#{number})")
        git(folder, "branch", f"pull-{number}")
    git(folder, "checkout", "-q", "main")
    return folder


def make(folder: Path, history: Path) -> Folder:
    found = Folder(folder)
    repository = Git(history)
    cases = [goldsets.from_commit(repository, "shop", f"pull-{number}") for number in range(1, CASES + 1)]
    rule = Things(rules=("Draw in one pass",))
    cases = [
        each.model_copy(
            update={
                "max_tokens": 520,
                "expected": each.expected.model_copy(update={"rules": rule.rules}),
                "forbidden": Things(paths=(".context-os/rules/prices.md",)),
            }
        )
        for each in cases
    ]
    found.add(cases, "shop", Place(source=str(history)))
    return found


class World:
    """One goldset over that history, with its accepted baseline and one home for all of its runs."""

    def __init__(self, folder: Path, history: Path) -> None:
        self.settings = settings.load({"home": str(folder / "home")}, start=folder)
        self.folder = make(folder / "goldsets" / "shop", history)
        self.baseline = self.run()
        accept(self.folder, self.baseline)

    def run(self, chosen: Settings | None = None, **options: Any) -> Run:
        return Evaluation(chosen or self.settings, self.folder, **options).run()

    def gate(self, chosen: Settings | None = None, **options: Any) -> Comparison:
        return compare(self.run(chosen, **options), evaluation.baseline_of(self.folder))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, history: Path) -> World:
    return World(tmp_path_factory.mktemp("world"), history)


def test_debug(world: World) -> None:
    w = (Path(settings.__file__).parent / "data" / "weights.toml").read_text()
    for table,key in (("document","words"),("document","changed")):
        text = re.sub(rf"(\[change.lexical.{table}\][^\[]*\n{key} = )", r"\g<1>-", w)
        assert text != w
        f = world.settings.home / "w.toml"; f.write_text(text)
        r = world.gate(world.settings.model_copy(update={"weights": f}))
        print(key, r.regressions, len(r.lost), len(r.won), r.lost[:1])
