"""A score is evaluated on the masks whose retrains are all there."""

import numpy as np

from attribution.evidence.lds import Evidence, MemberScores, evaluate
from attribution.show.tables import lds_text


def test_diverged_retrains_are_left_out_and_that_is_said():
    generator = np.random.default_rng(0)
    masks = (generator.random((6, 20)) < 0.5).astype(np.uint8)
    margins = generator.standard_normal((6, 2, 3)).astype(np.float32)
    margins[2] = np.nan
    margins[4, 1] = np.nan
    result = evaluate({"random": generator.standard_normal((3, 20))}, Evidence(masks, margins), 20)
    assert (result["masks"], result["incomplete_masks"], result["missing_repeats"]) == (5, 1, 3)
    assert np.isfinite(result["scores"]["random"]["plain"]["lds"])


def linear_study(noise: float = 0.3):
    """Scores of 5 queries and 30 rows, masks, and margins of three repeats that these scores
    predict.
    """
    generator = np.random.default_rng(1)
    masks = (generator.random((60, 30)) < 0.5).astype(np.uint8)
    scores = generator.standard_normal((5, 30))
    margins = (masks @ scores.T)[:, None] + noise * generator.standard_normal((60, 3, 5))
    return scores, masks, margins


def test_the_share_of_the_ceiling_is_their_ratio_and_its_interval_covers_it():
    scores, masks, margins = linear_study()
    named = {"ekfac": scores, "random": np.random.default_rng(2).standard_normal((5, 30))}
    result = evaluate(named, Evidence(masks, margins), 300)
    entry = result["scores"]["ekfac"]["plain"]
    assert entry["share"] == entry["lds"] / result["ceiling"]["plain"]
    low, high = entry["share_interval"]
    assert low < entry["share"] < high and 0.95 < entry["share"] < 1.02 and high - low < 0.1
    low, high = result["ceiling_interval"]["plain"]
    assert low < result["ceiling"]["plain"] < high


def test_a_regressions_output_is_predicted_up_to_the_sign_of_the_residual():
    """Margins -(z - y)^2 fall where outputs rise above the label; the scores of the margin then
    have the other sign.
    """
    scores, masks, outputs = linear_study(0.0)
    labels = np.array(
        [99.0, -99.0, 99.0, -99.0, 99.0]
    )  # far away: the margin is monotonous in the output
    margins = -np.square(outputs - labels)
    of_margin = scores * np.sign(labels)[:, None]
    random = np.random.default_rng(2).standard_normal((5, 30))
    evidence = Evidence(masks, margins, masks.sum(1, keepdims=True), outputs, residuals=labels)
    result = evaluate({"ekfac": of_margin, "random": random}, evidence, 20)
    found = result["scores"]["ekfac"]
    assert found["plain"]["lds"] > 0.99 and found["output"]["lds"] > 0.999 and "balanced" in found


def test_of_a_regressions_members_the_output_is_what_they_say_of_it_each_by_its_own_residual():
    scores, masks, outputs = linear_study(0.0)
    residuals = np.array(
        [[2.0, -3.0, 1.0, 1.0, 4.0], [-1.0, -3.0, 2.0, -5.0, 0.5]]
    )  # of two members, apart for two
    of_margin = (residuals[:, :, None] * scores).sum(0)
    named = {
        "ekfac_members2": of_margin,
        "random": np.random.default_rng(2).standard_normal((5, 30)),
    }
    evidence = Evidence(
        masks, -np.square(outputs), masks.sum(1, keepdims=True), outputs, residuals=residuals[0]
    )
    alone = evaluate(named, evidence, 20)["scores"]["ekfac_members2"]["output"]
    together = evaluate(named, evidence, 20, MemberScores(outputs={"ekfac_members2": scores}))[
        "scores"
    ]["ekfac_members2"]
    assert (
        together["output"]["lds"] > 0.999 > 0.7 > alone["lds"]
        and "single" not in together["output"]
    )


def test_a_ceiling_is_known_where_repeats_agree_and_no_share_is_given_where_it_is_not():
    scores, masks, margins = linear_study()
    named = {"ekfac": scores, "random": np.random.default_rng(2).standard_normal((5, 30))}
    noise = np.random.default_rng(3).standard_normal(margins.shape)
    for truth, known in ((margins, True), (noise, False)):
        result = evaluate(named, Evidence(masks, truth), 200)
        assert result["ceiling_known"] == {"plain": known} and result["ceiling"]["plain"] > 0
        assert ("share" in result["scores"]["ekfac"]["plain"]) == known


def test_with_a_score_come_its_top_rows_and_its_members():
    scores, masks, margins = linear_study()
    everywhere = np.tile(np.arange(30.0), (5, 1))  # the same ten rows for every query
    named = {
        "ekfac": scores,
        "all": everywhere,
        "random": np.random.default_rng(2).standard_normal((5, 30)),
    }
    members = MemberScores({"ekfac": [scores, -scores]})
    found = evaluate(named, Evidence(masks, margins), 20, members)["scores"]
    assert found["all"]["rows_at_top"] == 10 and 10 < found["ekfac"]["rows_at_top"] <= 30
    each = found["ekfac"]["plain"]["single"]
    assert each[0] == found["ekfac"]["plain"]["lds"] and np.isclose(each[0], -each[1])


def test_scores_whose_difference_from_the_best_holds_zero_are_named_below_the_table():
    scores, masks, margins = linear_study()
    near = scores + 1e-3 * np.random.default_rng(2).standard_normal(scores.shape)
    result = evaluate({"ekfac": -scores, "one": scores, "two": near}, Evidence(masks, margins), 200)
    parts = {name: entry["plain"] for name, entry in result["scores"].items()}
    best, tie = sorted(("one", "two"), key=lambda name: -parts[name]["lds"])
    assert parts[best]["behind_best_interval"] == (0.0, 0.0)
    low, high = parts["ekfac"]["behind_best_interval"]
    assert 0 < low < parts[best]["lds"] - parts["ekfac"]["lds"] < high
    about = {"dataset": "demo", "evaluation": {}, "foreign": False, "shared_seeds": []}
    text = lds_text(result | about)
    assert f"Cannot be told from {best}, the best" in text and f"holds 0): {tie}.\n" in text
    del result["scores"][tie]
    assert "Cannot be told" not in lds_text(result | about)


def test_word_overlap_that_is_as_good_as_ekfac_is_named_below_the_table():
    scores, masks, margins = linear_study()
    near = scores + 1e-3 * np.random.default_rng(2).standard_normal(scores.shape)
    named = {"ekfac": scores, "tfidf": near, "bm25": -scores}
    result = evaluate(named, Evidence(masks, margins), 200)
    low, high = result["scores"]["tfidf"]["plain"]["difference_interval"]
    assert low <= 0 <= high and result["scores"]["bm25"]["plain"]["difference_interval"][1] < 0
    about = {"dataset": "demo", "evaluation": {}, "foreign": False, "shared_seeds": []}
    sentence = "ekfac cannot be told from word overlap, which needs no model: tfidf.\n"
    assert sentence in lds_text(result | about)
    del result["scores"]["tfidf"]
    assert "word overlap" not in lds_text(result | about)
