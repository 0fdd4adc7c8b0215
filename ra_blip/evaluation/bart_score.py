"""BARTScore (Yuan et al. 2021): how likely a sequence-to-sequence model finds one text given another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ra_blip.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_MAX_TOKENS = 1024  # the original's


class BartScore:
    """The mean log-probability per token of a target given its source; WebQA's QA-FL is made of it.

    QA-FL is comparable with the leaderboard for one checkpoint only: ``facebook/bart-large-cnn`` with the weights
    ``bart.pth`` that BARTScore publishes, tuned on ParaBank2.

    Args:
        model: a Hugging Face folder, or a name that lies in the local cache. Nothing is fetched.
        weights: a file of weights to put over the model's own. It is read as tensors only.
        device: where the model runs.
        batch_size: pairs at once.

    Raises:
        CheckpointError: the model or the weights cannot be read, or do not belong together.
    """

    def __init__(
        self, model: str | Path, weights: str | Path | None = None, device: str = "cpu", batch_size: int = 16
    ) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
            self.model: Any = AutoModelForSeq2SeqLM.from_pretrained(str(model), local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{model}: no sequence-to-sequence model can be loaded ({error})") from None
        if weights is not None:
            self.model.load_state_dict(_read(Path(weights), self.model))
        self.model.to(device).eval()
        self.device = device
        self.batch_size = batch_size

    def __call__(self, sources: Sequence[str], targets: Sequence[str]) -> list[float]:
        """A score for each pair, at most 0. Texts are cut at 1,024 tokens; special tokens count.

        Raises:
            ValueError: there are not as many sources as targets.
        """
        import torch

        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources for {len(targets)} targets")
        scores: list[float] = []
        with torch.inference_mode():
            for start in tqdm(range(0, len(sources), self.batch_size), desc="BARTScore", unit="batch", disable=None):
                part = slice(start, start + self.batch_size)
                scores += self._score(list(sources[part]), list(targets[part])).tolist()
        return scores

    def _score(self, sources: list[str], targets: list[str]) -> torch.Tensor:
        options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": _MAX_TOKENS}
        source = self.tokenizer(sources, **options).to(self.device)
        target = self.tokenizer(targets, **options).to(self.device)
        logits = self.model(
            input_ids=source["input_ids"],
            attention_mask=source["attention_mask"],
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(target["input_ids"]),
        ).logits
        mask = target["attention_mask"]
        chosen = logits.float().log_softmax(-1).gather(-1, target["input_ids"][..., None])[..., 0]
        result: torch.Tensor = (chosen * mask).sum(1) / mask.sum(1)
        return result


def _read(path: Path, model: Any) -> dict[str, torch.Tensor]:
    """A file of tensors that fits the model."""
    import torch

    try:
        found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {name: tensor.shape for name, tensor in found.items()}
    except Exception as error:  # torch raises whatever the unpickler does
        raise CheckpointError(f"{path}: cannot be read as weights ({' '.join(str(error).split())[:200]})") from None
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if wrong:
        raise CheckpointError(f"{path}: {len(wrong)} tensors do not fit the model, {wrong[0]} is the first")
    return found
