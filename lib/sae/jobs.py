"""A part of stage 5 or 6: some of its layers as a job of their own, for machines with many GPUs or a cluster.

    COMPANION_PART=2-of-36 python -m lib.sae.jobs 05_sparse_autoencoders '{"run_dir": "runs/paper", ...}'

A part trains its layers and finds their features, or, for ``06_feature_alignment``, tunes their arms. It writes only its
layers' folders, under the identity of the whole stage, and skips what is there; the notebook, run afterwards, finds the
layers done, joins them and writes the manifest.
"""

import argparse
import json
import sys
from typing import Any

from lib import runs, shares
from lib.parameters import STAGES
from lib.sae import arms, layers

NOTEBOOKS = {"05_sparse_autoencoders": layers.training_inputs, "06_feature_alignment": arms.alignment_inputs}


def run(notebook: str, parameters: Any) -> None:
    """Compute the layers of a stage that are this process's share (:mod:`lib.shares`).

    Args:
        notebook: a key of ``NOTEBOOKS``.
        parameters: of the whole stage, with all its layers.
    """
    stage = runs.open_stage(notebook, parameters, NOTEBOOKS[notebook](parameters))
    if stage.complete:
        return
    rows = layers.reader(stage, parameters.pooling, parameters.split)
    for layer in shares.share(parameters.layers):
        if notebook == "05_sparse_autoencoders":
            layers.train_layers(stage, rows, [layer], parameters)
            layers.identify_layer(stage, rows, layer, parameters)
        else:
            arms.align_layer(stage, rows, layer, parameters)


def main(arguments: list[str]) -> None:
    """Read the command line and compute the layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", choices=NOTEBOOKS)
    parser.add_argument("parameters", type=json.loads, help="of the notebook, as a JSON object")
    asked = parser.parse_args(arguments)
    run(asked.notebook, runs.build(STAGES[asked.notebook].parameters, asked.parameters, "the command line"))


if __name__ == "__main__":
    main(sys.argv[1:])
