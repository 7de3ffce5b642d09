"""The demo's numbers stay where they are, within stated tolerances."""

import golden
import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.pipeline


@pytest.mark.parametrize("name", golden.TABLES)
def test_the_demo_run_gives_the_kept_numbers(demo_run, name):
    _, keys, numbers, tolerance = golden.TABLES[name]
    kept = pd.read_csv(golden.FOLDER / f"{name}.csv")
    found = golden.current(demo_run, name)
    pd.testing.assert_frame_equal(found[keys], kept[keys], check_dtype=False)
    np.testing.assert_allclose(found[numbers], kept[numbers], atol=tolerance + 1e-4, rtol=0)
