"""Fits the numbers of context_os/data/weights.toml to what another script's --snapshots kept, and says what they give.

Every weight is fitted leaving one repository out at a time, and the figures are of the repositories left out: they are
what somebody else's repository may expect. The weights printed at the end are fitted on all of them.

A file's score is a sum of its features times their weights; the loss is the negative logarithm of the gold files' share
in a softmax over all files of an answer (a conditional logit: McFadden 1974), with a ridge and no feature allowed to
count against a file. The ridge pulls features towards --toward, and what may count against a file towards what
weights.toml says: at 1 all features are equally good until the cases say otherwise, and few cases seldom know better
(Dawes, "The Robust Beauty of Improper Linear Models in Decision Making", 1979). So for functions, but towards 0, over
those of the best files, by their own features and each of their file's; of a change without what it touches. Of a
question, whose gold is files alone, any function of these counts: the loss is that of their whole share. --ablation
leaves out every feature in turn.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import _bench as bench
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from context_os import change, paths, question, relevance
from context_os import corpus as corpora
from context_os import segments as segment_files
from context_os.change import parse_diff
from context_os.corpus import Corpus
from context_os.model import Confidentiality
from context_os.paths import CLASSES
from context_os.relevance import Features, Model
from context_os.segments import Segment
from context_os.selectors import Request
from context_os.selectors.hybrid import asked_of
from context_os.tuning import surprise

_KINDS: Final = ("class", "method", "module")
_WEIGHTS: Final = Path(relevance.__file__).parent / "data" / "weights.toml"
_BEST_FILES: Final = 150
_RIDGE: Final = 0.02
_DOCUMENT_RIDGE: Final = 0.006
_CUTS: Final = (1, 5, 10)
Floats = NDArray[np.float64]


@dataclass
class Kept:
    """One instance: (files, columns) and (documents, columns), what is gold in each (-1: not among them)."""

    id: str
    repo: str
    question: str
    names: list[str]
    files: Floats
    candidates: NDArray[np.bool_]
    gold_files: list[int]
    document_names: list[str]  # as Model.columns calls them
    documents: Floats
    gold_documents: list[int]
    wanted_documents: int  # 0: any document of the gold files will do


def read(folder: Path, semantic: bool) -> Kept:
    """The features of one snapshot, scaled as the model scales them."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    segments = [(about["repo"], Segment.load(file)) for file in sorted(folder.glob("*.npz"))]
    corpus = Corpus([(name, each) for name, each in segments if each is not None], Confidentiality.RESTRICTED)
    near = {key: _nearness(folder / f"{key}.npy") if semantic else None for key in ("whole", "title")}
    request = Request(about["question"], parse_diff(about.get("diff", "")), (about["repo"],))
    features = Features(corpus, asked_of(request), near["whole"], near["title"], request.change)
    candidates = corpus.has_text.copy()
    candidates[features.changed_files] = False
    columns = dict(features.files)
    scaled = [v if k in relevance.RAW else relevance.scaled(v, features.compared) for k, v in columns.items()]
    scaled += [(corpus.paths.classes == name).astype(float) for name in CLASSES]
    of_file = {path: number for number, (_, path) in enumerate(corpus.files)}
    rough = np.where(corpus.has_text, sum(scaled[: len(columns)]) - 3.0 * (~features.compared), -np.inf)
    best = np.argsort(-rough, kind="stable")[:_BEST_FILES]
    code = np.isin(np.array(corpus.kinds)[corpus.kind_of], list(bench.CODE)) & corpus.visible
    code[features.changed] = False
    docs = np.flatnonzero(code & np.isin(corpus.file_of, best))
    parts = {name: make()[docs] for name, make in Model("", {}, {}, {}, {}).columns(features).items() if _fitted(name)}
    parts = dict(sorted(({f"kind.{kind}": np.zeros(len(docs)) for kind in _KINDS} | parts).items()))
    place = {int(doc): number for number, doc in enumerate(docs)}
    gold_files = [of_file.get(path, -1) for path in about["gold_files"]]
    gold_documents = [place.get(doc, -1) for doc in about["gold_documents"]]
    if not about["gold_functions"]:
        gold_documents = np.flatnonzero(np.isin(corpus.file_of[docs], gold_files)).tolist()
    return Kept(
        id=folder.name,
        repo=about["repo"],
        question=about["question"],
        names=[*columns, *CLASSES],
        files=np.stack(scaled, axis=1),
        candidates=candidates,
        gold_files=gold_files,
        document_names=list(parts),
        documents=np.stack(list(parts.values()), axis=1),
        gold_documents=gold_documents,
        wanted_documents=about["gold_functions"],
    )


