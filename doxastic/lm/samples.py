"""Texts that a model writes while it is trained, for people to read."""

from __future__ import annotations

from collections.abc import Callable

from doxastic.language.model import LanguageModel
from doxastic.language.objective import StartState
from doxastic.language.tokenizers import Tokenizer
from doxastic.lm.experiment import SamplesConfig
from doxastic.runs import RunFolder


def build_sampler(
    config: SamplesConfig,
    model: LanguageModel,
    start_state: StartState | None,
    tokenizer: Tokenizer,
    run: RunFolder,
) -> Callable[[int], None]:
    """Return what, called after an update that is due, writes `samples/step-<n>.txt`.

    The same random numbers are used each time, so that texts differ by what was learnt. They are
    in TensorBoard too.
    """
    # Imported here: training without samples needs no generation.
    from doxastic.language.generation import generate
    from doxastic.language.sampling import SamplingConfig

    sampling = SamplingConfig(temperature=config.temperature, max_new_tokens=config.tokens)

    def sample(update: int) -> None:
        if update % config.updates:
            return
        start = None if start_state is None else start_state(1)
        was_training = model.training
        model.eval()
        try:
            written = generate(model, tokenizer, config.prompts, sampling, state=start, opens=True)
        finally:
            model.train(was_training)
        texts = [f"{p}{g.text}" for p, g in zip(config.prompts, written, strict=True)]
        text = "\n\n---\n\n".join(texts)
        run.write(f"samples/step-{update}.txt", (text + "\n").encode())
        run.log_text("samples", text, update)

    return sample
