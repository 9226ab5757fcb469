"""A correlation is what its definition says, an interval covers, and nothing is NaN in silence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from attribution.evidence import stats

M, N, Q = 60, 80, 12


def make(
    seed: int = 0,
    noise: float = 0.0,
    repeats: int = 1,
    masks: int = M,
    queries: int = Q,
    skew: float = 0.0,
):
    """(scores (Q, N), masks (M, N), margins (M, R, Q)) of a linear model with noise."""
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((queries, N))
    kept = np.zeros((masks, N), np.uint8)
    for mask in kept:
        mask[generator.permutation(N)[: N // 2]] = 1
    signal = kept @ scores.T / np.sqrt(N / 4) + skew
    margins = signal[:, None] + noise * generator.standard_normal((masks, repeats, queries))
    return scores, kept, margins


def noise_ceiling(margins: np.ndarray) -> float | None:
    found = stats.ceiling_of(margins, stats.draw(len(margins), margins.shape[2], 1))
    return None if found is None else found.value


def test_lds_is_1_for_a_linear_model_whatever_the_scale():
    scores, masks, margins = make()
    truth = stats.make_truth(stats.mean_margins(margins))
    assert stats.agreement(scores * 1e-6, masks, truth).per_query == pytest.approx(np.ones(Q))
    assert stats.agreement(-scores, masks, truth).mean == pytest.approx(-1)


def test_lds_of_independent_scores_stays_within_the_stated_chance():
    scores, masks, margins = make()
    truth = stats.make_truth(stats.mean_margins(margins))
    means = []
    for seed in range(60):
        result = stats.agreement(np.random.default_rng(seed).standard_normal((Q, N)), masks, truth)
        means.append(abs(result.mean) <= stats.chance(result, truth, seed=seed))
    assert np.mean(means) >= 0.85


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_lds_with_ties_equals_scipy(seed, levels):
    scores, masks, margins = make(seed, noise=1.0)
    scores, margins = np.round(scores), np.round(margins * levels / 4)
    truth = stats.make_truth(stats.mean_margins(margins))
    ours = stats.agreement(scores, masks, truth).per_query
    for q in range(Q):
        reference = spearmanr(masks @ scores[q], margins[:, 0, q]).statistic
        assert ours[q] == pytest.approx(reference, abs=1e-9) or (
            np.isnan(ours[q]) and np.isnan(reference)
        )


def test_constant_margins_are_left_out_and_constant_predictions_count_as_nothing():
    scores, masks, margins = make()
    margins[:, :, 3] = 7.0
    scores[5] = 2.0
    result = stats.agreement(scores, masks, truth := stats.make_truth(stats.mean_margins(margins)))
    assert np.isnan(result.per_query[3]) and not truth.valid[3] and truth.valid.sum() == Q - 1
    assert result.per_query[5] == 0 and result.constant == 1
    assert result.mean == pytest.approx((Q - 2) / (Q - 1))
    samples = stats.bootstrap(result, truth, stats.draw(M, Q, 200))
    assert np.isfinite(samples).all()


def test_missing_repeats_are_left_out_of_the_mean():
    _, _, margins = make(noise=1.0, repeats=3)
    margins[4, 1] = np.nan
    margins[7] = np.nan
    assert np.array_equal(np.flatnonzero(~stats.complete_masks(margins)), [7])
    means = stats.mean_margins(margins)
    assert means[4] == pytest.approx(margins[4, [0, 2]].mean(0)) and np.isnan(means[7]).all()
    assert noise_ceiling(margins) is not None


def test_class_balance_control_equals_residuals_of_ranks_and_removes_label_agreement():
    scores, masks, _ = make()
    labels = np.arange(N) % 2
    counts = stats.kept_counts(masks, labels)
    margins = counts[:, :1] * np.ones(Q) + np.random.default_rng(1).standard_normal((M, Q))
    truth = stats.make_truth(margins, counts)
    design = np.column_stack([np.ones(M), rankdata(counts[:, 0])])
    result = stats.agreement(scores, masks, truth).per_query
    for q in range(Q):
        pair = [rankdata(masks @ scores[q]), rankdata(margins[:, q])]
        residuals = [x - design @ np.linalg.lstsq(design, x, rcond=None)[0] for x in pair]
        assert result[q] == pytest.approx(np.corrcoef(*residuals)[0, 1], abs=1e-9)
    by_label = np.where(labels == 0, 1.0, -1.0) * np.ones((Q, 1))
    assert stats.agreement(by_label, masks, stats.make_truth(margins)).mean > 0.8
    assert stats.agreement(by_label, masks, truth).mean == 0


def test_intervals_cover_the_value_of_endless_masks_and_queries():
    """95 % intervals of LDS and of a paired difference hold the true value in 90 % or more of 60
    simulated studies.
    """
    generator = np.random.default_rng(0)

    def study(masks: int, queries: int):
        scores, kept, margins = make(
            int(generator.integers(2**31)), noise=1.0, masks=masks, queries=queries
        )
        blurred = scores + 0.7 * generator.standard_normal(scores.shape)
        truth = stats.make_truth(stats.mean_margins(margins))
        return [stats.agreement(values, kept, truth) for values in (scores, blurred)], truth

    (sharp, blurred), _ = study(1500, 300)
    expected = sharp.mean, sharp.mean - blurred.mean
    hits = np.zeros(2)
    for _ in range(60):
        both, truth = study(40, 25)
        samples = [
            stats.bootstrap(result, truth, stats.draw(40, 25, 300, seed=1)) for result in both
        ]
        for i, values in enumerate((samples[0], samples[0] - samples[1])):
            low, high = stats.interval(values)
            hits[i] += low <= expected[i] <= high
    assert (hits / 60 >= 0.9).all()


def test_the_noise_ceiling_is_what_the_true_scores_reach():
    scores, masks, margins = make(noise=1.5, repeats=4, masks=400, queries=40)
    reached = stats.agreement(scores, masks, stats.make_truth(stats.mean_margins(margins))).mean
    assert noise_ceiling(margins) == pytest.approx(reached, abs=0.03)
    assert noise_ceiling(margins[:, :1]) is None
    assert noise_ceiling(np.random.default_rng(0).standard_normal((50, 2, 300))) < 0.3


def test_mean_spearman_equals_scipy():
    a, b = make(1)[0], make(2)[0]
    each = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert stats.mean_spearman(a, b) == pytest.approx(np.mean(each))
    assert stats.mean_spearman(a, np.ones_like(b)) == 0


def test_wilson_equals_published_values():
    """Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table
    I, method 3.
    """
    published = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611)}
    for (hits, count), expected in published.items():
        assert stats.wilson(hits, count) == pytest.approx(expected, abs=5e-5)
    assert stats.wilson(0, 0) == (0, 1)


def test_of_a_ceiling_that_may_be_zero_no_share_is_known():
    rng = np.random.default_rng(0)
    sample, agreements = rng.normal(0.3, 0.05, 400), rng.normal(0.4, 0.05, 400)
    unknown = stats.Ceiling(0.6, rng.normal(0.6, 0.3, 400).clip(0), 0.4, agreements)
    assert (
        stats.share_of_ceiling(0.3, sample, unknown)
        == stats.share_of_ceiling(0.3, sample, None)
        == {}
    )
    known = stats.share_of_ceiling(
        0.3, sample, stats.Ceiling(0.6, rng.normal(0.6, 0.1, 400), 0.4, agreements)
    )
    assert (
        known["share"] == 0.5
        and 0.2 < known["share_interval"][0] < 0.5 < known["share_interval"][1] < 0.9
    )


def test_noise_alone_has_a_ceiling_which_is_not_taken_for_one():
    noise = np.random.default_rng(0).standard_normal((50, 2, 40))
    found = stats.ceiling_of(noise, stats.draw(50, 40, 200))
    assert (
        found is not None and found.value > 0.1 and abs(found.agreement) < 0.05 and not found.known
    )
    assert stats.share_of_ceiling(0.1, np.full(200, 0.1), found) == {}


def test_the_bootstrapped_ceiling_is_the_ceiling_and_repeats_agree_by_their_correlation():
    _, _, margins = make(noise=1.5, repeats=3)
    found = stats.ceiling_of(margins, stats.draw(M, Q, 200))
    assert (
        found is not None and found.value == pytest.approx(noise_ceiling(margins)) and found.known
    )
    by_hand = [
        spearmanr(margins[:, i], margins[:, j], axis=0).statistic
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert found.agreement == pytest.approx(np.mean([np.diag(both[:Q, Q:]) for both in by_hand]))
    low, high = stats.interval(found.draws)
    assert low < found.value < high


def test_a_draw_without_a_query_that_counts_is_missing_and_not_zero():
    rng = np.random.default_rng(0)
    masks, scores = rng.integers(0, 2, (40, 30)), rng.standard_normal((3, 30))
    margins = masks @ scores.T + 0.1 * rng.standard_normal((40, 3))
    margins[:, 1:] = 7.0  # two of three queries never change
    truth = stats.make_truth(margins)
    agreed, draws = stats.agreement(scores, masks, truth), stats.draw(40, 3, 300)
    samples = stats.bootstrap(agreed, truth, draws)
    assert np.isnan(samples).sum() == (draws.queries[:, 0] == 0).sum() > 50
    assert stats.interval(samples)[0] > 0.8 and np.isnan(stats.interval(np.array([np.nan]))).all()