def _fitted(column: str) -> bool:
    table, _, name = column.partition(".")
    return name in _KINDS if table == "kind" else column != "document.changed"


def _nearness(file: Path) -> Floats | None:
    return np.load(file).astype(np.float64) if file.exists() else None


def read_all(folder: Path, semantic: bool) -> list[Kept]:
    """Every snapshot's features, kept until the code that makes them changes."""
    sources = (change, corpora, paths, question, relevance, segment_files)
    code = "".join(Path(str(each.__file__)).read_text(encoding="utf-8") for each in sources)
    code += Path(__file__).read_text(encoding="utf-8").partition("def read_all")[0]
    mark = hashlib.sha256(code.encode()).hexdigest()[:12]
    snapshots = sorted(each.parent for each in folder.glob("*/about.json"))
    store = folder / f"features-{mark}-{'semantic' if semantic else 'lexical'}"
    store.mkdir(exist_ok=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(_keep, [(each, store / f"{each.name}.pickle", semantic) for each in snapshots]))
    found = []
    for each in snapshots:
        with (store / f"{each.name}.pickle").open("rb") as file:
            found.append(Kept(**pickle.load(file)))
    return found


def _keep(job: tuple[Path, Path, bool]) -> None:
    snapshot, target, semantic = job
    if not target.exists():
        with target.with_suffix(".partial").open("wb") as file:
            pickle.dump(vars(read(snapshot, semantic)), file)
        target.with_suffix(".partial").replace(target)


# The fit

Loss = Callable[[Floats, Sequence[int], Floats], tuple[float, Floats]]
Problem = tuple[Floats, list[int], Loss]


def surprise_of_any(rows: Floats, gold: Sequence[int], weights: Floats) -> tuple[float, Floats]:
    """The negative logarithm of the gold rows' share together, and its gradient."""
    scores = rows @ weights
    mass = np.exp(scores - scores.max())
    good = mass[list(gold)]
    slope: Floats = mass @ rows / mass.sum() - good @ rows[list(gold)] / max(good.sum(), 1e-300)
    return float(np.log(mass.sum()) - np.log(max(good.sum(), 1e-300))), slope


def fit(
    problems: Sequence[Problem], free: Sequence[bool], start: Floats, ridge: float, toward: Floats | float = 0.0
) -> Floats:
    """Weights, none of them below 0 but the ``free`` ones."""
    number = len(problems)

    def whole(weights: Floats) -> tuple[float, Floats]:
        off = weights - toward
        total, slope = ridge * float(off @ off), 2 * ridge * off
        for rows, gold, loss_of in problems:
            loss, gradient = loss_of(rows, gold, weights)
            total += loss / number
            slope = slope + gradient / number
        return total, slope

    bounds = [(None, None) if each else (0.0, None) for each in free]
    found: Floats = minimize(whole, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200}).x
    return found


def file_problem(kept: Kept, columns: Sequence[int]) -> Problem | None:
    gold = [each for each in kept.gold_files if each >= 0]
    if not gold:
        return None
    rows = kept.files[:, columns]
    rough = np.where(kept.candidates, rows.sum(axis=1), -np.inf)
    chosen = np.unique(np.concatenate([np.argsort(-rough)[:400], gold]))
    return rows[chosen], [int(np.searchsorted(chosen, each)) for each in gold], surprise


