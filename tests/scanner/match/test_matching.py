"""The flag rule: as its definition says, for any corpora, and for many scans as for each of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from finextract.significance import (
    LEAST_SHARE,
    Thresholds,
    benjamini_hochberg,
    conformal_p_values,
    thresholds_of_background,
)
from scanner.config import ScanConfig
from scanner.errors import CorpusError
from scanner.match.corpus import Corpus, load_corpora
from scanner.match.matching import (
    KEPT_MATCHES,
    Candidates,
    Comparison,
    Corpora,
    compare,
    split,
    thresholds_of,
    with_corpora,
)
from scanner.records import Match, Reference, Role, Verdict, now
from scanner.store.store import Store

TAU, ALPHA = 0.55, 0.2
THRESHOLDS = [Thresholds(TAU, None), Thresholds(TAU, 1.1)]


def embeddings(rng: np.random.Generator, count: int, *, exact: bool) -> np.ndarray:
    """L2-normalised float32 [count, 64]; the products of exact ones have no rounding, and many are equal."""
    if exact:
        return (rng.choice([-1, 1], (count, 64)) / 8).astype(np.float32)
    values = rng.standard_normal((count, 64))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def corpus(name: str, role: Role, vectors: np.ndarray) -> Corpus:
    return Corpus(name, role, np.array([f"{name}{n:05}" for n in range(len(vectors))], "S"), vectors, "")


def corpora_of(rng: np.random.Generator, *, exact: bool, references: int = 300) -> Corpora:
    made = {"a": references, "b": 5}
    return split([
        *(corpus(n, Role.REFERENCE, embeddings(rng, k, exact=exact)) for n, k in made.items()),
        corpus("x", Role.BACKGROUND, embeddings(rng, 40, exact=exact)),
        corpus("y", Role.BACKGROUND, embeddings(rng, 35, exact=exact)),
        corpus("z", Role.UNSEEN, embeddings(rng, 25, exact=exact)),
    ])  # fmt: skip


def test_an_image_that_is_a_reference_too_is_no_part_of_the_null() -> None:
    rng = np.random.default_rng(4)
    mine, other = embeddings(rng, 5, exact=True), embeddings(rng, 30, exact=True)
    references = corpus("mine", Role.REFERENCE, mine)
    ids = np.concatenate([references.reference_ids[1:3], corpus("x", Role.BACKGROUND, other).reference_ids])
    mixed = Corpus("x", Role.BACKGROUND, ids, np.concatenate([mine[1:3], other]), "")
    compared = split([references, mixed, corpus("mine", Role.UNSEEN, mine[:2])])
    assert compared.references == (references,)
    assert compared.unseen == ()  # it held nothing else
    (background,) = compared.background
    assert [i.decode() for i in background.reference_ids] == [f"x{n:05}" for n in range(30)]
    assert np.array_equal(background.embeddings, other)
    assert split([references, corpus("mine", Role.UNSEEN, mine)]).null == ()


def scans_of(rng: np.random.Generator, corpora: Corpora, *, exact: bool) -> list[Candidates]:
    """Scans with no candidate to twelve; some hold copies of references."""
    scans = []
    for n in range(150):
        vectors = embeddings(rng, n % 13, exact=exact)
        if len(vectors) > 3 and n % 3:
            vectors[2] = corpora.references[0].embeddings[n % 10]
            vectors[3] = corpora.references[1].embeddings[n % 5]
        scans.append(Candidates(f"s{n}", [f"s{n}-{k}" for k in range(len(vectors))], vectors))
    return scans


def by_definition(scan: Candidates, corpora: Corpora, thresholds: Thresholds) -> list[tuple[object, ...]]:
    """Every reference in order of its similarity, by the rule as it is written down."""
    both = [
        (c, c.embeddings.astype(np.float64) @ scan.embeddings.T.astype(np.float64))
        for c in (*corpora.references, *corpora.background, *corpora.unseen)
    ]
    references, background = both[: len(corpora.references)], both[len(corpora.references) :]
    best = np.concatenate([scores.max(axis=1) for _, scores in references])
    null = np.concatenate([scores.max(axis=1) for _, scores in background])
    nearest = np.concatenate([scores.argmax(axis=1) for _, scores in references])
    owners = [(c.name, i.decode()) for c, _ in references for i in c.reference_ids]
    p = conformal_p_values(best, null)
    q = benjamini_hochberg(p)
    order = sorted(range(len(best)), key=lambda i: (-best[i], i))
    everything = np.concatenate([c.embeddings for c, _ in both]).astype(np.float64)
    chosen = scan.embeddings[nearest].astype(np.float64)
    flagged, shown = np.zeros(len(best), bool), {}
    for i in np.flatnonzero(q <= ALPHA):
        alike = everything @ everything[i]
        others = everything[(alike < TAU) & (np.arange(len(everything)) != i)]
        nearest_other = (others @ everything[i]).max()
        is_nearest = bool((others @ chosen[i]).max() <= best[i])
        needed = TAU
        if thresholds.relative is not None:
            needed = min(TAU, max(LEAST_SHARE * TAU, thresholds.relative * nearest_other))
        shown[i] = (nearest_other, needed, is_nearest)
        flagged[i] = best[i] >= needed and (is_nearest or thresholds.relative is None)
    kept = [i for rank, i in enumerate(order) if rank < KEPT_MATCHES or flagged[i]]
    return [
        (*owners[i], scan.candidate_ids[nearest[i]], best[i], null.max(), p[i], q[i], bool(flagged[i]),
         *shown.get(i, (None, None, None)))
        for i in kept
    ]  # fmt: skip


def found(comparison: Comparison) -> list[tuple[object, ...]]:
    return [
        (m.corpus, m.reference_id, m.candidate_id, m.similarity, m.null_similarity, m.p_value, m.q_value,
         m.flagged, m.nearest_other, m.needed, m.is_nearest)
        for m in comparison.matches
    ]  # fmt: skip


@pytest.mark.parametrize("thresholds", THRESHOLDS)
@pytest.mark.parametrize("references", [3, 300, 5000])
def test_matches_are_those_of_the_definition_to_the_last_bit(references: int, thresholds: Thresholds) -> None:
    rng = np.random.default_rng(references)
    corpora = corpora_of(rng, exact=True, references=references)
    scans = [s for s in scans_of(rng, corpora_of(rng, exact=True), exact=True) if len(s.embeddings)][:40]
    for scan, comparison in zip(scans, compare(scans, corpora, thresholds, ALPHA), strict=True):
        assert found(comparison) == by_definition(scan, corpora, thresholds)
        assert comparison.best_similarity == comparison.matches[0].similarity
        assert comparison.q_value == min(m.q_value for m in comparison.matches)
        assert (comparison.num_references, comparison.num_background) == (references + 5, 100)


@pytest.mark.parametrize("exact", [True, False])
def test_scans_that_are_compared_together_have_the_matches_that_each_has_alone(exact: bool) -> None:
    rng = np.random.default_rng(1)
    corpora = corpora_of(rng, exact=exact, references=10)
    scans = scans_of(rng, corpora, exact=exact)
    together = list(compare(scans, corpora, THRESHOLDS[1], ALPHA))
    for scan, comparison in zip(scans, together, strict=True):
        (alone,) = compare([scan], corpora, THRESHOLDS[1], ALPHA)
        # Two copies have a similarity of 1 but for its rounding, which may order them otherwise.
        rows, expected = sorted(found(comparison)), sorted(found(alone))
        assert [(*r[:3], *r[5:8]) for r in rows] == [(*r[:3], *r[5:8]) for r in expected]
        assert [r[3:5] for r in rows] == [pytest.approx(r[3:5], abs=0 if exact else 1e-6) for r in expected]
        assert comparison.verdict is alone.verdict
    assert {c.verdict for c in together} == {Verdict.FLAGGED, Verdict.NOTHING_FOUND}


def test_a_scan_without_candidates_has_nothing_to_compare() -> None:
    corpora = corpora_of(np.random.default_rng(0), exact=True)
    (comparison,) = compare(
        [Candidates("s", [], np.empty((0, 64), np.float32))], corpora, THRESHOLDS[0], ALPHA
    )
    assert comparison == Comparison((), 305, 100, None, None)


def test_the_roles_of_corpora_are_told_apart() -> None:
    corpora = corpora_of(np.random.default_rng(0), exact=True)
    names = [
        [c.name for c in some]
        for some in (corpora.references, corpora.background, corpora.unseen, corpora.null)
    ]
    assert names == [["a", "b"], ["x", "y"], ["z"], ["x", "y", "z"]]


def test_unseen_works_alone_are_a_null_and_references_alone_have_none() -> None:
    rng = np.random.default_rng(0)
    references = corpus("a", Role.REFERENCE, embeddings(rng, 3, exact=True))
    unseen = corpus("z", Role.UNSEEN, embeddings(rng, 2, exact=True))
    corpora = split([references, unseen])
    assert (corpora.background, corpora.null, corpora.num_background) == ((), (unseen,), 2)
    assert split([references]).null == ()
    with pytest.raises(CorpusError, match=re.escape("(z) hold no reference images")):
        split([unseen])


@pytest.mark.parametrize("screen", ["first", "off"])
def test_without_a_null_pictures_are_similar_and_nothing_is_flagged(store: Store, screen: str) -> None:
    rng = np.random.default_rng(0)
    mine = embeddings(rng, 12, exact=False)
    store.append([
        Reference(f"mine{n:02}", "mine", Role.REFERENCE, "", "", 1, 1, "d", tuple(v.tolist()), now())
        for n, v in enumerate(mine)
    ])  # fmt: skip
    warnings: list[str] = []
    config = with_corpora(store, ScanConfig(descriptor="d", screen=screen), [], warnings.append)
    assert "there is no background, and without one no similarity is evidence" in warnings[0]
    assert ("flagged as trained on" in warnings[0]) == (screen == "first")
    assert ("Nothing can be flagged" in warnings[0]) == (screen == "off")
    assert "scanner corpus add --help" in warnings[0]
    assert "similar and is not flagged" in config.what_flags
    assert ("trained on a reference" in config.what_flags) == (screen == "first")
    corpora = split(load_corpora(store, None, "d"))
    copies = Candidates("scan", ["one", "two"], mine[3:5])
    (found,) = compare([copies], corpora, thresholds_of(config), config.alpha)
    assert found.verdict is Verdict.NOTHING_FOUND
    assert (found.num_background, found.q_value) == (0, 1.0)
    nearest = found.matches[0]
    assert nearest.similarity == pytest.approx(1, abs=1e-5)
    assert (nearest.null_similarity, nearest.p_value, nearest.q_value, nearest.flagged) == (None, 1, 1, False)
    assert len(found.matches) == KEPT_MATCHES
    if screen == "first":
        with pytest.raises(CorpusError, match="With a background, a quick filter"):
            with_corpora(store, ScanConfig(descriptor="d", screen_budget=15), [])
    store.append(found.matches)
    assert store.select(Match, "ORDER BY similarity DESC")[0] == nearest


def test_tau_comes_from_the_background_or_else_from_unseen_works(store: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    config = ScanConfig()
    made = {
        "mine": (Role.REFERENCE, embeddings(rng, 3, exact=False)),
        "background": (Role.BACKGROUND, embeddings(rng, 30, exact=False)),
        "drawer": (Role.UNSEEN, embeddings(rng, 20, exact=False)),
    }
    for name, (role, vectors) in made.items():
        store.append([
            Reference(f"{name}{n:02}", name, role, "", "", 1, 1, config.descriptor, tuple(v.tolist()), now())
            for n, v in enumerate(vectors)
        ])  # fmt: skip
    warnings: list[str] = []
    whole = with_corpora(store, config, [], warnings.append)
    expected = {name: thresholds_of_background(config.tau_quantile, v) for name, (_, v) in made.items()}
    assert whole.relative_tau == pytest.approx(expected["background"].relative, abs=1e-4)
    assert whole.tau == pytest.approx(expected["background"].tau, abs=1e-4)
    assert {name: stated.partition(":")[0] for name, stated in whole.corpora.items()} == {
        "mine": "reference", "background": "background", "drawer": "unseen",
    }  # fmt: skip
    assert "50 background images are few for 3 references" in warnings[0]
    without = with_corpora(store, config, ["mine", "drawer"])
    assert without.tau == pytest.approx(expected["drawer"].tau, abs=1e-4)
    assert without.config_id != whole.config_id
