"""A score is evaluated on the masks whose retrains are all there."""

import numpy as np

from attribution.evidence.lds import evaluate


def test_diverged_retrains_are_left_out_and_that_is_said():
    generator = np.random.default_rng(0)
    masks = (generator.random((6, 20)) < 0.5).astype(np.uint8)
    margins = generator.standard_normal((6, 2, 3)).astype(np.float32)
    margins[2] = np.nan
    margins[4, 1] = np.nan
    result = evaluate({"random": generator.standard_normal((3, 20))}, masks, margins, None, 20)
    assert (result["masks"], result["incomplete_masks"], result["missing_repeats"]) == (5, 1, 3)
    assert np.isfinite(result["scores"]["random"]["plain"]["lds"])