def document_problem(kept: Kept, columns: Sequence[int]) -> Problem | None:
    gold = [each for each in kept.gold_documents if each >= 0]
    loss = surprise if kept.wanted_documents else surprise_of_any
    return (kept.documents[:, columns], gold, loss) if gold else None


def left_out(
    every: Sequence[Kept],
    problem: Callable[[Kept], Problem | None],
    free: Sequence[bool],
    ridge: float,
    toward: Floats | float = 0.0,
) -> tuple[dict[str, Floats], Floats]:
    """Weights for every repository from all the others, and weights from all."""
    made = {kept.id: problem(kept) for kept in every}
    start = np.where(free, 0.0, 1.0)
    whole = fit([each for each in made.values() if each], free, start, ridge, toward)
    by_repo = {}
    for repo in sorted({kept.repo for kept in every}):
        others = [made[kept.id] for kept in every if kept.repo != repo]
        by_repo[repo] = fit([each for each in others if each], free, whole, ridge, toward) if others else whole
    return by_repo, whole


def file_rank(kept: Kept, weights: Floats) -> int | None:
    """Of the last gold file."""
    if any(each < 0 for each in kept.gold_files):
        return None
    scores = np.where(kept.candidates, kept.files @ weights, -np.inf)
    order = np.argsort(-scores, kind="stable")
    place = {int(each): number for number, each in enumerate(order[:1000], 1)}
    return max((place.get(each, 10**6) for each in kept.gold_files), default=None)


def document_rank(kept: Kept, columns: Sequence[int], weights: Floats) -> int | None:
    """Of the last gold function, or of the first where any will do."""
    if len(kept.gold_documents) < kept.wanted_documents or any(each < 0 for each in kept.gold_documents):
        return None
    order = np.argsort(-(kept.documents[:, columns] @ weights), kind="stable")
    place = {int(each): number for number, each in enumerate(order, 1)}
    choose = max if kept.wanted_documents else min
    return choose((place[each] for each in kept.gold_documents), default=None)


def shares(ranks: Sequence[int | None], cuts: Sequence[int] = _CUTS) -> list[str]:
    return [f"{100 * sum(rank is not None and rank <= cut for rank in ranks) / max(len(ranks), 1):.1f}" for cut in cuts]


