"""A corrected score is the posterior mean, learns what retrains show, and is judged on masks that
it has not seen.
"""

import numpy as np
import pytest

from attribution.evidence import correction, stats
from attribution.files import Refused

M, N, Q = 60, 40, 12


def made(noise: float = 1.0, seed: int = 0):
    """(scores, Gram matrix, masks, mean margins): scores hold half of what rows do, rows of a kind
    do the like.
    """
    generator = np.random.default_rng(seed)
    kinds = generator.standard_normal((N, 5))
    gram = kinds @ kinds.T + 0.1 * np.eye(N)
    scores = generator.standard_normal((Q, N))
    effects = scores + generator.standard_normal((Q, 5)) @ kinds.T * 0.5
    masks = (generator.random((M, N)) < 0.5).astype(np.float64)
    margins = (
        masks @ effects.T
        + generator.standard_normal(Q) * 10
        + noise * generator.standard_normal((M, Q))
    )
    return scores * 1e4, gram, masks, margins


def corrected(gram, masks, margins, scores) -> np.ndarray:
    """Scores corrected by all of these retrains."""
    return correction.Retrains.of(gram @ masks.T, masks, margins).correct(scores)


def test_it_is_the_posterior_mean_of_every_rows_effect():
    """Against the textbook's formula in the space of rows, with the same noise and slope."""
    scores, gram, masks, margins = made()
    found = corrected(gram, masks, margins, scores)
    chosen, wanted = masks - masks.mean(0), margins - margins.mean(0)
    kernel = chosen @ gram @ chosen.T
    values, basis = np.linalg.eigh(
        kernel + np.ones((M, M)) * 1e6
    )  # the mean becomes the last direction
    values, basis = values[:-1], basis[:, :-1]
    size = values.mean()
    noise, slopes = correction.most_likely(
        values / size, basis.T @ (chosen @ scores.T), basis.T @ wanted
    )
    for q in range(Q):
        mean = slopes[q] * scores[q]
        gain = gram @ chosen.T @ np.linalg.inv(kernel + noise * size * np.eye(M))
        np.testing.assert_allclose(
            found[q], mean + gain @ (wanted[:, q] - chosen @ mean), rtol=1e-6, atol=1e-8
        )


def test_the_noise_is_that_of_the_highest_likelihood():
    """Each query's scale and slope are where the normal density of its margins is highest."""
    generator = np.random.default_rng(0)
    values, x = generator.random(30) * 3, generator.standard_normal((30, 400))
    y = 2 * x + generator.standard_normal((30, 400)) * np.sqrt(values + 0.5)[:, None]
    noise, slopes = correction.most_likely(values, x, y)
    assert 0.25 <= noise <= 1 and slopes.mean() == pytest.approx(2, abs=0.05)
    noise, _ = correction.most_likely(values, x, generator.standard_normal((30, 400)))
    assert noise > 50  # the prior explains nothing


def test_scores_in_any_unit_are_corrected_alike_and_there_need_be_none():
    scores, gram, masks, margins = made()
    found = corrected(gram, masks, margins, scores)
    other = corrected(3 * gram, masks, margins, scores * 1e-7)
    np.testing.assert_allclose(other, found, rtol=1e-6)
    alone = corrected(gram, masks, margins, np.zeros_like(scores))
    assert np.isfinite(alone).all() and np.abs(alone).max() > 0


def test_where_rows_are_not_alike_at_all_or_margins_never_change_nothing_breaks():
    scores, gram, masks, margins = made()
    plain = corrected(np.zeros((N, N)), masks, margins, scores)
    assert np.isfinite(plain).all() and np.abs(np.corrcoef(plain[0], scores[0])[0, 1]) > 0.999
    margins[:, 3] = 1.0
    assert np.abs(corrected(gram, masks, margins, scores)[3]).max() == pytest.approx(0, abs=1e-9)


def judged(seed: int = 0, change=lambda *made: made) -> dict:
    scores, gram, masks, margins = change(*made(seed=seed))
    return correction.cross_validate(
        scores, gram @ masks.T, masks, margins, masks[:, :20].sum(1)[:, None], stats.draw(M, Q, 200)
    )


def test_what_retrains_show_of_like_rows_is_gained_on_masks_that_were_held_out():
    for kind in ("plain", "balanced"):
        found = judged()[kind]
        assert found["difference_interval"][0] > 0 and found["difference"] > 0.05
        assert found["difference"] == pytest.approx(found["corrected"] - found["lds"])
        assert found["alone"] < found["corrected"]
        assert found["interval"][0] < found["lds"] < found["interval"][1]


def test_margins_that_are_noise_are_not_learned():
    """Were a mask judged by scores that have seen it, noise would look like knowledge."""

    def shuffle(scores, gram, masks, margins):
        return scores, gram, masks, np.random.default_rng(1).standard_normal(margins.shape)

    gains = [judged(seed, shuffle)["plain"]["corrected"] for seed in range(10)]
    assert abs(np.mean(gains)) < 0.05


def test_the_uncorrected_score_is_judged_fold_by_fold():
    scores, _, masks, margins = made()
    folds = [
        fold
        for partition in range(correction.PARTITIONS)
        for fold in correction.folds_of(masks, partition)
    ]
    assert len({tuple(fold) for fold in folds}) == correction.PARTITIONS * correction.FOLDS
    each = [
        stats.agreement(scores, masks[fold], stats.make_truth(margins[fold])).mean for fold in folds
    ]
    assert judged()["plain"]["lds"] == pytest.approx(np.mean(each))


def test_too_few_masks_are_refused():
    correction.check_masks(correction.LEAST_MASKS)
    with pytest.raises(Refused, match="needs 50, not 49"):
        correction.check_masks(49)


def test_a_mask_that_was_drawn_twice_is_held_out_as_a_whole():
    """Else its other copy would be learned by heart."""
    masks = np.random.default_rng(0).integers(0, 2, (20, N)).repeat(3, axis=0)
    folds = correction.folds_of(masks, 0)
    assert sorted(np.concatenate(folds)) == list(range(60))
    for fold in folds:
        inside, outside = (
            {tuple(masks[i]) for i in some} for some in (fold, set(range(60)) - set(fold))
        )
        assert not inside & outside

    def noise(scores, gram, _, margins):
        return (
            scores,
            gram,
            masks.astype(float),
            np.random.default_rng(1).standard_normal((20, Q)).repeat(3, axis=0),
        )

    assert abs(judged(change=noise)["plain"]["corrected"]) < 0.2


def test_few_retrains_do_not_turn_a_score_round():
    scores, gram, masks, margins = made()
    against = corrected(0 * gram, masks, margins, -scores)
    assert np.abs(against).max() == 0


def test_classes_are_controlled_for_only_where_enough_masks_are_left():
    scores, gram, masks, margins = made()
    for columns, kinds in ((7, {"plain", "balanced"}), (8, {"plain"})):
        controls = np.random.default_rng(0).random((M, columns))
        found = correction.cross_validate(
            scores, gram @ masks.T, masks, margins, controls, stats.draw(M, Q, 20)
        )
        assert set(found) == kinds and np.isfinite(found["plain"]["difference"])
