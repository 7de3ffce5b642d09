"""One layer of stage 5 or 6 as a job of its own, for machines with many GPUs or a cluster.

``python -m lib.sae.jobs 05_sparse_autoencoders profiles/paper.yaml 11`` trains layer 11 and finds its features, and
``06_feature_alignment`` in its place tunes its arms. A job writes only its layer's folder, under the identity of the whole
stage, and skips what is there; the notebook, run afterwards, finds the layers done, joins them and writes the manifest.
"""

import argparse
import sys
from typing import Any

from lib import runs
from lib.parameters import STAGES, ParameterError
from lib.profiles import load_profile
from lib.sae import arms, layers

NOTEBOOKS = {"05_sparse_autoencoders": layers.training_inputs, "06_feature_alignment": arms.alignment_inputs}


def run(notebook: str, parameters: Any, layer: int) -> None:
    """Compute one layer of a stage.

    Args:
        notebook: a key of ``NOTEBOOKS``.
        parameters: of the whole stage, with all its layers.
        layer: one of them.

    Raises:
        ParameterError: the layer is not among the stage's.
    """
    if layer not in parameters.layers:
        raise ParameterError(f"layer {layer} is not among the run's layers {parameters.layers}")
    stage = runs.open_stage(notebook, parameters, NOTEBOOKS[notebook](parameters))
    if stage.complete:
        return
    rows = layers.reader(stage, parameters.pooling, parameters.split)
    if notebook == "05_sparse_autoencoders":
        layers.train_layers(stage, rows, [layer], parameters)
        layers.identify_layer(stage, rows, layer, parameters)
    else:
        arms.align_layer(stage, rows, layer, parameters)


def main(arguments: list[str]) -> None:
    """Read the command line and compute a layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", choices=NOTEBOOKS)
    parser.add_argument("profile")
    parser.add_argument("layer", type=int)
    asked = parser.parse_args(arguments)
    values = load_profile(asked.profile).stage_parameters(asked.notebook)
    run(asked.notebook, runs.build(STAGES[asked.notebook].parameters, values, asked.profile), asked.layer)


if __name__ == "__main__":
    main(sys.argv[1:])
