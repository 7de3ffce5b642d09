"""Training steps against sae-lens' SAETrainer: the same rows, architecture and batch size, taken in turn, in one run.

    python benchmarks/sparse_autoencoders.py

On a CPU: width 256, 4,096 latents, batches of 2,048. On a GPU, where there is one, also width 4,096, 65,536 latents, batches
of 4,096, as the share of the GPU's bfloat16 matrix rate, measured in the same run, and the time that 36 layers of 200
epochs would take. Both sides run a ReLU with an L1 penalty and Adam, and neither logs nor evaluates within the time taken; on
a CPU each has one thread and its CPU seconds are counted, because the load of a shared machine comes and goes.
Peak memory is the process's, of a training of ours alone.
"""

import multiprocessing
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cells import RESULTS, record
from sae_lens import LoggingConfig, SAETrainer, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig

from lib.activations.preflight import matrix_rate
from lib.run.files import write_text_atomically
from lib.run.parameters import SAEKeys
from lib.sae import training
from lib.sae.recipe import recipe_of

WIDTH, EXPANSION, BATCH, STEPS, ROUNDS = 256, 16, 2048, 2, 5
FULL_WIDTH, FULL_BATCH, FULL_ROWS, LAYERS, EPOCHS = 4096, 4096, 201_023, 36, 200
KEYS = SAEKeys(
    layers=[0],
    sae_activation="relu",
    expansion=EXPANSION,
    target_l0=100,
    batch_size=BATCH,
    learning_rate=1e-4,
    sae_epochs=1,
)
RECIPE = recipe_of(KEYS, rows=STEPS * BATCH, d_in=WIDTH)
FULL = recipe_of(KEYS.model_copy(update={"batch_size": FULL_BATCH}), rows=FULL_ROWS, d_in=FULL_WIDTH)
STEP = {"recipe": RECIPE, "weight": training.INITIAL_WEIGHT}
NOT_MEASURED = "not measured"


def ours(x: np.ndarray) -> float:
    """Return seconds of our steps on the batches."""
    device = torch.device(training.default_device())
    sae = training.new(RECIPE).to(device)
    optimiser = torch.optim.AdamW(sae.parameters(), lr=RECIPE.learning_rate, weight_decay=0, fused=True)
    rows = torch.from_numpy(x).to(device)
    started = time.process_time()
    for batch in rows.split(BATCH):
        with torch.no_grad():
            training.set_gradients(sae, batch, **STEP)
        training.update(sae, optimiser)
    return time.process_time() - started


def peers(x: np.ndarray) -> float:
    """Return seconds of the steps of sae-lens' trainer on the same batches."""
    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(d_in=x.shape[1], d_sae=EXPANSION * x.shape[1], apply_b_dec_to_input=False)
    )
    settings = SAETrainerConfig(
        total_training_samples=len(x), train_batch_size_samples=BATCH, lr=RECIPE.learning_rate, lr_end=RECIPE.learning_rate,
        logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(settings, sae, iter(torch.from_numpy(x).split(BATCH)))
    started = time.process_time()
    for batch in torch.from_numpy(x).split(BATCH):
        trainer.step(batch)
    return time.process_time() - started


def peak(queue: "multiprocessing.Queue[float]", x: np.ndarray) -> None:
    """Put the peak memory in GB of a fresh process that trains, its libraries included."""
    training.train(x, x[:BATCH], parameters=KEYS, label="peak")
    # The resource module's figure survives the start of a new program, so it may be the parent's.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    queue.put(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6)


def on_a_gpu() -> dict[str, object]:
    """Return the share of the matrix rate, hours for all layers and peak memory at full size; not measured without a GPU."""
    names = ("share_of_matrix_rate", "hours_for_all_layers", "peak_gb")
    if not torch.cuda.is_available():
        return dict.fromkeys(names, NOT_MEASURED)
    device = torch.device("cuda")
    x = torch.randn(FULL_ROWS // 8, FULL_WIDTH, device=device)
    sae = training.new(FULL).to(device)
    optimiser = torch.optim.AdamW(sae.parameters(), lr=RECIPE.learning_rate, weight_decay=0, fused=True)
    gradients, seconds = torch.compile(training.set_gradients), []
    for batch in x.split(FULL_BATCH):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            gradients(sae, batch, **STEP)
        training.update(sae, optimiser)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    step = statistics.median(seconds[2:])
    products = 5 * 2 * FULL_BATCH * FULL_WIDTH * EXPANSION * FULL_WIDTH
    hours = LAYERS * EPOCHS * (FULL_ROWS / FULL_BATCH) * step / 3600
    measured = (products / step / matrix_rate("cuda", "bfloat16"), hours, torch.cuda.max_memory_allocated() / 1e9)
    return dict(zip(names, (round(value, 3) for value in measured), strict=True))


def main() -> None:
    """Measure, record and print the cells."""
    torch.set_num_threads(1)
    x = np.random.default_rng(0).normal(size=(STEPS * BATCH, WIDTH)).astype(np.float32)
    ours(x[:BATCH]), peers(x[:BATCH])
    times = [(ours(x), peers(x)) for _ in range(ROUNDS)]
    record(
        "Training step of a ReLU autoencoder, 256 to 4,096, batch 2,048",
        "sae-lens SAETrainer",
        *map(list, zip(*times, strict=True)),
    )
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak, args=(queue, x[: 2 * BATCH]))
    process.start()
    gigabytes = queue.get()
    process.join()
    estimate = training.required_bytes(FULL, rows=FULL_ROWS, half=True) / 1e9
    row = {
        "cell": "Memory of a training, 256 to 4,096", "peak_gb": round(gigabytes, 2),
        "estimate_at_full_size_gb": round(estimate, 1),
    }  # fmt: skip
    row |= {f"gpu_{name}": value for name, value in on_a_gpu().items()}
    write_text_atomically(RESULTS.parent / "training_memory.csv", pd.DataFrame([row]).to_csv(index=False))
    print(row)


if __name__ == "__main__":
    main()
