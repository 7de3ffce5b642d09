"""A model on this machine, steered by a published arm, as a model provider of Inspect.

    inspect eval companion/flames -T judge=... --model companion/data/demo/models/moral-small \\
        -M autoencoder=runs/demo/publish/autoencoders/moral-small/layer_02/aligned -M strength=1.0

The model is a directory, a GGUF file or a hub id, the autoencoder a folder of ``make publish`` or of notebook 06; without one the
model answers as it is. Questions are put as in notebook 07, under the paper's system prompt, one at a time.
"""

from typing import Any

from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, ModelUsage, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo

from lib.activations.models import open_model, width
from lib.judging.judges import JudgingError
from lib.run.files import resolve
from lib.sae import files
from lib.steering import generation
from lib.steering.interventions import BASELINE, Arm, Edit, Intervention


@modelapi("companion")
class SteeredModel(ModelAPI):
    """``companion/<directory, GGUF file or hub id>``, steered at every position with ``x + strength * (sae(x) - x)``."""

    def __init__(self, model_name: str, *, autoencoder: str = "", strength: float = 1.0, **inspects: Any) -> None:
        super().__init__(model_name, **inspects)
        self.model, self.arm = open_model(model_name), BASELINE
        if autoencoder:
            folder = resolve(autoencoder)
            sae, about = files.load(folder, width(self.model)), files.metadata(folder)
            layer = int(about["hook_name"].rsplit(".", 1)[1])
            place = generation.layer_devices(self.model)[layer]
            chosen = Intervention(about.get("arm", "untuned"), (layer,), float(strength))
            self.arm = Arm(chosen, {layer: Edit(sae.to(place).requires_grad_(False))})

    def max_connections(self) -> int:
        """One question at a time."""
        return 1

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer one question; the receipt is in the output's ``metadata``.

        Raises:
            JudgingError: a conversation, or a system prompt of another kind.
        """
        asked = [message for message in input if (message.role, message.text) != ("system", generation.SYSTEM_PROMPT)]
        if [message.role for message in asked] != ["user"]:
            raise JudgingError(
                f"companion/ answers one question under the system prompt {generation.SYSTEM_PROMPT!r}, and got messages of "
                f"{', '.join(message.role for message in input)}"
            )
        temperature = 0.7 if config.temperature is None else config.temperature
        decoding = generation.Decoding(config.max_tokens or 512, temperature, config.top_p or 0.9, 1.1)
        (reply,), _ = generation.answer_batch(
            self.model, self.arm, [asked[0].text], decoding=decoding, seed=config.seed or 0
        )
        receipt, thought = reply["receipt"], reply["thought"]
        text = reply["response"] if thought is None else f"<think>{thought}</think>{reply['response']}"
        output = ModelOutput.from_content(self.model_name, text, "stop" if reply["finished"] else "max_tokens")
        read, written = receipt["prompt_tokens"], receipt["tokens_generated"]
        output.usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
        output.metadata = {"receipt": receipt}
        return output
