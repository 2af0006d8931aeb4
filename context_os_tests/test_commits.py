"""Commits of the main line: which are listed, what an item says, how a listing grows."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import git, make_repository, write

from context_os.connectors import Known, Repository, Unit
from context_os.connectors.commits import Commits


@pytest.fixture
def shop(tmp_path: Path) -> Repository:
    return Repository("shop", make_repository(tmp_path / "shop"), "default")


def commit(repository: Repository, message: str, path: str = "shop/pool.py", text: str = "x = 1\n") -> str:
    write(repository.location, path, text)
    git(repository.location, "add", ".")
    git(repository.location, "commit", "-qm", message)
    return git(repository.location, "rev-parse", "HEAD")


def everything(connector: Commits, repository: Repository, known: Known | None = None) -> list[Unit]:
    listing = connector.scan(repository, known or Known())
    return list(connector.read(repository, listing, list(listing.units)))


def test_what_names_no_pull_request_and_is_no_merge(shop: Repository) -> None:
    root = git(shop.location, "rev-list", "--max-parents=0", "HEAD")
    last = commit(shop, "Fixed SHOP-7 -- count every socket\n\nThe pool ran dry.")
    listing = Commits().scan(shop, Known())
    # Neither the merge of #1, nor what it brought in, nor the squashed #2: pull_requests tells of those.
    assert list(listing.units) == [f"commit/{last}", f"commit/{root}"]
    assert listing.complete


def test_an_item_says_who_what_and_which_files(shop: Repository) -> None:
    git(shop.location, "mv", "shop/pool.py", "shop/sockets.py")
    sha = commit(shop, "Fixed SHOP-7 -- count every socket\n\nThe pool ran dry.", "shop/count.py")
    (unit,) = [unit for unit in everything(Commits(), shop) if unit.hash == sha]
    (item,) = unit.items
    assert (item.kind, item.metadata.title) == ("commit", f"{sha[:10]} Fixed SHOP-7 -- count every socket")
    assert item.source.revision == sha
    assert item.symbols == (f"commit:{sha}", sha[:10])
    assert "The pool ran dry." in item.payload.text
    assert "by Ada" in item.payload.text
    assert "- renamed shop/sockets.py (was shop/pool.py)" in item.payload.text
    assert {(each.type, each.target) for each in item.relations} == {
        ("touches", "path:shop/count.py"),
        ("touches", "path:shop/pool.py"),
        ("touches", "path:shop/sockets.py"),
        ("fixes", "bug:SHOP-7"),
    }


def test_a_listing_grows_by_what_is_new(shop: Repository) -> None:
    first = Commits().scan(shop, Known())
    same = Commits().scan(shop, Known(first.units, first.cursor))
    assert (dict(same.units), same.complete) == ({}, False)
    sha = commit(shop, "Count every socket")
    grown = Commits().scan(shop, Known(first.units, first.cursor))
    assert (list(grown.units), grown.complete) == ([f"commit/{sha}"], False)


def test_history_that_was_rewritten_is_listed_whole(shop: Repository) -> None:
    gone = commit(shop, "Count every socket")
    first = Commits().scan(shop, Known())
    git(shop.location, "commit", "-q", "--amend", "-m", "Count all sockets")
    again = Commits().scan(shop, Known(first.units, first.cursor))
    assert again.complete
    assert f"commit/{gone}" not in again.units


def test_the_latest_are_kept_and_the_others_counted(shop: Repository) -> None:
    last = commit(shop, "Count every socket")
    listing = Commits(max_commits=1).scan(shop, Known())
    assert list(listing.units) == [f"commit/{last}"]
    assert listing.skipped == {"older than max_commits": 1}


def test_a_commit_that_is_gone_is_rejected_and_the_rest_read(shop: Repository) -> None:
    last = commit(shop, "Count every socket")
    listing = Commits().scan(shop, Known())
    missing = f"commit/{'0' * 40}"
    units = {unit.key: unit for unit in Commits().read(shop, listing, [missing, f"commit/{last}"])}
    assert "scan again" in units[missing].rejected[0].reasons[0]
    assert len(units[f"commit/{last}"].items) == 1


def test_the_edge_of_a_shallow_clone_has_no_files_to_tell(shop: Repository, tmp_path: Path) -> None:
    last = commit(shop, "Count every socket")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{shop.location}", "shallow")
    (unit,) = everything(Commits(), Repository("shop", tmp_path / "shallow", "default"))
    assert unit.key == f"commit/{last}"
    assert "shallow" in unit.rejected[0].reasons[0]


def test_an_empty_repository_has_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "empty")
    assert dict(Commits().scan(Repository("empty", tmp_path / "empty", "default"), Known()).units) == {}


def test_a_clone_that_lacks_contents_still_tells_which_files_changed(shop: Repository) -> None:
    sha = commit(shop, "Count every socket", "shop/count.py", "sockets = 7\n")
    blob = git(shop.location, "rev-parse", "HEAD:shop/count.py")
    (shop.location / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    (unit,) = [unit for unit in everything(Commits(), shop) if unit.hash == sha]
    (item,) = unit.items
    assert "- added shop/count.py\n" in f"{item.payload.text}\n"
    assert [each.target for each in item.relations] == ["path:shop/count.py"]
