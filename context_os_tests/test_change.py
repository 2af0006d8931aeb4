"""Reading diffs: git's own, plain ones, hostile ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from samples import git, make_repository, write

from context_os.change import parse_diff

DIFF = """diff --git a/shop/app.py b/shop/app.py
index 1..2 100644
--- a/shop/app.py
+++ b/shop/app.py
@@ -3,4 +3,5 @@ class Session:
 def close(self):
-    release(self)
+    with lock:
+        release(self)
 x = 1
 y = 2
@@ -20 +21,0 @@
--- a line that begins with dashes
diff --git a/old name.txt b/new name.txt
similarity index 100%
rename from old name.txt
rename to new name.txt
diff --git a/gone.py b/gone.py
deleted file mode 100644
--- a/gone.py
+++ /dev/null
@@ -1 +0,0 @@
-x
\\ No newline at end of file
diff --git "a/gr\\303\\274n.py" "b/gr\\303\\274n.py"
new file mode 100644
--- /dev/null
+++ "b/gr\\303\\274n.py"
@@ -0,0 +1 @@
+y
"""


def test_files_hunks_and_kinds_of_change() -> None:
    change = parse_diff(DIFF)
    assert [(file.path, file.old_path, file.status) for file in change.files] == [
        ("shop/app.py", "shop/app.py", "modified"),
        ("new name.txt", "old name.txt", "renamed"),
        ("gone.py", "gone.py", "removed"),
        ("grün.py", "grün.py", "added"),
    ]
    first, second = change.files[0].hunks
    assert (first.old_start, first.old_lines, first.new_start, first.new_lines) == (3, 4, 3, 5)
    assert first.heading == "class Session:"
    assert first.added == ("    with lock:", "        release(self)")
    assert (second.old_start, second.old_lines, second.new_lines) == (20, 1, 0)
    assert second.removed == ("-- a line that begins with dashes",)
    assert change.paths == ("shop/app.py", "new name.txt", "old name.txt", "gone.py", "grün.py")
    assert "lock" in change.summary(10).split()


def test_a_plain_diff_without_gits_header() -> None:
    change = parse_diff("--- a/x.py\t2026-01-01\n+++ b/x.py\t2026-01-02\n@@ -1 +1 @@\n-a\n+b\n")
    assert [(file.path, file.status, file.added_lines, file.removed_lines) for file in change.files] == [
        ("x.py", "modified", 1, 1)
    ]


def test_gits_own_numbers_agree(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "shop")
    write(repository, "name with blanks.py", "a\nb\n")
    write(repository, "shop/app.py", "completely\nnew\n")
    (repository / "tests/test_app.py").unlink()
    git(repository, "add", "-A")
    text = subprocess.run(
        ["git", "diff", "--cached"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    numbers = git(repository, "diff", "--cached", "--numstat").splitlines()
    expected = {tuple(line.split("\t")) for line in numbers}
    found = {(str(file.added_lines), str(file.removed_lines), file.path) for file in parse_diff(text).files}
    assert found == expected


@given(st.text(alphabet=st.sampled_from("diff -+@\\/ab.py0123,\n\t\"'é"), max_size=400))
def test_any_text_is_read_without_an_error(text: str) -> None:
    parse_diff("diff --git a/x b/x\n" + text)
    parse_diff(text)


@given(st.integers(0, len(DIFF)))
def test_a_diff_cut_anywhere_gives_the_files_before_the_cut(cut: int) -> None:
    paths = [file.path for file in parse_diff(DIFF).files]
    shorter = [file.path for file in parse_diff(DIFF[:cut]).files]
    assert shorter[: len(shorter) - 1] == paths[: max(len(shorter) - 1, 0)]
