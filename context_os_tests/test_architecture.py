"""What the code promises about itself: layers, lazy vendors, one tree of errors, plugins that fit their seam."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from context_os import errors, plugins
from context_os.connectors import Connector, Expectation
from context_os.selectors import Selector
from context_os.stores import KnowledgeStore

PACKAGE = Path(errors.__file__).parent
HEAVY = ("dagster", "great_expectations", "weaviate", "github", "pandas", "pyarrow")


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["context_os.app", "context_os.cli", "context_os.quality", "context_os.ingestion"])
def test_no_heavy_vendor_comes_along_with(module: str) -> None:
    code = f"import {module}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_settings_reads_the_environment() -> None:
    allowed = {"settings.py", "weaviate_server.py", "cli.py"}  # the last two only hand it on to another process
    readers = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }
    assert readers <= allowed


@pytest.mark.parametrize(
    ("seam", "contract"), [("connectors", Connector), ("stores", KnowledgeStore), ("selectors", Selector)]
)
def test_every_plugin_keeps_its_contract(seam: str, contract: type) -> None:
    assert plugins.names(seam)
    for name in plugins.names(seam):
        plugin = plugins.load(seam, name)
        assert issubclass(plugin, contract)
        assert plugin.name == name
        promised = {
            key for key, value in vars(contract).items() if inspect.isfunction(value) and not key.startswith("_")
        }
        abstract = {key for key in promised if "NotImplementedError" in inspect.getsource(getattr(contract, key))}
        assert not {key for key in abstract if getattr(plugin, key) is getattr(contract, key)}


def test_every_connector_says_what_it_is_and_what_its_rows_must_be() -> None:
    for name in plugins.names("connectors"):
        connector: type[Connector] = plugins.load("connectors", name)
        assert connector.domain
        assert connector.kinds
        assert connector.summary.strip(".") == connector.summary != ""
        assert all(isinstance(each, Expectation) and each.because for each in connector.expectations)
        assert connector.expectations


def test_an_unknown_plugin_names_those_that_exist() -> None:
    with pytest.raises(errors.ConfigurationError, match="lab, weaviate"):
        plugins.load("stores", "paper")
    with pytest.raises(errors.ConfigurationError):
        plugins.load("connectors", "_files")


def test_the_error_tree_is_the_one_that_is_drawn() -> None:
    drawn = inspect.getdoc(errors) or ""
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.ContextOSError)
        assert name in drawn
        assert (
            "(retryable)" in next(line for line in drawn.splitlines() if f" {name} " in f"{line} ")
        ) == kind.retryable or (name == "ContextOSError")