def fit_files(
    every: Sequence[Kept], columns: Sequence[int], ridge: float, toward: Mapping[str, float]
) -> tuple[dict[str, Floats], Floats, list[int | None]]:
    names = every[0].names
    free = [names[each] in relevance.MAY_COUNT_AGAINST for each in columns]
    pulled = np.array([toward[names[each]] for each in columns])
    by_repo, whole = left_out(every, lambda kept: file_problem(kept, columns), free, ridge, pulled)

    def spread(weights: Floats) -> Floats:
        full = np.zeros(len(names))
        full[list(columns)] = weights
        return full

    by_repo, whole = {repo: spread(each) for repo, each in by_repo.items()}, spread(whole)
    return by_repo, whole, [file_rank(kept, by_repo[kept.repo]) for kept in every]


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--snapshots", type=Path, required=True)
    parser.add_argument("--lexical", action="store_true", help="without vectors")
    parser.add_argument("--ridge", type=float, default=_RIDGE, help="how much weights of files are pulled to --toward")
    parser.add_argument("--toward", type=float, default=1.0, help="to what features of files are pulled")
    parser.add_argument("--document-ridge", type=float, default=_DOCUMENT_RIDGE, help="those of functions to 0")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument(
        "--write",
        type=Path,
        help="folder: all.toml with what is fitted on everything in the place of what weights.toml says (or what is in"
        " the folder already), OWNER+NAME.toml with what is fitted without that repository",
    )
    parser.add_argument("--without", default="", help="features to leave out, by comma")
    given = parser.parse_args()
    every = read_all(given.snapshots, not given.lexical)
    names = every[0].names
    out = set(given.without.split(","))
    columns = [place for place, name in enumerate(names) if name not in out]
    path = (Request(every[0].question).kind, "lexical" if given.lexical else "semantic")
    packaged = relevance.model(path[0], semantic=not given.lexical)
    told = {**packaged.file, **packaged.path_class}
    toward = {n: told.get(n, 0.0) if n in relevance.MAY_COUNT_AGAINST else given.toward for n in names}
    by_repo, whole, ranks = fit_files(every, columns, given.ridge, toward)
    rows = [["files", len(every), *shares(ranks)]]
    repos = sorted({kept.repo for kept in every})
    rows += [
        [repo, len(mine), *shares(mine)]
        for repo in repos
        for mine in [[rank for rank, kept in zip(ranks, every, strict=True) if kept.repo == repo]]
    ]
    bench.show("Files, leaving one repository out", ["", "n", "@1", "@5", "@10"], rows)
    print("\n".join(f"{name} = {value:.2f}" for name, value in zip(names, whole, strict=True)))
    if given.ablation:
        lost = []
        for leave in columns:
            less = fit_files(every, [each for each in columns if each != leave], given.ridge, toward)[2]
            lost.append([f"without {names[leave]}", len(every), *shares(less)])
        bench.show("Ablation", ["", "n", "@1", "@5", "@10"], lost)
    documents: dict[str, dict[str, float]] = {}
    if any(kept.gold_documents for kept in every):
        documents = tell_documents(every, given.document_ridge, out)
    if given.write:
        for repo, weights in {**by_repo, "all": whole}.items():
            write(given.write, repo, path, dict(zip(names, weights, strict=True)), documents.get(repo))


def tell_documents(every: Sequence[Kept], ridge: float, out: set[str]) -> dict[str, dict[str, float]]:
    """Prints what they give; the weights by left-out repository, and from all."""
    names = every[0].document_names
    columns = [place for place, name in enumerate(names) if name.partition(".")[2] not in out]
    free = [names[each].partition(".")[2] in {*_KINDS, *relevance.MAY_COUNT_AGAINST} for each in columns]
    asked = [kept for kept in every if kept.wanted_documents or kept.gold_documents]
    by_repo, whole = left_out(asked, lambda kept: document_problem(kept, columns), free, ridge)
    ranks = [document_rank(kept, columns, by_repo[kept.repo]) for kept in asked]
    bench.show("Functions", ["", "n", "@5", "@10", "@20"], [["all", len(ranks), *shares(ranks, (5, 10, 20))]])
    shown = [names[each] for each in columns]
    print("\n".join(f"{name} = {value:.2f}" for name, value in zip(shown, whole, strict=True)))
    return {repo: dict(zip(shown, each, strict=True)) for repo, each in {**by_repo, "all": whole}.items()}


def write(
    folder: Path,
    repo: str,
    path: tuple[str, str],
    files: Mapping[str, float],
    documents: Mapping[str, float] | None,
) -> None:
    """A file of weights with these in their place."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{repo.replace('/', '+')}.toml"
    before = file if file.exists() else _WEIGHTS
    text = before.read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    held = tables.setdefault(path[0], {}).setdefault(path[1], {"document": {}, "kind": {}})
    held["file"] = {name: weight for name, weight in files.items() if name not in CLASSES}
    held["path_class"] = {name: weight for name, weight in files.items() if name in CLASSES}
    if documents:
        held |= {"document": {}, "kind": {}, "of_file": {}}
        for column, weight in documents.items():
            table, _, name = column.partition(".")
            held[table][name] = weight
    head = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("#"))
    parts = [
        f"\n[{kind}.{mode}.{part}]\n" + "".join(f"{k} = {v:.2f}\n" for k, v in each.items() if abs(v) >= 0.005)
        for kind, modes in tables.items()
        for mode, held in modes.items()
        for part, each in held.items()
        if each
    ]
    file.write_text(head + "".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
